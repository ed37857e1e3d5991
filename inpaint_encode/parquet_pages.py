"""Checks the pages of a Parquet file before Arrow decodes them, so that a small file cannot fill the memory.

The footer does not bound what a column chunk takes in memory. A dictionary page holds a value once, and a few bytes of
a data page repeat it a million times. A compressed page of zeros is a thousand times as large as its bytes. So
`PageCheck` reads the header of each page, and the lengths of the values in dictionary pages, while Arrow fetches them.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MAX_PAGE_BYTES = 2**28
"""Largest page, decompressed, of a column that is read in batches."""

_HEADER_BYTES, _MAX_HEADER_BYTES = 2**8, 2**20
"""Size of most page headers, and of the largest: it may have the smallest and the largest value of the page."""
_MAX_PARSED_BYTES = 2**26
"""Largest dictionary page whose values are looked at; a larger one may be a single value."""
_MAX_LIST_VALUES = 2**24
"""Values that the lists of a column chunk may have, beyond `_VALUES_PER_BYTE` for each compressed byte of its pages."""
_VALUES_PER_BYTE = 64
_MAX_LIST_BYTES = 2**28
"""Size of the repeated strings in the lists of a column chunk, beyond `_BYTES_PER_BYTE` for each compressed byte."""
_BYTES_PER_BYTE = 256
_DICTIONARY_ENCODINGS = (2, 8)
_DATA_PAGE, _DICTIONARY_PAGE, _DATA_PAGE_2 = 0, 2, 3
_DETAILS = {_DATA_PAGE: (5, 2), _DICTIONARY_PAGE: (7, 2), _DATA_PAGE_2: (8, 4)}
"""For each type of page, the field of its header with the number of values, and the field in it with the encoding."""


_LENGTH = struct.Struct("<I")
_INT32, _STRUCT = 5, 12
"""Types of Thrift's compact protocol."""


class RepeatedValues(Exception):
    """A dictionary repeats values that are too large for the number of rows that are decoded together.

    ``column`` is the path of the column, ``largest`` the size of the largest value in bytes.
    """

    def __init__(self, column: str, largest: int) -> None:
        super().__init__(column, largest)
        self.column, self.largest = column, largest


@dataclass
class PageLimits:
    """What may be decoded together."""

    rows: int | None
    """Rows of a batch; None: all rows of a row group, whose column chunks are each fetched in one piece."""
    repeated_bytes: int
    """Size of these rows, if each that uses a dictionary has its largest value; above, `RepeatedValues` is raised."""
    page_bytes: int = MAX_PAGE_BYTES
    chunk_bytes: int | None = None
    """Size of all pages of a column chunk; None: no limit, since they are decoded one after the other."""


@dataclass
class _Chunk:
    """A column chunk, and how far its pages are checked."""

    path: str
    start: int
    size: int
    compression: str
    is_bytes: bool
    is_repeated: bool
    position: int = 0
    """Bytes that were seen."""
    pending: bytearray = field(default_factory=bytearray)
    """Start of a header, or a part of a dictionary page."""
    skipped: int = 0
    """Bytes of the current page that are still to come."""
    pages: int = 0
    page_bytes: int = 0
    compressed_bytes: int = 0
    values: int = 0
    repeated: int = 0
    """Values of pages that refer to the dictionary."""
    largest: int = 0
    """Size of the largest value of the dictionary."""
    dictionary: int | None = None
    """Decompressed size of the dictionary page whose values `pending` collects."""


