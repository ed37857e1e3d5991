"""Images inside Parquet files, as Hugging Face writes them: ``struct<bytes, path>``, or a column of bytes."""

from __future__ import annotations

import errno
import sys
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.stores import storage
from inpaint_encode.stores.access import Access
from inpaint_encode.stores.ranged_file import Changed, RangedFile

from .locators import Row

__all__ = ["LARGEST_GROUP", "MissingValue", "RowGroups", "has_bytes", "holds_images"]

LARGEST_GROUP = 2**30
"""Bytes of one column's images in a row group: a fetch task holds up to `_KEPT` of such."""

_KEPT = 4
"""Of the image column and of the mask column, the group that is read and the one before it; more of small ones."""

_KEPT_BYTES = 2**26


def holds_images(of: pa.DataType) -> bool:
    """Whether values of a column are images themselves, and not their URIs."""
    if pa.types.is_struct(of):
        at = of.get_field_index("bytes")
        return at >= 0 and holds_images(of.field(at).type)
    return bool(pa.types.is_binary(of) or pa.types.is_large_binary(of))


def has_bytes(of: pa.DataType) -> bool:
    """Whether there are bytes anywhere in a column's values, which are not carried then."""
    if pa.types.is_binary(of) or pa.types.is_large_binary(of) or pa.types.is_fixed_size_binary(of):
        return True
    return any(has_bytes(of.field(at).type) for at in range(of.num_fields))


class MissingValue(FileNotFoundError):
    """The row is there, and has nothing in this column."""


class _Open(NamedTuple):
    uri: str
    version: str
    parquet: pq.ParquetFile
    ends: list[int]
    """Rows up to the end of each row group."""


class RowGroups:
    """Reads rows' images; threads may share it.

    Of a file the footer and whole column chunks are read, each by a few requests. Row groups that were read last are
    kept, so that rows in the order of the file cost each of them once.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._file: _Open | None = None
        self._groups: OrderedDict[tuple[str, int, str], pa.Array] = OrderedDict()

    def read(self, row: Row, version: str, at_most: int = sys.maxsize) -> storage.Blob:
        """Return the image of a row, with the version of the Parquet file.

        A value without bytes but with a path is the file of that path, of ``at_most`` so many bytes: a URI, or a path
        that is absolute or relative to the Parquet file's folder.

        Raises:
            Changed: the file has another version than ``version``, unless that is empty.
            FileNotFoundError: there is no such file or row; `MissingValue`: it is null.
            PermissionError, storage.Unavailable, OSError: by what the store said.
        """
        with self._lock:
            value, found = self._value(row, version)
        if not isinstance(value, dict):
            value = {"bytes": value}
        if (data := value["bytes"]) is not None:
            return storage.Blob(data, found)
        if not (path := value.get("path")):
            raise MissingValue(errno.ENOENT, f"column {row.column} has no value in this row")
        return storage.read(_beside(row.file, path), self._access, at_most)

    def _value(self, row: Row, version: str) -> tuple[Any, str]:
        file = self._opened(row.file)
        if version and version != file.version:
            raise Changed(errno.ESTALE, "the Parquet file has changed since it was planned")
        group = bisect_right(file.ends, row.row)
        if group == len(file.ends):
            raise FileNotFoundError(errno.ENOENT, f"the Parquet file has {file.ends[-1] if file.ends else 0:,} rows")
        start = file.ends[group - 1] if group else 0
        return self._column(file, group, row.column)[row.row - start].as_py(), file.version

    def _opened(self, uri: str) -> _Open:
        if self._file is None or self._file.uri != uri:
            source = RangedFile(uri, self._access)
            with _read_errors():
                parquet = pq.ParquetFile(source, pre_buffer=True)
            about = parquet.metadata
            ends = accumulate(about.row_group(group).num_rows for group in range(about.num_row_groups))
            self._file = _Open(uri, source.version, parquet, list(ends))
        return self._file

    def _column(self, file: _Open, group: int, column: str) -> pa.Array:
        place = (file.uri, group, column)
        if place not in self._groups:
            while len(self._groups) >= _KEPT and sum(one.nbytes for one in self._groups.values()) > _KEPT_BYTES:
                self._groups.popitem(last=False)
            with _read_errors():
                self._groups[place] = file.parquet.read_row_group(group, columns=[column])[column].combine_chunks()
        self._groups.move_to_end(place)
        return self._groups[place]


def _beside(file: str, path: str) -> str:
    if "://" not in path and not path.startswith("/"):
        return storage.join(file.rpartition("/")[0], path)
    try:
        return storage.normalize_uri(path, storage.READABLE)
    except ValueError as error:
        raise OSError(errno.EINVAL, f"the row has no bytes, but the path {path}: {error}") from None


@contextmanager
def _read_errors() -> Iterator[None]:
    """What Arrow says of a damaged file, as an error of reading it; what the store said passes as it is."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        raise OSError(errno.EINVAL, f"the Parquet file cannot be read: {str(error).strip()}") from error
