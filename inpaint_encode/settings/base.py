"""What all settings are: frozen, validated, and shown by ``--help`` in sections."""

from __future__ import annotations

from cyclopts import Group, Parameter
from pydantic import BaseModel, ConfigDict

__all__ = ["Frozen", "section"]


class Frozen(BaseModel):
    """Values that nobody changes; an unknown one is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


def section(title: str, order: int) -> Parameter:
    """Let a class of settings be a section of ``--help``."""
    return Parameter(name="*", group=Group(title, sort_key=order))