class PageCheck(io.RawIOBase):
    """A file that raises an error in place of pages which are too large. Arrow's threads may share it.

    Args:
        file: the Parquet file, which has ``seek`` and ``read``.
        metadata: its footer.
    """

    def __init__(self, file: Any, metadata: pq.FileMetaData) -> None:
        self._file, self._metadata = file, metadata
        self._lock = threading.Lock()
        self._chunks: list[_Chunk] = []
        self._limits = PageLimits(None, 0)
        leaves = map(metadata.schema.column, range(metadata.num_columns))
        self._leaves = [
            (leaf.path, leaf.physical_type == "BYTE_ARRAY", leaf.max_repetition_level > 0) for leaf in leaves
        ]

    def expect(self, row_groups: Collection[int], columns: Collection[str], limits: PageLimits) -> None:
        """Check columns of row groups from now on; Arrow must read no others."""
        chunks = (chunk for group in row_groups for chunk in self._chunks_of(group, columns))
        with self._lock:
            self._chunks, self._limits = list(chunks), limits

    def _chunks_of(self, group: int, columns: Collection[str]) -> Iterator[_Chunk]:
        row_group = self._metadata.row_group(group)
        names = tuple(f"{name}." for name in columns)
        for number, (path, is_bytes, is_repeated) in enumerate(self._leaves):
            if f"{path}.".startswith(names):
                chunk = row_group.column(number)
                start, dictionary = chunk.data_page_offset, chunk.dictionary_page_offset
                if dictionary and 0 < dictionary < start:  # as Arrow does
                    start = dictionary
                yield _Chunk(path, start, chunk.total_compressed_size, chunk.compression, is_bytes, is_repeated)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return int(self._file.tell())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, and return it."""
        return int(self._file.seek(offset, whence))

    def read(self, size: int | None = -1) -> bytes:
        """Return up to ``size`` bytes.

        Raises:
            RepeatedValues, pa.ArrowInvalid: a page in these bytes is too large.
            OSError: the file's error.
        """
        start = self._file.tell()
        data: bytes = self._file.read(size)
        with self._lock:
            view = memoryview(data)
            for chunk in self._chunks:
                first, end = max(start, chunk.start), min(start + len(data), chunk.start + chunk.size)
                if first < end:
                    self._feed(chunk, first - chunk.start, view[first - start : end - start])
        return data

    def _feed(self, chunk: _Chunk, offset: int, data: memoryview) -> None:
        """Check the pages in the next bytes of a column chunk."""
        if offset == 0:  # it is read, or is read once more
            chunk.pending.clear()
            chunk.position = chunk.skipped = chunk.pages = chunk.page_bytes = chunk.compressed_bytes = 0
            chunk.values = chunk.repeated = chunk.largest = 0
            chunk.dictionary = None
        if offset != chunk.position:
            raise pa.ArrowInvalid(f"column {chunk.path} is not read from its start")
        chunk.position += len(data)
        while data or (chunk.dictionary is not None and not chunk.skipped):
            step = min(chunk.skipped, len(data))
            if chunk.dictionary is not None:
                chunk.pending += data[:step]
            data, chunk.skipped = data[step:], chunk.skipped - step
            if chunk.skipped:
                return
            if chunk.dictionary is not None:
                self._check_dictionary(chunk)
                continue
            if not data:
                return
            if (header := self._next_header(chunk, data)) is None:
                return
            fields, size = header
            data = data[size:]
            self._check_header(chunk, fields)

    def _next_header(self, chunk: _Chunk, data: memoryview) -> tuple[dict[tuple[int, int], Any], int] | None:
        """Return a page header, and how many bytes of ``data`` it has; None if it goes on in the next bytes."""
        known = len(chunk.pending)
        while True:
            start = len(chunk.pending) - known
            chunk.pending += data[start : start + max(_HEADER_BYTES, start)]
            try:
                fields, end = _read_struct(chunk.pending, 0, 0)
            except IndexError:
                if len(chunk.pending) > _MAX_HEADER_BYTES:
                    raise pa.ArrowInvalid(f"column {chunk.path} has a page header that is too large") from None
                if len(chunk.pending) - known == len(data):
                    return None
                continue
            chunk.pending.clear()
            return fields, end - known

    def _check_header(self, chunk: _Chunk, header: dict[tuple[int, int], Any]) -> None:
        limits = self._limits
        kind, size, chunk.skipped = (header.get((number, _INT32), -1) for number in (1, 2, 3))
        number, encoding = _DETAILS.get(kind, (0, 0))
        details = header.get((number, _STRUCT), {})
        values = details.get((1, _INT32), 0)
        if min(kind, size, chunk.skipped, values) < 0:
            raise pa.ArrowInvalid(f"column {chunk.path} has a damaged page header")
        if size > limits.page_bytes:
            raise _too_large(chunk, f"a page of {size:,} bytes; the limit is {limits.page_bytes:,}")
        chunk.page_bytes += size
        chunk.compressed_bytes += chunk.skipped
        if limits.chunk_bytes is not None and chunk.page_bytes > limits.chunk_bytes:
            raise _too_large(chunk, f"more than {limits.chunk_bytes:,} bytes in a row group")
        if kind == _DICTIONARY_PAGE:
            if chunk.pages:
                raise pa.ArrowInvalid(f"column {chunk.path} has a dictionary that is not its first page")
            if chunk.is_bytes and (
                chunk.is_repeated or size * (limits.rows or _MAX_PARSED_BYTES) > limits.repeated_bytes
            ):
                chunk.dictionary = size
        else:
            chunk.values += values
            if details.get((encoding, _INT32)) in _DICTIONARY_ENCODINGS:
                chunk.repeated += values
        chunk.pages += 1
        if chunk.is_repeated and (
            chunk.values > _MAX_LIST_VALUES + _VALUES_PER_BYTE * chunk.compressed_bytes
            or chunk.repeated * chunk.largest > _MAX_LIST_BYTES + _BYTES_PER_BYTE * chunk.compressed_bytes
        ):
            raise _too_large(chunk, "lists with many values in few bytes")
        if limits.rows is None and chunk.repeated * chunk.largest > limits.repeated_bytes:
            raise RepeatedValues(chunk.path, chunk.largest)

    def _check_dictionary(self, chunk: _Chunk) -> None:
        """Find the largest value of a dictionary page, whose bytes are complete."""
        data, size = bytes(chunk.pending), chunk.dictionary or 0
        chunk.dictionary = None
        chunk.pending.clear()
        chunk.largest = size
        if size <= _MAX_PARSED_BYTES:
            chunk.largest = _largest_value(_decompressed(data, size, chunk.compression))
        elif self._limits.rows is not None:
            raise _too_large(chunk, f"a dictionary of {size:,} bytes; the limit is {_MAX_PARSED_BYTES:,}")
        if not chunk.is_repeated and chunk.largest * (self._limits.rows or 0) > self._limits.repeated_bytes:
            raise RepeatedValues(chunk.path, chunk.largest)


def _too_large(chunk: _Chunk, what: str) -> pa.ArrowInvalid:
    return pa.ArrowInvalid(f"column {chunk.path} has {what}; write smaller row groups and pages")


def _decompressed(data: bytes, size: int, compression: str) -> bytes:
    """Return a page's contents, which have ``size`` bytes."""
    if compression == "UNCOMPRESSED":
        return data
    codec = compression.lower()
    if codec.startswith("lz4"):
        codec = "lz4_raw"
        if int.from_bytes(data[:4], "big") == size and int.from_bytes(data[4:8], "big") == len(data) - 8:
            data = data[8:]  # as Hadoop writes it
    decompressed: bytes = pa.decompress(data, size, codec, asbytes=True)
    return decompressed


