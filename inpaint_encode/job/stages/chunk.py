"""A chunk between two stages: its rows, what it has cost so far, and whether anything is wrong with it as a whole."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from inpaint_encode.job.transfer import fold, unfold
from inpaint_encode.schema import EXTRA_COLUMNS, WORK
from inpaint_encode.stores import storage

__all__ = ["Chunk", "Counters", "Row", "work_of"]

Row = dict[str, Any]
"""Plain values by column; arrays in binary columns."""


class Counters:
    """Seconds by stage and counts, carried along with the chunk and summed in the report."""

    def __init__(self, before: Iterable[tuple[str, float]] = ()) -> None:
        self._values: defaultdict[str, float] = defaultdict(float, before)
        self._retries = storage.retries()

    def add(self, name: str, value: float) -> None:
        """Add to a counter; those of seconds end in ``_s``."""
        self._values[name] += value

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall seconds of the block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(f"{stage}_s", time.perf_counter() - start)

    def items(self) -> list[tuple[str, float]]:
        """All of them, and the requests that were tried again since the chunk came to this process."""
        retries = storage.retries()
        self.add("retries", retries - self._retries)
        self._retries = retries
        return list(self._values.items())


@dataclass(frozen=True)
class Chunk:
    """A chunk as a stage sees it."""

    work: Row
    """A row of `schema.WORK`."""
    table: pa.Table
    counters: Counters
    fatal: str | None = None
    extra_columns: pa.Array | None = None
    """`schema.EXTRA_COLUMNS` of the rows of ``table``, if the source has other columns. No stage reads it."""

    @classmethod
    def unfolded(cls, row: pa.Table, schema: pa.Schema) -> Chunk:
        """Take a chunk of ``schema`` out of one Ray row."""
        counters = Counters(row["counters"][0].as_py())
        own = row[EXTRA_COLUMNS].combine_chunks().flatten() if EXTRA_COLUMNS in row.column_names else None
        return cls(work_of(row), unfold(row, schema), counters, row["fatal"][0].as_py(), own)

    def folded(self, table: pa.Table, fatal: str | None = None) -> pa.Table:
        """Put the chunk, with ``table`` in the place of its rows, into one Ray row."""
        return fold(self.whole(table), self.work, counters=self.counters.items(), fatal=fatal or self.fatal)

    def whole(self, table: pa.Table) -> pa.Table:
        """``table``, of as many rows as the chunk's own, and the `extra_columns`."""
        return table if self.extra_columns is None else table.append_column(EXTRA_COLUMNS, self.extra_columns)


def work_of(row: pa.Table) -> Row:
    """The `schema.WORK` columns of one Ray row."""
    return {name: row[name][0].as_py() for name in WORK.names}
