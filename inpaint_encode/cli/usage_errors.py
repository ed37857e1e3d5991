"""Errors in a command line: finds them, describes them, and suggests what was probably meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from cyclopts import CycloptsError, MissingArgumentError, UnusedCliTokensError
from pydantic import BaseModel, ValidationError

from inpaint_encode.errors import UsageError

from .commands import app

__all__ = ["describe_error", "suggestion", "validate_option_names", "validate_required"]

_SYNONYMS = {"rgb": "luma", "grey": "luma", "gray": "luma", "l": "luma", "a": "alpha", "rgba": "alpha"}
"""Other words for choices."""


def validate_option_names(tokens: list[str]) -> None:
    """Raise UsageError for a misspelled option, which would otherwise be reported as a missing one."""
    if not _has_command(tokens):
        return
    known = {name for option in app[tokens[0]].assemble_argument_collection() for name in option.names}
    known |= {"--help", "--help-all", "--config", "--version"}
    for name in (token.partition("=")[0] for token in tokens if token.startswith("--")):
        if name not in known:
            raise UsageError(f"unknown option {name}{suggestion(name, sorted(known))}")


def validate_required(tokens: list[str], configured: set[str]) -> None:
    """Raise UsageError with all missing options, and with the other errors of the command line.

    Args:
        tokens: the command line without ``--config``.
        configured: names of the options that the file of ``--config`` contains.
    """
    if not _has_command(tokens):
        return
    given = {token.partition("=")[0] for token in tokens} | configured
    options = app[tokens[0]].assemble_argument_collection()
    required = [one.name for one in options if one.required and one.field_info.is_keyword_only]
    missing = [name for name in required if name.startswith("--") and name not in given]
    if not missing:
        return
    others = ""
    try:
        app.parse_args([*tokens, *(f"{name}=x" for name in missing)], print_error=False, exit_on_error=False)
    except CycloptsError as error:
        others = f"; {describe_error(error)}".removesuffix(f"; {_see_help(tokens[0])}")
    raise UsageError(f"{tokens[0]} needs {' and '.join(missing)}{others}; {_see_help(tokens[0])}")


def _has_command(tokens: list[str]) -> bool:
    return bool(tokens) and not tokens[0].startswith("-") and tokens[0] in app


def describe_error(error: CycloptsError) -> str:
    """Return what is wrong with a command line, with the names of its options."""
    command = " ".join(error.command_chain or ())
    if isinstance(error, UnusedCliTokensError):
        return f"{command} has unexpected arguments: {' '.join(error.unused_tokens or ())}; {_see_help(command)}"
    if isinstance(error, MissingArgumentError) and error.argument:
        return f"{_describe_missing(error, command)}; {_see_help(command)}"
    cause = error.__cause__
    return _describe_validation(cause) if isinstance(cause, ValidationError) else str(error)


def _describe_missing(error: MissingArgumentError, command: str) -> str:
    assert error.argument
    if error.keyword:
        return f"{error.keyword} needs a value"
    settings = error.argument.hint
    if issubclass(settings, BaseModel):  # the command has no arguments: its settings say what they need
        try:
            settings.model_validate({name: {} for name, one in settings.model_fields.items() if one.is_required()})
        except ValidationError as missing:
            return _describe_validation(missing)
    return f"{command} needs {error.argument.name.strip('-').upper()}"


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


def _allowed(error: Mapping[str, Any]) -> str:
    """Return the values that an option accepts, for a choice with the one nearest to what was given."""
    if error["type"] != "literal_error":
        context = error.get("ctx", {})
        return _ALLOWED[error["type"]].format(**context) if error["type"] in _ALLOWED else f"valid ({error['msg']})"
    choices = [choice for choice in re.findall(r"'([^']*)'", error["ctx"]["expected"]) if choice]
    given = str(error["input"]).lower()
    nearest = suggestion(_SYNONYMS.get(given, given), choices, cutoff=0.3) if len(choices) > 1 else ""
    return f"{', '.join(choices[:-1])}{' or ' if choices[1:] else ''}{choices[-1]}{nearest}"


def suggestion(name: str, names: list[str], cutoff: float = 0.6) -> str:
    """Return "; did you mean 'NAME'?" with the most similar of ``names``, or an empty string.

    Args:
        name: what was given.
        names: what is allowed.
        cutoff: least similarity, 0 to 1.
    """
    similar = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"; did you mean {similar[0]!r}?" if similar else ""