def _largest_value(data: bytes) -> int:
    """Return the size of the largest value of a dictionary page: each follows its length, 4 bytes."""
    largest = at = 0
    while at + 4 <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        if length > largest:
            largest = length
        at += 4 + length
    return largest


_MAX_DEPTH = 16


def _read_struct(data: bytearray, at: int, depth: int) -> tuple[dict[tuple[int, int], Any], int]:
    """Return the fields of a struct in Thrift's compact protocol by number and type, and where it ends.

    Only integers of 32 bits and structs have values here; all others are skipped.

    Raises:
        IndexError: the bytes end before the struct.
        pa.ArrowInvalid: they are not valid.
    """
    fields: dict[tuple[int, int], Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(data, at)
        value, at = _read_value(data, at, head & 15, depth)
        if (number, head & 15) in fields:
            raise pa.ArrowInvalid("a page header has a field twice")
        fields[number, head & 15] = value
    return fields, at + 1


def _read_value(data: bytearray, at: int, type_: int, depth: int, *, is_element: bool = False) -> tuple[Any, int]:
    value: Any = None
    match type_:
        case 1 | 2:  # a boolean is in the field's head, but takes a byte in a list
            at += is_element
        case 3:
            at += 1
        case 4 | 5 | 6:
            value, at = _read_integer(data, at)
            value = (value + 2**31) % 2**32 - 2**31  # as Thrift in C++ does
        case 7:
            at += 8
        case 8:
            length, at = _read_varint(data, at)
            at += length
        case 9 | 10 if depth < _MAX_DEPTH:
            head, at = data[at], at + 1
            length = head >> 4
            if length == 15:
                length, at = _read_varint(data, at)
            for _ in range(length):
                _, at = _read_value(data, at, head & 15, depth + 1, is_element=True)
        case 12 if depth < _MAX_DEPTH:
            value, at = _read_struct(data, at, depth + 1)
        case _:
            raise pa.ArrowInvalid("a page header is damaged")
    if at > len(data):
        raise IndexError
    return value, at


def _read_integer(data: bytearray, at: int) -> tuple[int, int]:
    value, at = _read_varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(data: bytearray, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if not byte & 128:
            return value & (2**64 - 1), at
        if shift > 63:
            raise pa.ArrowInvalid("a page header is damaged")
