"""``--config FILE``: options from a TOML file, for the flags that are not given."""

from __future__ import annotations

import tomllib
from pathlib import Path

from cyclopts import App, Argument, ArgumentCollection, Token

from inpaint_encode.errors import UsageError

from .commands import app
from .spelling import nearest

__all__ = ["configured", "without_config"]


def without_config(arguments: list[str]) -> list[str]:
    """Take ``--config FILE`` out of the arguments and let its values stand in for flags that are not given."""
    arguments = [part for argument in arguments for part in _split_config(argument)]
    if "--config" not in arguments:
        return arguments
    at = arguments.index("--config")
    if at + 1 == len(arguments):
        raise UsageError("--config needs a TOML file, such as --config job.toml")
    app.config = _Values(Path(arguments[at + 1]))
    return arguments[:at] + arguments[at + 2 :]


def _split_config(argument: str) -> list[str]:
    return ["--config", argument.removeprefix("--config=")] if argument.startswith("--config=") else [argument]


def configured() -> set[str]:
    """The flags whose values the file of this command line has."""
    return {flag for values in app.config or () if isinstance(values, _Values) for flag in values.flags}


class _Values:
    """What a file says, for the options that no flag says anything of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._values = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise UsageError(f"--config {path}: there is no such file") from None
        except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"--config {path}: {error}") from error

    @property
    def flags(self) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in self._values]

    def __call__(self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        options = _by_field(arguments)
        of_a_job = _by_field(app["encode"].assemble_argument_collection())
        for name, value in self._values.items():
            if name not in options and name in of_a_job:
                continue  # one file serves all commands on a job
            if name not in options:
                raise UsageError(f"{self._path}: unknown option {name!r}{nearest(name, list(options))}")
            if not options[name].tokens:
                options[name].append(Token(keyword=name, value=str(value), source=str(self._path)))


def _by_field(arguments: ArgumentCollection) -> dict[str, Argument]:
    return {argument.name.removeprefix("--").replace("-", "_"): argument for argument in arguments}
