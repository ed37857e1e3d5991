"""Row groups of an output: an index of all, and a reader of one. A row group is what is fetched and shuffled."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError
from inpaint_encode.output.parquet import translate_errors
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import Changed

from .files import DataFiles
from .output import Output, Row, RowBatch

_NO_STATISTICS = np.empty(0, np.int64), pa.array([], pa.string()), pa.array([], pa.string())


@dataclass(frozen=True)
class RowGroupIndex:
    """The non-empty row groups of an output in file order, as arrays with one element per row group.

    It comes from the output's index, and from the footers of files that are not in it. It takes 16 bytes of memory per
    row group, and 100 bytes if the group's file is not in the index.
    """

    files: NDArray[np.int32]
    """Number of the group's file in `Output.files`."""
    groups: NDArray[np.int32]
    """Number of the group in its file."""
    ends: NDArray[np.int64]
    """Number of the output's rows up to the end of the group."""
    not_indexed: NDArray[np.int64]
    """Row groups of files that are not in the output's index; the next two arrays have one element for each."""
    min_keys: pa.StringArray
    """Smallest key in byte order; null if the file has no statistics."""
    max_keys: pa.StringArray

    @classmethod
    def build(cls, output: Output) -> RowGroupIndex:
        """Read the footers of the files that are not in the output's index: one request per file, 32 at a time.

        Raises:
            UsageError: a file has no column ``key``.
            PermissionError, OSError: the store's error.
        """
        if isinstance(output.files, DataFiles):
            indexed = output.files.group_rows
        else:
            indexed = pa.nulls(len(output.files), pa.list_(pa.int32()))
        counts = pc.fill_null(pc.list_value_length(indexed), 0).to_numpy()
        files = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        groups = np.arange(len(files), dtype=np.int32)
        groups -= np.repeat((np.cumsum(counts) - counts).astype(np.int32), counts)
        sizes = indexed.flatten().to_numpy()
        kept = np.flatnonzero(sizes) if not sizes.all() else slice(None)
        one = cls(files[kept], groups[kept], np.cumsum(sizes[kept], dtype=np.int64), *_NO_STATISTICS)
        others = np.flatnonzero(np.asarray(indexed.is_null()))
        return one.merged(cls._of_footers(output, others)) if len(others) else one

    @classmethod
    def _of_footers(cls, output: Output, numbers: NDArray[np.int64]) -> RowGroupIndex:
        """Return the index of these files of the output."""
        read = map_concurrently(lambda number: _groups_of(output, int(number)), numbers)
        found = [group for of_file in read for group in of_file]
        files, groups, sizes, min_keys, max_keys = zip(*found, strict=True) if found else [()] * 5
        return cls(
            files=np.array(files, np.int32),
            groups=np.array(groups, np.int32),
            ends=np.cumsum(sizes, dtype=np.int64),
            not_indexed=np.arange(len(files)),
            min_keys=pa.array(min_keys, pa.string()),
            max_keys=pa.array(max_keys, pa.string()),
        )

    def merged(self, other: RowGroupIndex) -> RowGroupIndex:
        """Return the index with the row groups of ``other``, an index of other files that are not indexed."""
        files = np.concatenate([self.files, other.files])
        order = np.argsort(files, kind="stable")
        return RowGroupIndex(
            files=files[order],
            groups=np.concatenate([self.groups, other.groups])[order],
            ends=np.cumsum(np.concatenate([self.sizes, other.sizes])[order], dtype=np.int64),
            not_indexed=np.flatnonzero(order >= len(self.files)),
            min_keys=other.min_keys,
            max_keys=other.max_keys,
        )

    def __len__(self) -> int:
        """Number of rows."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def sizes(self) -> NDArray[np.int32]:
        """Number of rows of each row group: a new array of 4 bytes for each; no larger array is made."""
        sizes = np.empty(len(self.ends), np.int32)
        np.subtract(self.ends[1:], self.ends[:-1], out=sizes[1:], casting="unsafe")
        sizes[:1] = self.ends[:1]
        return sizes

    def sizes_of(self, groups: slice) -> list[int]:
        """Return the number of rows of consecutive row groups."""
        before = int(self.ends[groups.start - 1]) if groups.start else 0
        sizes: list[int] = np.diff(self.ends[groups], prepend=before).tolist()
        return sizes

    def locate(self, row: int) -> tuple[int, int]:
        """Return the row group of a row and the row's number in it. Negative numbers count from the end.

        Raises:
            IndexError: ``row`` is out of range.
        """
        number = row + len(self) if row < 0 else row
        if not 0 <= number < len(self):
            raise IndexError(f"row {row:,} is out of range: the output has {len(self):,} rows")
        group = int(np.searchsorted(self.ends, number, side="right"))
        return group, number - (int(self.ends[group - 1]) if group else 0)

    def groups_of_file(self, file: int) -> slice:
        """Return the row groups of a file."""
        start, end = (int(np.searchsorted(self.files, file, side)) for side in ("left", "right"))
        return slice(start, end)

    def candidates(self, key: str) -> list[int]:
        """Return the row groups that may contain ``key``, of the files that are not in the output's index."""
        inside = pc.and_kleene(pc.less_equal(self.min_keys, key), pc.greater_equal(self.max_keys, key))
        found: list[int] = self.not_indexed[np.flatnonzero(np.asarray(pc.fill_null(inside, True)))].tolist()
        return found


