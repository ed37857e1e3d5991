"""What all settings are: frozen, validated, and shown by ``--help`` in sections."""

from __future__ import annotations

from typing import Any

from cyclopts import Group, Parameter
from pydantic import BaseModel, ConfigDict

__all__ = ["Frozen", "in_words", "measured_in", "section"]


class Frozen(BaseModel):
    """Values that nobody changes; an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


def section(title: str, order: int) -> Parameter:
    """Let a class of settings be a section of ``--help``."""
    return Parameter(name="*", group=Group(title, sort_key=order))


def measured_in(unit: str, default: str | None = None) -> Parameter:
    """Say in ``--help`` what an option's value is, such as ``PIXELS``, and what its default means if that is a code."""
    return Parameter(metavar=unit, show_default=default) if default else Parameter(metavar=unit)


def in_words(default: Any) -> str:
    """Spell a default as a person would: off, none, 64 MiB, 64 million."""
    if isinstance(default, bool):
        return "on" if default else "off"
    if default in (None, ""):
        return "none"
    if isinstance(default, int) and default >= 2**20:
        return f"{default / 2**20:g} MiB" if default % 2**20 == 0 else f"{default / 1e6:g} million"
    return f"{default:g}" if isinstance(default, float) else str(default)
