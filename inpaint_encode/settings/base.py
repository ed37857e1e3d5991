"""What all settings classes share: validation, sections of ``--help``, units and formatting of values."""

from __future__ import annotations

import re
from typing import Any

from cyclopts import Group, Parameter
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo


class Frozen(BaseModel):
    """Base of all settings: immutable; an unknown field is an error.

    Errors quote no values: these may be URIs with a login.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True, hide_input_in_errors=True)


def section(title: str, order: int) -> Parameter:
    """Return the decorator that makes a settings class a section of ``--help``."""
    return Parameter(name="*", group=Group(title, sort_key=order))


def unit(name: str, default: str | None = None) -> Parameter:
    """Return an annotation with the unit of an option's value, such as ``PIXELS``.

    Args:
        name: unit that ``--help`` shows after the option.
        default: text that ``--help`` shows instead of the default value.
    """
    return Parameter(metavar=name, show_default=default) if default else Parameter(metavar=name)


def matching(pattern: str, expected: str) -> AfterValidator:
    """Return an annotation that requires an option's value to match ``pattern``; ``expected`` is for the error."""

    def validate(value: str, info: ValidationInfo) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"--{str(info.field_name).replace('_', '-')} {value!r} must be {expected}")
        return value

    return AfterValidator(validate)


def format_value(value: Any) -> str:
    """Format a setting for people: off, none, 64 MiB, 64 million."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in (None, ""):
        return "none"
    if isinstance(value, int) and value >= 2**20:
        return f"{value / 2**20:g} MiB" if value % 2**20 == 0 else f"{value / 1e6:g} million"
    return f"{value:g}" if isinstance(value, float) else str(value)
