"""Row groups of an output: an index of all, and a reader of one. A row group is what is fetched and shuffled."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError
from inpaint_encode.output.parquet import translate_errors
from inpaint_encode.stores import storage

from .output import DataFile, Output, RowBatch

_FOOTER_THREADS = 32


@dataclass(frozen=True)
class RowGroupIndex:
    """The non-empty row groups of an output in file order, as arrays with one element per row group.

    It is built from the footers of all files and takes about 100 bytes of memory per row group.
    """

    files: NDArray[np.int32]
    """Number of the group's file in `Output.files`."""
    groups: NDArray[np.int32]
    """Number of the group in its file."""
    ends: NDArray[np.int64]
    """Number of the output's rows up to the end of the group."""
    min_keys: pa.StringArray
    """Smallest key in byte order; null if the file has no statistics."""
    max_keys: pa.StringArray

    @classmethod
    def build(cls, output: Output) -> RowGroupIndex:
        """Read the footers of all files: one request of at most 64 KiB per file, 32 at a time.

        Raises:
            UsageError: a file has no column ``key``.
            PermissionError, OSError: the store's error.
        """
        with ThreadPoolExecutor(_FOOTER_THREADS) as pool:
            by_file = pool.map(lambda file: list(_groups_of(output.footer(file), file)), output.files)
            found = [(number, *group) for number, groups in enumerate(by_file) for group in groups]
        files, groups, sizes, min_keys, max_keys = zip(*found, strict=True) if found else [()] * 5
        return cls(
            files=np.array(files, np.int32),
            groups=np.array(groups, np.int32),
            ends=np.cumsum(sizes, dtype=np.int64),
            min_keys=pa.array(min_keys, pa.string()),
            max_keys=pa.array(max_keys, pa.string()),
        )

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of rows of each row group."""
        return np.diff(self.ends, prepend=0)

    def locate(self, row: int) -> tuple[int, int]:
        """Return the row group of a row and the row's number in it. Negative numbers count from the end.

        Raises:
            IndexError: ``row`` is out of range.
        """
        number = row + len(self) if row < 0 else row
        if not 0 <= number < len(self):
            raise IndexError(f"row {row:,} is out of range: the output has {len(self):,} rows")
        group = int(np.searchsorted(self.ends, number, side="right"))
        return group, number - int(self.ends[group] - self.sizes[group])

    def candidates(self, key: str) -> list[int]:
        """Return the row groups that may contain ``key``. In most outputs this is one, because keys are sorted."""
        inside = pc.and_kleene(pc.less_equal(self.min_keys, key), pc.greater_equal(self.max_keys, key))
        found: list[int] = np.flatnonzero(np.asarray(pc.fill_null(inside, True))).tolist()
        return found


def _groups_of(footer: pq.FileMetaData, file: DataFile) -> Iterator[tuple[int, int, str | None, str | None]]:
    """Yield number, number of rows, smallest key and largest key of each row group that has rows."""
    columns = [footer.schema.column(number).path for number in range(footer.num_columns)]
    if "key" not in columns:
        raise UsageError(f"{file.path} has no column key, so no encode job wrote it; move it out of the output")
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        if group.num_rows:  # a chunk whose pairs were all rejected has one empty group
            keys = group.column(columns.index("key")).statistics
            known = keys is not None and keys.has_min_max
            yield number, group.num_rows, keys.min if known else None, keys.max if known else None


@dataclass(frozen=True)
class RowGroupReader:
    """Reads row groups by their numbers in the index. Small and picklable, for use in workers."""

    output: Output
    columns: tuple[str, ...] | None = None
    """Columns to read; None reads all."""

    @cached_property
    def index(self) -> RowGroupIndex:
        """The output's index. It is built on first use and pickled with the reader."""
        return RowGroupIndex.build(self.output)

    def read(self, group: int) -> RowBatch:
        """Read a row group: one request if its columns are adjacent, and one if the file's footer is not cached.

        Raises:
            Changed: the file was replaced after the output was listed.
            JobFailed: the file is damaged.
            FileNotFoundError, PermissionError, OSError: the store's error.
        """
        return RowBatch(self._read(group, self.columns))

    def keys(self, group: int) -> pa.StringArray:
        """Read the keys of a row group, and no other column."""
        return self._read(group, ("key",)).column("key")

    def find(self, key: str) -> tuple[int, int] | None:
        """Return the row group of a row and the row's number in it; reads the keys of one group, rarely of more."""
        for group in self.index.candidates(key):
            if (row := pc.index(self.keys(group), key).as_py()) >= 0:
                return group, int(row)
        return None

    def _read(self, group: int, columns: tuple[str, ...] | None) -> pa.RecordBatch:
        file = self.output.files[self.index.files[group]]
        names = None if columns is None else list(columns)
        with translate_errors(storage.join(self.output.uri, file.path)), self.output.parquet(file) as parquet:
            table = parquet.read_row_group(int(self.index.groups[group]), columns=names, use_threads=False)
        (batch,) = (table if names is None else table.select(names)).combine_chunks().to_batches()
        return batch
