"""Row groups of an output, each read by itself: the unit in which rows are fetched, shared and shuffled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.output.parquet import damage_named
from inpaint_encode.stores import storage

from .columns import Rows
from .index import Index
from .output import Output

__all__ = ["Groups"]


@dataclass(frozen=True)
class Groups:
    """Reads row groups by their numbers in the index; small and plain, so that every worker can carry it."""

    output: Output
    columns: tuple[str, ...] | None = None
    """Those that are read; None is all of them."""

    @cached_property
    def index(self) -> Index:
        """Where rows are; made when it is first needed, and carried along from there on."""
        return Index.of(self.output)

    def read(self, group: int) -> Rows:
        """Read a row group: one request for its columns, if they lie side by side, and one for the file's footer.

        Raises:
            Changed: its file is not the one any more that was listed.
            JobFailed: its file is damaged.
            FileNotFoundError, PermissionError, OSError: by what the store said.
        """
        return Rows(self._read(group, self.columns))

    def keys(self, group: int) -> pa.StringArray:
        """Read the keys of a row group alone."""
        return self._read(group, ("key",)).column("key")

    def find(self, key: str) -> tuple[int, int] | None:
        """Return the row group of a row and its number there; the keys of one group are read, rarely of more."""
        for group in self.index.candidates(key):
            if (row := pc.index(self.keys(group), key).as_py()) >= 0:
                return group, int(row)
        return None

    def _read(self, group: int, columns: tuple[str, ...] | None) -> pa.RecordBatch:
        file = self.output.files[self.index.files[group]]
        with damage_named(storage.join(self.output.uri, file.path)), self.output.parquet(file) as parquet:
            wanted = None if columns is None else list(columns)
            table = parquet.read_row_group(int(self.index.groups[group]), columns=wanted, use_threads=False)
        (batch,) = (table if wanted is None else table.select(wanted)).combine_chunks().to_batches()
        return batch
