"""What sections of the page are made of: sentences, charts and tables, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from markupsafe import Markup

__all__ = ["Cell", "Section", "Table", "Tile", "count_cell", "files_of", "pairs_table", "share_cell", "time_of"]


class Cell(NamedTuple):
    """What stands in a table, and what it is sorted by."""

    text: str | Markup
    sort: float | None = None
    """A number, or None to sort by the text."""
    share: float | None = None
    """A bar of this length, 0 to 1, is drawn beneath."""


class Table(NamedTuple):
    """A table that its reader can sort."""

    name: str
    columns: list[str]
    rows: list[list[Cell]]


class Tile(NamedTuple):
    """One figure that is read first."""

    figure: str
    what: str
    more: str = ""


@dataclass
class Section:
    """Sentences, charts and tables, in this order."""

    says: list[str] = field(default_factory=list)
    charts: list[tuple[str, Markup, str]] = field(default_factory=list)
    """Title, chart, and of how many rows it is."""
    tables: list[Table] = field(default_factory=list)
    more: list[Table] = field(default_factory=list)
    """Tables that are folded away at first."""


def pairs_table(name: str, values: Mapping[str, Any]) -> Table:
    """A table of names and what they are, in words."""
    return Table(name, ["name", "value"], [[Cell(one), Cell(_plain(value))] for one, value in values.items()])


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return str(value)


def files_of(count: int) -> str:
    """So many files, in words."""
    return "1 file" if count == 1 else f"{count:,} files"


def count_cell(value: float) -> Cell:
    """A whole number."""
    return Cell(f"{value:,.0f}", value)


def share_cell(value: float, largest: float) -> Cell:
    """A percentage, and a bar which is full for the ``largest`` of the column."""
    return Cell(f"{value:.1%}", value, value / largest)


def time_of(seconds: float) -> str:
    """Seconds in words, in the largest unit that leaves two digits."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.1f} s"
