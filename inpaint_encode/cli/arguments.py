"""The arguments of a command: options from the file of ``--config``, and errors that say what an option accepts."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from cyclopts import App, Argument, ArgumentCollection, CycloptsError, MissingArgumentError, Token, UnusedCliTokensError
from pydantic import BaseModel, ValidationError

from inpaint_encode.errors import UsageError

from .commands import app

_MAX_CONFIG_BYTES = 2**20

_SYNONYMS = {"rgb": "luma", "grey": "luma", "gray": "luma", "l": "luma", "a": "alpha", "rgba": "alpha"}
"""Other words for choices."""

_ALLOWED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "bool_parsing": "true or false",
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "greater than {gt:g}",
    "less_than_equal": "at most {le:g}",
}
"""Allowed values by pydantic's types of errors."""


def apply_config(arguments: list[str]) -> tuple[list[str], set[str]]:
    """Let the app read the file of ``--config FILE``.

    Returns:
        The other arguments, which override the file, and the options in the file, such as ``--grow-mask-by``.

    Raises:
        UsageError: the file is missing or not TOML.
    """
    parts = [part for one in arguments for part in (one.split("=", 1) if one.startswith("--config=") else [one])]
    if "--config" not in parts:
        return parts, set()
    at = parts.index("--config")
    if at + 1 == len(parts):
        raise UsageError("--config needs a TOML file, such as --config job.toml")
    path = Path(parts[at + 1])
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_CONFIG_BYTES + 1)
        if len(data) > _MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {_MAX_CONFIG_BYTES:,} bytes")
        values = {name: str(value) for name, value in tomllib.loads(data.decode()).items()}
    except FileNotFoundError:
        raise UsageError(f"--config {path}: the file does not exist") from None
    except RecursionError:
        raise UsageError(f"--config {path}: the file cannot be read as TOML (its values are nested too deep)") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"--config {path}: the file cannot be read as TOML ({error})") from error
    app.config = partial(_set_options, path, values)
    return parts[:at] + parts[at + 2 :], {f"--{name.replace('_', '-')}" for name in values}


def _set_options(
    path: Path, values: Mapping[str, str], _app: App, _commands: tuple[str, ...], arguments: ArgumentCollection
) -> None:
    """Set the options that the command line does not give; cyclopts calls this with its arguments."""
    options = _by_field(arguments)
    job_options = _by_field(app["encode"].assemble_argument_collection())
    for name, value in values.items():
        if name not in options and name in job_options:
            continue  # all commands accept the file of an encode job
        if name not in options:
            raise UsageError(f"{path}: unknown option {name!r}{_suggestion(name, list(options))}")
        if not options[name].tokens:
            options[name].append(Token(keyword=name, value=value, source=str(path)))


def _by_field(arguments: ArgumentCollection) -> dict[str, Argument]:
    return {argument.name.removeprefix("--").replace("-", "_"): argument for argument in arguments}


def validate_options(tokens: list[str], configured: set[str]) -> None:
    """Check that the options of a command exist, and that none is missing.

    Args:
        tokens: the command line without ``--config``.
        configured: names of the options that the file of ``--config`` contains.

    Raises:
        UsageError: an option is misspelled; or options are missing, which are named with the other errors.
    """
    if not tokens or tokens[0].startswith("-") or tokens[0] not in app:
        return
    options = app[tokens[0]].assemble_argument_collection()
    known = {name for option in options for name in option.names} | {"--help", "--help-all", "--config", "--version"}
    given = [token.partition("=")[0] for token in tokens]
    for name in given:
        if name.startswith("--") and name not in known:
            raise UsageError(f"unknown option {name}{_suggestion(name, sorted(known))}")
    required = [one.name for one in options if one.required and one.field_info.is_keyword_only]
    missing = [name for name in required if name.startswith("--") and name not in {*given, *configured}]
    if not missing:
        return
    needs, others = f"{tokens[0]} needs ", ""
    try:
        app.parse_args([*tokens, *(f"{name}=x" for name in missing)], print_error=False, exit_on_error=False)
    except CycloptsError as error:
        others = describe_error(error).removesuffix(f"; {_see_help(tokens[0])}")
    if others.startswith(needs):  # an argument is missing too
        missing, others = [others.removeprefix(needs), *missing], ""
    *first, last = missing
    needs += f"{', '.join(first)} and {last}" if first else last
    raise UsageError("; ".join(filter(None, [needs, others, _see_help(tokens[0])])))


def describe_error(error: CycloptsError) -> str:
    """Return what is wrong with a command line, with the names of its options."""
    command, cause = " ".join(error.command_chain or ()), error.__cause__
    if isinstance(error, UnusedCliTokensError):
        return f"{command} has unexpected arguments: {' '.join(error.unused_tokens or ())}; {_see_help(command)}"
    if not isinstance(error, MissingArgumentError) or not error.argument:
        return _describe_validation(cause) if isinstance(cause, ValidationError) else str(error)
    settings, needs = error.argument.hint, f"{command} needs {error.argument.name.strip('-').upper()}"
    if error.keyword:
        needs = f"{error.keyword} needs a value"
    elif issubclass(settings, BaseModel):  # the command has no arguments: its settings say what they need
        try:
            settings.model_validate({name: {} for name, one in settings.model_fields.items() if one.is_required()})
        except ValidationError as missing:
            needs = _describe_validation(missing)
    return f"{needs}; {_see_help(command)}"


def _see_help(command: str) -> str:
    return f"see `inpaint-encode {command} --help` for an example"


def _describe_validation(error: ValidationError) -> str:
    """Return one phrase for each option that is wrong."""
    phrases: list[str] = []
    allowed: dict[str, list[str]] = {}  # a union has an error for each of its types
    for one in error.errors():
        if one["type"] == "value_error":
            phrases.append(one["msg"].removeprefix("Value error, "))
            continue
        field = next(str(part) for part in reversed(one["loc"]) if re.fullmatch(r"[a-z]\w*", str(part)))
        allowed.setdefault(f"--{field.replace('_', '-')} {one['input']}", []).append(_allowed(one))
    return "; ".join(phrases + [f"{option} must be {' or '.join(values)}" for option, values in allowed.items()])


def _allowed(error: Mapping[str, Any]) -> str:
    """Return the values that an option accepts, for a choice with the one nearest to what was given."""
    if error["type"] != "literal_error":
        context = error.get("ctx", {})
        return _ALLOWED[error["type"]].format(**context) if error["type"] in _ALLOWED else f"valid ({error['msg']})"
    choices = [choice for choice in re.findall(r"'([^']*)'", error["ctx"]["expected"]) if choice]
    given = str(error["input"]).lower()
    nearest = _suggestion(_SYNONYMS.get(given, given), choices, cutoff=0.3) if len(choices) > 1 else ""
    return f"{', '.join(choices[:-1])}{' or ' if choices[1:] else ''}{choices[-1]}{nearest}"


def _suggestion(name: str, names: list[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'NAME'?" with the most similar of ``names``, or an empty string.

    Args:
        name: what was given.
        names: what is allowed.
        cutoff: least similarity, 0 to 1.
    """
    similar = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"; did you mean {similar[0]!r}?" if similar else ""
