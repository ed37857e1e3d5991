"""``--config FILE``: options from a TOML file, for the flags that are not given."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

from cyclopts import App, Argument, ArgumentCollection, Token

from inpaint_encode.errors import UsageError

from .commands import app
from .spelling import nearest

__all__ = ["without_config"]


def without_config(arguments: list[str]) -> list[str]:
    """Take ``--config FILE`` out of the arguments and let its values stand in for flags that are not given."""
    arguments = [part for argument in arguments for part in _split_config(argument)]
    if "--config" not in arguments:
        return arguments
    at = arguments.index("--config")
    if at + 1 == len(arguments):
        raise UsageError("--config needs a TOML file")
    app.config = _values_of(Path(arguments[at + 1]))
    return arguments[:at] + arguments[at + 2 :]


def _split_config(argument: str) -> list[str]:
    return ["--config", argument.removeprefix("--config=")] if argument.startswith("--config=") else [argument]


def _values_of(path: Path) -> Callable[[App, tuple[str, ...], ArgumentCollection], None]:
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--config {path}: {error}") from error

    def fill(_app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        options = _by_field(arguments)
        of_a_job = _by_field(app["encode"].assemble_argument_collection())
        for name, value in values.items():
            if name not in options and name in of_a_job:
                continue  # one file serves all commands on a job
            if name not in options:
                raise UsageError(f"{path}: unknown option {name!r}{nearest(name, list(options))}")
            if not options[name].tokens:
                options[name].append(Token(keyword=name, value=str(value), source=str(path)))

    return fill


def _by_field(arguments: ArgumentCollection) -> dict[str, Argument]:
    return {argument.name.removeprefix("--").replace("-", "_"): argument for argument in arguments}
