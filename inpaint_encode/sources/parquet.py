"""Reads images inside Parquet files: ``struct<bytes, path>`` as Hugging Face writes them, or a column of bytes."""

from __future__ import annotations

import errno
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa

from inpaint_encode.parquet_file import ParquetFile
from inpaint_encode.parquet_pages import PageLimits, RepeatedValues
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access
from inpaint_encode.stores.ranged_file import Changed, RangedFile

from .part_uris import ParquetRow

MAX_ROW_GROUP_BYTES = 2**30
"""Largest allowed size of one column of a row group; a fetch task can hold `_CACHED_CHUNKS` of this size."""

_REPEATED_BYTES = 2**27
"""Bytes of images in a row group that are copies; if there are more, each image is decoded when it is read."""

_CACHED_CHUNKS = 4
"""The current and the previous row group, each with an image column and a mask column; more if they are small."""

_CACHED_BYTES = 2**26


def is_image_type(type_: pa.DataType) -> bool:
    """Return whether a column of this type holds images, not their URIs."""
    if pa.types.is_struct(type_):
        at = type_.get_field_index("bytes")
        return at >= 0 and is_image_type(type_.field(at).type)
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_))


def contains_bytes(type_: pa.DataType) -> bool:
    """Return whether the type, or a type nested in it, is binary. Such columns are not copied to the output."""
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_fixed_size_binary(type_):
        return True
    return any(contains_bytes(type_.field(at).type) for at in range(type_.num_fields))


class NullValue(FileNotFoundError):
    """The row exists, but its value in this column is null."""


class _OpenFile(NamedTuple):
    uri: str
    version: str
    parquet: ParquetFile
    ends: list[int]
    """Number of the row after the last one of each row group."""


@dataclass
class ParquetRowReader:
    """Reads the images of rows. Threads may share it.

    It reads the footer and whole column chunks, with a few requests each. The last column chunks are cached: if rows
    are read in the order of the file, each column chunk is fetched once.
    """

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _file: _OpenFile | None = None
    _chunks: OrderedDict[tuple[str, int, str], pa.Array] = field(default_factory=OrderedDict)

    def read(self, row: ParquetRow, version: str, access: Access, max_bytes: int) -> storage.Blob:
        """Return the image of a row, and the version of the Parquet file.

        If the value has a path but no bytes, read the file with that path: a URI, an absolute path, or a path relative
        to the Parquet file's folder.

        Args:
            row: where the image is.
            version: the expected version of the Parquet file; empty: any.
            access: how the stores are accessed.
            max_bytes: limit for a file that is named by a path.

        Raises:
            Changed: the Parquet file has another version.
            FileNotFoundError: there is no such file or row. `NullValue`: the value is null.
            storage.TooLarge: the file with that path has more than ``max_bytes``.
            PermissionError, storage.Unavailable, OSError: the store refuses or does not answer.
        """
        with self._lock:
            value, found = self._value(row, version, access)
        if not isinstance(value, dict):
            value = {"bytes": value}
        if (data := value.get("bytes")) is not None:
            return storage.Blob(data, found)
        if not (path := value.get("path")):
            raise NullValue(errno.ENOENT, f"column {row.column} is null in this row")
        return storage.read(_resolve(row.file, path), access, max_bytes)

    def _value(self, row: ParquetRow, version: str, access: Access) -> tuple[Any, str]:
        file = self._open(row.file, access)
        if version and version != file.version:
            raise Changed(errno.ESTALE, "the Parquet file has changed since it was planned")
        group = bisect_right(file.ends, row.row)
        if group == len(file.ends):
            raise FileNotFoundError(errno.ENOENT, f"the Parquet file has {file.ends[-1] if file.ends else 0:,} rows")
        start = file.ends[group - 1] if group else 0
        return self._column(file, group, row.column)[row.row - start].as_py(), file.version

    def _open(self, uri: str, access: Access) -> _OpenFile:
        if self._file is None or self._file.uri != uri:
            source = RangedFile(uri, access)
            with _translate_errors():
                parquet = ParquetFile(source, check_pages=True, pre_buffer=True)
            metadata = parquet.metadata
            ends = accumulate(metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
            self._file = _OpenFile(uri, source.version, parquet, list(ends))
        return self._file

    def _column(self, file: _OpenFile, group: int, column: str) -> pa.Array:
        place = (file.uri, group, column)
        if place not in self._chunks:
            while len(self._chunks) >= _CACHED_CHUNKS and sum(c.nbytes for c in self._chunks.values()) > _CACHED_BYTES:
                self._chunks.popitem(last=False)
            with _translate_errors():
                self._chunks[place] = _read_column(file.parquet, group, column)
        self._chunks.move_to_end(place)
        return self._chunks[place]


def _read_column(parquet: ParquetFile, group: int, column: str) -> pa.Array:
    """Return a column of a row group; if a dictionary repeats large values, as a dictionary, or a struct of them."""
    limits = PageLimits(None, _REPEATED_BYTES, page_bytes=MAX_ROW_GROUP_BYTES, chunk_bytes=MAX_ROW_GROUP_BYTES)
    try:
        table = parquet.read_row_group(group, [column], limits=limits)
    except RepeatedValues:
        limits = replace(limits, repeated_bytes=2**63)
        table = parquet.with_dictionaries(column).read_row_group(group, [column], limits=limits)
    return table[column].combine_chunks()


def _resolve(file: str, path: str) -> str:
    if "://" not in path and not path.startswith("/"):
        return storage.join(file.rpartition("/")[0], path)
    try:
        return storage.normalize_uri(path, storage.READABLE)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"the row has no bytes, and its path {path} cannot be read: {error}") from None


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise OSError for Arrow's errors about a damaged file. Errors of the store, which have an errno, pass."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise OSError(errno.EINVAL, f"the Parquet file cannot be read ({str(error).strip()})") from error
