"""What was typed wrong, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from typing import Any

from cyclopts import Argument, CycloptsError, MissingArgumentError, UnusedCliTokensError
from pydantic import BaseModel, ValidationError

from inpaint_encode.errors import UsageError

from .commands import app

__all__ = ["explained", "nearest", "refuse_incomplete", "refuse_unknown"]

_MEANT = {"rgb": "luma", "grey": "luma", "gray": "luma", "l": "luma", "a": "alpha", "rgba": "alpha"}
"""Words for a choice that is spelled otherwise."""


def refuse_unknown(tokens: list[str]) -> None:
    """Before options are read: a misspelled one is what is wrong, and not that another is missing without it."""
    if not tokens or tokens[0].startswith("-") or tokens[0] not in app:
        return
    known = {name for option in app[tokens[0]].assemble_argument_collection() for name in option.names}
    known |= {"--help", "--help-all", "--config", "--version"}
    for name in (token.partition("=")[0] for token in tokens if token.startswith("--")):
        if name not in known:
            raise UsageError(f"unknown option {name}{nearest(name, sorted(known))}")


def refuse_incomplete(tokens: list[str], configured: set[str]) -> None:
    """Name every option that is missing, and what else is wrong, and not the first of them alone.

    Args:
        tokens: the command line without its file of options.
        configured: flags that the file stands in for.
    """
    if not tokens or tokens[0].startswith("-") or tokens[0] not in app:
        return
    given = {token.partition("=")[0] for token in tokens} | configured
    options = app[tokens[0]].assemble_argument_collection()
    needed = [one.name for one in options if one.required and one.field_info.is_keyword_only]
    lacks = [name for name in needed if name.startswith("--") and name not in given]
    if not lacks:
        return
    also = ""
    try:
        app.parse_args([*tokens, *(f"{name}=x" for name in lacks)], print_error=False, exit_on_error=False)
    except CycloptsError as error:
        also = f"; {explained(error)}".removesuffix(f"; {_see_help(tokens[0])}")
    raise UsageError(f"{tokens[0]} needs {' and '.join(lacks)}{also}; {_see_help(tokens[0])}")


def explained(error: CycloptsError) -> str:
    """What a command line was refused for, in the words of its options."""
    command = " ".join(error.command_chain or ())
    if isinstance(error, MissingArgumentError) and error.argument:
        return f"{_missing(error, command, error.argument)}; {_see_help(command)}"
    if isinstance(error, UnusedCliTokensError):
        return f"{command} does not know what to do with {' '.join(error.unused_tokens or ())}; {_see_help(command)}"
    cause = error.__cause__
    return _sentences(cause) if isinstance(cause, ValidationError) else str(error)


def _missing(error: MissingArgumentError, command: str, argument: Argument) -> str:
    if error.keyword:
        return f"{error.keyword} needs a value"
    if issubclass(argument.hint, BaseModel):  # a command that was told nothing
        try:
            argument.hint.model_validate(
                {name: {} for name, one in argument.hint.model_fields.items() if one.is_required()}
            )
        except ValidationError as nothing:
            return _sentences(nothing)
    return f"{command} needs {argument.name.strip('-').upper()}"


def _see_help(command: str) -> str:
    return f"`inpaint-encode {command} --help` has an example"


def _sentences(error: ValidationError) -> str:
    """What pydantic found, an option at a time, in the words of the command line."""
    return "; ".join(
        one["msg"].removeprefix("Value error, ")
        if one["type"] == "value_error"
        else f"--{str(one['loc'][-1]).replace('_', '-')} {one['input']}: {one['msg']}{_nearest_choice(one)}"
        for one in error.errors()
    )


def _nearest_choice(one: Any) -> str:
    """Of an option that takes one of some words, the word nearest to what was given."""
    choices = re.findall(r"'([^']+)'", one["ctx"]["expected"]) if one["type"] == "literal_error" else []
    given = str(one["input"]).lower()
    meant = _MEANT.get(given, given)
    return nearest(meant, choices, cutoff=0.3)


def nearest(name: str, names: list[str], cutoff: float = 0.6) -> str:
    """Return a half-sentence that names the nearest of ``names``, empty if none is near."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""