def _groups_of(output: Output, number: int) -> list[tuple[int, int, int, str | None, str | None]]:
    """Return number of the file, and number, rows, smallest key and largest key of its row groups that have rows."""
    file = output.files[number]
    footer = output.footer(file)
    columns = [footer.schema.column(at).path for at in range(footer.num_columns)]
    if "key" not in columns:
        raise UsageError(f"{file.path} has no column key, so no encode job wrote it; move it out of the output")
    found = []
    for at in range(footer.num_row_groups):
        group = footer.row_group(at)
        if group.num_rows:  # a chunk whose pairs were all rejected has one empty group
            keys = group.column(columns.index("key")).statistics
            with translate_errors(storage.join(output.uri, file.path)):
                known = keys is not None and keys.has_min_max and isinstance(keys.min, str)
                limits = (keys.min, keys.max) if known else (None, None)
            found.append((number, at, group.num_rows, *limits))
    return found


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

    @cached_property
    def listed(self) -> RowGroupReader:
        """A reader of the same output that does not use its index; the output is listed."""
        return self if self.output.keys is None else RowGroupReader(Output.list(self.output.uri), self.columns)

    def read(self, group: int) -> RowBatch:
        """Read a row group: one request if its columns are adjacent, and one if the file's footer is not cached.

        Raises:
            Changed: the file was replaced after the output was opened.
            JobFailed: the file is damaged.
            FileNotFoundError, PermissionError, OSError: the store's error.
        """
        batch = self._read(group, self.columns)
        with translate_errors(storage.join(self.output.uri, self.output.files[self.index.files[group]].path)):
            return RowBatch(batch)

    def keys(self, group: int) -> pa.StringArray:
        """Read the keys of a row group, and no other column."""
        return self._read(group, ("key",)).column("key")

    def row(self, key: str) -> Row | None:
        """Return the row with a key, or None: a request for the index, one for the footer, and one for the row group.

        Without an index, the keys of a row group are read before the others of its columns.

        Raises:
            Changed, JobFailed, FileNotFoundError, PermissionError, OSError: as `read`.
        """
        if (groups := self._indexed_groups(key)) is None:
            return self.listed.row(key)
        columns = None if self.columns is None else tuple(dict.fromkeys(("key", *self.columns)))
        for group in groups:
            batch = self._read(group, columns)
            if (at := pc.index(batch.column("key"), key).as_py()) >= 0:
                found = batch.slice(at, 1)
                return RowBatch(found if self.columns is None else found.select(list(self.columns)))[0]
        place = self._find(self.index.candidates(key), key)
        return self.read(place[0])[place[1]] if place else None

    def find(self, key: str) -> tuple[int, int] | None:
        """Return the row group of a row and the row's number in it; reads the keys of one group, rarely of more.

        Returns:
            None if the key is not found; if the index is damaged, `listed` may still find it.
        """
        return self._find([*(self._indexed_groups(key) or ()), *self.index.candidates(key)], key)

    def _find(self, groups: Iterable[int], key: str) -> tuple[int, int] | None:
        for group in groups:
            if (row := pc.index(self.keys(group), key).as_py()) >= 0:
                return group, int(row)
        return None

    def _indexed_groups(self, key: str) -> list[int] | None:
        """Return the row groups that may have a key according to the output's index; None if it is damaged."""
        found = self.output.keys.find(key) if self.output.keys else []
        if found is None:
            return None
        places = ((self.index.groups_of_file(file), group) for file, group in found)
        groups = [of_file.start + int(np.searchsorted(self.index.groups[of_file], group)) for of_file, group in places]
        return groups if all(group < len(self.index.files) for group in groups) else None

    def _read(self, group: int, columns: tuple[str, ...] | None) -> pa.RecordBatch:
        number = int(self.index.files[group])
        file = self.output.files[number]
        where = storage.join(self.output.uri, file.path)
        names = None if columns is None else list(columns)
        with translate_errors(where), self.output.parquet(file) as parquet:
            rows = [parquet.metadata.row_group(at).num_rows for at in range(parquet.metadata.num_row_groups)]
            if [size for size in rows if size] != self.index.sizes_of(self.index.groups_of_file(number)):
                raise Changed(errno.ESTALE, f"{where} has changed; open the output again")
            if "key" not in parquet.schema.names:
                raise ValueError("it has no column key")
            table = parquet.read_row_group(int(self.index.groups[group]), columns=names, use_threads=False)
        (batch,) = (table if names is None else table.select(names)).combine_chunks().to_batches()
        return batch
