"""What a check has found, and what to do about it."""

from __future__ import annotations

from typing import Literal, NamedTuple

__all__ = ["Finding", "ok", "problem", "warning"]


class Finding(NamedTuple):
    """One line; small and plain, so that a worker can send it."""

    level: Literal["ok", "warning", "problem"]
    """A job will fail, or its guarantees with it, for a problem alone."""
    check: str
    found: str
    """With numbers and their units."""
    advice: str = ""
    """What to do; never empty but for what is ok."""


def ok(check: str, found: str) -> Finding:
    """Nothing is to be done."""
    return Finding("ok", check, found)


def warning(check: str, found: str, advice: str) -> Finding:
    """A job will run, though not as well as it might, or not everywhere."""
    return Finding("warning", check, found, advice)


def problem(check: str, found: str, advice: str) -> Finding:
    """A job will fail, or cannot keep its promises."""
    return Finding("problem", check, found, advice)
