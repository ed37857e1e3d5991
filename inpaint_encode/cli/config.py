"""``--config FILE``: reads options from a TOML file."""

from __future__ import annotations

import tomllib
from pathlib import Path

from cyclopts import App, Argument, ArgumentCollection, Token

from inpaint_encode.errors import UsageError

from .commands import app
from .usage_errors import suggestion

__all__ = ["apply_config", "config_options"]


def apply_config(arguments: list[str]) -> list[str]:
    """Let the app read the file of ``--config FILE``, and return the other arguments, which override the file.

    Raises:
        UsageError: the file is missing or not TOML.
    """
    parts = [part for one in arguments for part in (one.split("=", 1) if one.startswith("--config=") else [one])]
    if "--config" not in parts:
        return parts
    at = parts.index("--config")
    if at + 1 == len(parts):
        raise UsageError("--config needs a TOML file, such as --config job.toml")
    app.config = _ConfigFile(Path(parts[at + 1]))
    return parts[:at] + parts[at + 2 :]


def config_options() -> set[str]:
    """Return the names of the options in this command line's file, such as ``--grow-mask-by``."""
    return {name for values in app.config or () if isinstance(values, _ConfigFile) for name in values.options}


class _ConfigFile:
    """Values of a TOML file, for the options that the command line does not give."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._values = tomllib.loads(path.read_text())
        except FileNotFoundError:
            raise UsageError(f"--config {path}: the file does not exist") from None
        except (OSError, UnicodeError, tomllib.TOMLDecodeError) as error:
            raise UsageError(f"--config {path}: the file cannot be read as TOML ({error})") from error

    @property
    def options(self) -> list[str]:
        return [f"--{name.replace('_', '-')}" for name in self._values]

    def __call__(self, _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        options = _by_field(arguments)
        job_options = _by_field(app["encode"].assemble_argument_collection())
        for name, value in self._values.items():
            if name not in options and name in job_options:
                continue  # all commands accept the file of an encode job
            if name not in options:
                raise UsageError(f"{self._path}: unknown option {name!r}{suggestion(name, list(options))}")
            if not options[name].tokens:
                options[name].append(Token(keyword=name, value=str(value), source=str(self._path)))


def _by_field(arguments: ArgumentCollection) -> dict[str, Argument]:
    return {argument.name.removeprefix("--").replace("-", "_"): argument for argument in arguments}
