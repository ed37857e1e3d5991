"""What was typed wrong, and what was probably meant."""

from __future__ import annotations

import difflib
import re
from typing import Any

from pydantic import ValidationError

from inpaint_encode.errors import UsageError

from .commands import app

__all__ = ["nearest", "refuse_unknown", "sentences"]

_MEANT = {"rgb": "luma", "grey": "luma", "gray": "luma", "l": "luma", "a": "alpha", "rgba": "alpha"}
"""Words for a choice that is spelled otherwise."""


def refuse_unknown(tokens: list[str]) -> None:
    """Before options are read: a misspelled one is what is wrong, and not that another is missing without it."""
    if not tokens or tokens[0].startswith("-") or tokens[0] not in app:
        return
    known = {name for option in app[tokens[0]].assemble_argument_collection() for name in option.names}
    known |= {"--help", "--version"}
    for name in (token.partition("=")[0] for token in tokens if token.startswith("--")):
        if name not in known:
            raise UsageError(f"unknown option {name}{nearest(name, sorted(known))}")


def sentences(error: ValidationError) -> str:
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
