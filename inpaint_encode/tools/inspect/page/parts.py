"""Parts of the page as plain values: sections with sentences, charts and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from inpaint_encode.tools.inspect.charts import Chart

__all__ = ["Cell", "Section", "Table", "count_files", "duration", "number_cell", "values_table"]


class Cell(NamedTuple):
    """A cell of a table."""

    text: str = ""
    sort: float | None = None
    """Sort key; None to sort by the text."""
    share: float | None = None
    """Length of a bar below the text, 0 to 1."""
    counts: Sequence[int] | None = None
    """Histogram that is drawn in place of the text."""


class Table(NamedTuple):
    """A sortable table."""

    name: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass
class Section:
    """A section of the page."""

    sentences: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    collapsed: list[Table] = field(default_factory=list)
    """Tables that are closed at first."""


def values_table(name: str, values: Mapping[str, Any]) -> Table:
    """Return a table with a row for each name and its value."""
    return Table(name, ["name", "value"], [[Cell(one), Cell(_plain(value))] for one, value in values.items()])


def _plain(value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    return str(value)


def number_cell(value: float, digits: int = 0) -> Cell:
    """Return a cell with so many decimals."""
    return Cell(f"{value:,.{digits}f}", value)


def count_files(count: int) -> str:
    """Return "1 file" or "2 files"."""
    return "1 file" if count == 1 else f"{count:,} files"


def duration(seconds: float) -> str:
    """Return seconds in the largest unit with a value of at least 2."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.1f} s"
