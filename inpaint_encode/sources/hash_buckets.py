"""Rows in buckets by the hash of a key: a join of any size in bounded memory, one bucket at a time."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import IO, NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError

MEMORY_ROWS = 262_144
"""Largest number of rows, of all tables together, that stay in memory. Then there is one bucket."""

BUCKETS = 256
"""Number of buckets on disk. It is fixed, like the hash: a key is always in the same bucket, however many rows there
are."""

_WRITTEN_ROWS = 131_072
"""Rows of a table in memory from which they are written to disk."""


class Layout(NamedTuple):
    """The columns of a table, and those that decide the bucket of a row."""

    schema: pa.Schema
    keys: tuple[str, ...]
    """Columns of strings: the key is the first that is not null."""


class HashBuckets:
    """Tables whose rows are in buckets: rows with equal keys, of all tables, are in the bucket of the same number.

    Call `add` for all rows of a table, then `read` bucket by bucket. Up to `MEMORY_ROWS` rows stay in memory, in one
    bucket. More are written to temporary files without names, one a table: they vanish with the process, even if it is
    killed.
    """

    def __init__(self, layouts: Mapping[str, Layout]) -> None:
        self._layouts = layouts
        self._pending: dict[str, list[pa.RecordBatch]] = defaultdict(list)
        self._pending_rows: dict[str, int] = defaultdict(int)
        self._rows = 0
        self._is_read = False
        self._on_disk = False
        self._files: dict[str, _BucketFile] = {}
        self._resources = ExitStack()

    def __enter__(self) -> HashBuckets:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # a full disk; what is left to write is not needed
            self._resources.close()

    @property
    def numbers(self) -> range:
        """The numbers of the buckets."""
        return range(BUCKETS if self._on_disk else 1)

    def add(self, table: str, rows: pa.RecordBatch) -> None:
        """Add rows to a table.

        Raises:
            UsageError: the rows cannot be written to the folder of temporary files.
        """
        if not rows.num_rows:
            return
        self._pending[table].append(rows)
        self._pending_rows[table] += rows.num_rows
        self._rows += rows.num_rows
        self._on_disk = self._on_disk or (self._rows > MEMORY_ROWS and not self._is_read)
        if self._on_disk and self._pending_rows[table] >= min(_WRITTEN_ROWS, MEMORY_ROWS):
            with _translate_errors():
                self._write(table)

    def read(self, table: str, bucket: int, columns: tuple[str, ...] = ()) -> pa.Table:
        """Return the rows of a bucket as one chunk a column.

        Args:
            table: name of the table.
            bucket: one of `numbers`.
            columns: names of the columns to read; empty: all.

        Raises:
            UsageError: as `add`.
        """
        self._is_read = True
        if self._on_disk:
            with _translate_errors():
                self._write(table)
                batches = self._files[table].read(bucket, columns)
        else:
            batches = self._pending[table]
        rows = pa.Table.from_batches(batches, None if batches else self._layouts[table].schema)
        return (rows.select(columns) if columns else rows).combine_chunks()

    def _write(self, table: str) -> None:
        if table not in self._files:
            file: IO[bytes] = tempfile.TemporaryFile(prefix="inpaint-encode-")  # noqa: SIM115 - closed by __exit__
            self._resources.enter_context(file)
            self._files[table] = _BucketFile(self._layouts[table], file)
        if rows := self._pending.pop(table, []):
            self._files[table].write(pa.Table.from_batches(rows))
            self._pending_rows[table] = 0


@contextmanager
def _translate_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"the listing cannot be written to the folder of temporary files ({error.strerror or error}); set TMPDIR "
            "to a folder with more space, about 150 bytes for each object"
        ) from error


class _BucketFile:
    """An Arrow file in which every `write` adds one record batch for each bucket."""

    def __init__(self, layout: Layout, file: IO[bytes]) -> None:
        self._layout, self._file, self._writes = layout, file, 0
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        self._writer: pa.RecordBatchFileWriter | None = pa.ipc.new_file(file, layout.schema, options=options)
        self._readers: dict[tuple[str, ...], pa.RecordBatchFileReader] = {}

    def write(self, rows: pa.Table) -> None:
        assert self._writer, "rows were added to a table after it was read"
        buckets = _hashes(rows, self._layout.keys) % BUCKETS
        (sorted_rows,) = rows.take(pa.array(np.argsort(buckets, kind="stable"))).combine_chunks().to_batches()
        ends = np.cumsum(np.bincount(buckets, minlength=BUCKETS)).tolist()
        for start, end in zip([0, *ends], ends, strict=False):
            self._writer.write_batch(sorted_rows.slice(start, end - start))
        self._writes += 1

    def read(self, bucket: int, columns: tuple[str, ...]) -> list[pa.RecordBatch]:
        if self._writer:
            self._writer.close()
            self._writer = None
        if columns not in self._readers:
            fields = [self._layout.schema.get_field_index(name) for name in columns or self._layout.schema.names]
            options = pa.ipc.IpcReadOptions(included_fields=sorted(fields), use_threads=False)
            self._readers[columns] = pa.ipc.open_file(self._file, options=options)  # noqa: TID251
        reader = self._readers[columns]
        return [reader.get_batch(number * BUCKETS + bucket) for number in range(self._writes)]


def _hashes(rows: pa.Table, keys: tuple[str, ...]) -> np.ndarray[tuple[int], np.dtype[np.uint32]]:
    """Return the CRC-32 of each row's key. It is the same on every machine."""
    values = pc.coalesce(*(rows[name] for name in keys)).cast(pa.binary()).to_pylist()
    return np.fromiter(map(crc32, values), np.uint32, len(values))
