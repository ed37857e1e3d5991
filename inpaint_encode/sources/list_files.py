"""Reads the lines of one file of a list of pairs: Parquet, CSV or JSONL, a part at a time.

CSV has no types, so all its columns are strings. In JSONL a string that looks like a time stays a string. Parquet may
hold images and masks. Their bytes are not read here: the lines get the URIs of the rows, see `part_uris`. Other columns
of bytes or images are left out.
"""

from __future__ import annotations

import io
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from inpaint_encode.errors import UsageError
from inpaint_encode.parquet_file import ParquetFile, leaf_paths
from inpaint_encode.parquet_pages import PageLimits, RepeatedValues
from inpaint_encode.settings import Source
from inpaint_encode.stores.ranged_file import RangedFile

from . import pairs
from .parquet import MAX_ROW_GROUP_BYTES, contains_bytes, is_image_type
from .part_uris import row_uris

_FOOTER_BYTES = 2**16
"""Size up to which a Parquet file is read whole; Arrow reads these bytes to find the footer."""
_SMALL_BYTES = 2**23
"""Size up to which a file without images is read in one request, and kept in memory."""
_BUFFERED_BYTES = 2**27
"""Size up to which the columns of a row group are fetched together; of a larger row group, only parts are."""
_MAX_LINE_BYTES = 2**24
"""Size of the largest line of a text file."""
_MAX_PATH_BYTES = 2**16
"""Size of the largest path, URI or key that a dictionary may repeat."""
_MAX_VALUE_BYTES = 2**24
"""Size of the largest other value that a dictionary may repeat."""
_NUMBER_BYTES = 16
"""Size of a number of any type."""
_BLOCK_BYTES = 2**24
"""Bytes of a text file that are read in one request and parsed together."""
_CSV = pa.csv.ParseOptions(newlines_in_values=True)
_QUOTED_VALUE = rb'"[^"]*+(?:""[^"]*+)*+"'
_QUOTED_VALUES = re.compile(_QUOTED_VALUE + rb"(?:[,\r\n]" + _QUOTED_VALUE + rb")*+")
_FIRST_INEXACT_FLOAT = 2.0**53
_LONG_INTEGER = re.compile(rb"[:,\[]\s*-?\d{16,}\s*[,}\]]")

_Path = tuple[str, ...]


class Lines(NamedTuple):
    """Consecutive lines of a file."""

    table: pa.Table
    """The columns of `ListFile.schema`."""
    image_bytes: int = 0
    """Mean size of the embedded images; 0 if the lines have URIs."""


class ListFile(ABC):
    """One file of a list, opened: its columns are known, its lines are not read yet."""

    schema: pa.Schema
    """The columns of the lines; of embedded images, the URIs."""
    embedded: tuple[str, str] = ("", "")
    """Names of the columns with embedded images and masks; empty if there is no such column."""
    refused: Mapping[str, str] = {}
    """Columns that are left out because of their extension types, see `inpaint_encode.parquet_file.ParquetFile`."""
    row_groups = image_bytes = mask_bytes = 0
    """Row groups with embedded images that were read, and the compressed sizes of their images and masks."""

    def __init__(self, uri: str, file: RangedFile) -> None:
        self.uri, self.version = uri, file.version

    @abstractmethod
    def lines(self, start: int) -> Iterator[Lines]:
        """Yield the lines from number ``start`` on, in pieces of bounded size.

        Raises:
            UsageError: a quotation mark is not closed, or a row group is too large.
            ValueError, pa.ArrowException: the file is damaged, or a value cannot be read without loss.
            OSError: the file cannot be read, or has changed.
        """


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Raise UsageError for the errors of a file that cannot be read, or is not valid."""
    try:
        with pairs.translate_read_errors(uri):
            yield
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"--pairs {uri} is not valid {uri.rpartition('.')[2]}; correct it ({error})") from error


def open_list_file(uri: str, file: RangedFile, source: Source) -> ListFile:
    """Return the file with the reader for its suffix; raises the errors of `ListFile.lines`."""
    match uri.rpartition(".")[2]:
        case "parquet":
            return _ParquetFile(uri, file, source)
        case "csv":
            return _CsvFile(uri, file)
        case "jsonl":
            return _JsonlFile(uri, file)
        case suffix:
            raise NotImplementedError(f"there is no reader for .{suffix} files")


class _ParquetFile(ListFile):
    def __init__(self, uri: str, file: RangedFile, source: Source) -> None:
        super().__init__(uri, file)
        whole = file.size <= _FOOTER_BYTES
        self._parquet = ParquetFile(file.read() if whole else file, check_pages=True)
        self._metadata, schema = self._parquet.metadata, self._parquet.schema
        self._paths = leaf_paths(self._metadata)
        sides = [source.image_column, "" if source.random_masks or source.is_own_mask else source.mask_column]
        self._text_columns = {*sides, source.key_column}
        self._parquet.check_readable(list(self._text_columns))
        self.refused = self._parquet.refused
        is_embedded = [name in schema.names and is_image_type(schema.field(name).type) for name in sides]
        image, mask = (name if embedded else "" for name, embedded in zip(sides, is_embedded, strict=True))
        self.embedded = image, mask
        kept = [
            field
            for field in schema
            if field.name in self._parquet.uuids
            or not (field.name in (*self.embedded, *self.refused) or contains_bytes(field.type))
        ]
        self._columns = [field.name for field in kept]
        self.schema = pa.schema([*kept, *((name, pa.string()) for name in dict.fromkeys(filter(None, self.embedded)))])
        if whole:
            return
        groups = range(self._metadata.num_row_groups)
        if file.size <= _SMALL_BYTES and not any(self.embedded):
            file.seek(0)
            self._parquet = ParquetFile(file.read(), self._metadata, check_pages=True)
        elif max((sum(self._sizes(group, self._columns)) for group in groups), default=0) <= _BUFFERED_BYTES:
            self._parquet = ParquetFile(file, self._metadata, check_pages=True, pre_buffer=True)
        else:
            self._parquet = ParquetFile(
                file, self._metadata, check_pages=True, buffer_size=_SMALL_BYTES, pre_buffer=False
            )

    def lines(self, start: int) -> Iterator[Lines]:
        first = 0
        for number in range(self._metadata.num_row_groups):
            end = first + self._metadata.row_group(number).num_rows
            if end > start:
                yield from self._group_lines(number, first, max(first, start))
            first = end

    def _group_lines(self, number: int, first: int, start: int) -> Iterator[Lines]:
        """Yield the lines of a row group, whose first line is ``first``, from line ``start`` on."""
        group = self._metadata.row_group(number)
        image_bytes, mask_bytes = (self._embedded_bytes(number, name) for name in self.embedded)
        if any(self.embedded):
            self.row_groups += 1
            self.image_bytes += image_bytes
            self.mask_bytes += mask_bytes
        _, decoded_bytes = self._sizes(number, self._columns)
        rows = min(pairs.BATCH_PAIRS, max(1, pairs.BATCH_BYTES * group.num_rows // max(1, decoded_bytes)))
        for table in self._tables(number, rows):
            skipped = min(table.num_rows, max(0, start - first))
            numbers = pa.array(np.arange(first, first + table.num_rows))
            first += table.num_rows
            for name in self.schema.names[len(self._columns) :]:
                table = table.append_column(name, row_uris(self.uri, numbers, name))
            yield Lines(table.slice(skipped), image_bytes // group.num_rows)

    def _tables(self, number: int, rows: int) -> Iterator[pa.Table]:
        """Yield the columns of a row group that hold no images, some rows at a time."""
        if self._columns:
            for batch in self._batches(number, rows):
                batch.validate(full=True)  # strings may be no UTF-8
                yield pa.Table.from_batches([batch])
            return
        for start in range(0, total := self._metadata.row_group(number).num_rows, rows):
            yield pa.table({"": pa.nulls(min(rows, total - start))}).select([])

    def _batches(self, number: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of a row group of up to ``rows`` rows, or of fewer if a dictionary has large values."""
        names = tuple(f"{name}." for name in self._columns)
        leaves = sum(f"{path}.".startswith(names) for path in self._paths)
        column_bytes = max(1, pairs.BATCH_BYTES // max(1, leaves))
        rows = min(rows, self._metadata.row_group(number).num_rows, max(1, column_bytes // _NUMBER_BYTES))
        while True:
            limits = PageLimits(rows, column_bytes if rows > 1 else max(column_bytes, _MAX_VALUE_BYTES))
            batches = self._parquet.iter_batches(rows, [number], self._columns, limits=limits)
            try:
                first = next(batches, None)
                break
            except RepeatedValues as error:
                limit = _MAX_PATH_BYTES if error.column in self._text_columns else _MAX_VALUE_BYTES
                if error.largest > limit:
                    raise ValueError(
                        f"column {error.column} has a value of {error.largest:,} bytes in row group {number}; the "
                        f"limit is {limit:,}"
                    ) from None
                rows = max(1, column_bytes // error.largest)
        if first is not None:
            yield first
            yield from batches

    def _sizes(self, number: int, names: list[str]) -> tuple[int, int]:
        """Return the compressed and the uncompressed size of columns in a row group."""
        starts, group = tuple(f"{name}." for name in names), self._metadata.row_group(number)
        chunks = [group.column(at) for at, path in enumerate(self._paths) if f"{path}.".startswith(starts)]
        sizes = [(chunk.total_compressed_size, chunk.total_uncompressed_size) for chunk in chunks]
        return sum(compressed for compressed, _ in sizes), sum(size for _, size in sizes)

    def _embedded_bytes(self, number: int, name: str) -> int:
        """Return the compressed size of a column of images in a row group; 0 if ``name`` is empty."""
        compressed, size = self._sizes(number, [name] if name else [])
        if size > MAX_ROW_GROUP_BYTES:
            raise UsageError(
                f"--pairs {self.uri}: column {name} has {size:,} bytes in one row group, which a worker reads as a "
                f"whole; write the file with row groups of at most {MAX_ROW_GROUP_BYTES:,} bytes, for example 100 rows"
            )
        return compressed


class _TextFile(ListFile):
    """A file that is read from its start to its end, in blocks of whole lines. A small one is kept in memory."""

    def __init__(self, uri: str, file: RangedFile) -> None:
        super().__init__(uri, file)
        self._file: io.RawIOBase | io.BytesIO = io.BytesIO(file.read()) if file.size <= _SMALL_BYTES else file

    def lines(self, start: int) -> Iterator[Lines]:
        first = 0
        for number, block in enumerate(self._blocks()):
            table = self._parse(block, is_first=number == 0)
            skipped = min(table.num_rows, max(0, start - first))
            first += table.num_rows
            if skipped < table.num_rows:
                yield Lines(table.slice(skipped))

    def _blocks(self) -> Iterator[bytes]:
        self._file.seek(0)
        rest = b""
        while data := self._file.read(_BLOCK_BYTES):
            text = rest + data
            end = self._end_of_lines(text)
            block, rest = text[:end], text[end:]
            if block and not block.isspace():
                yield block
            if len(rest) > _MAX_LINE_BYTES:
                raise ValueError(f"a line has more than {_MAX_LINE_BYTES:,} bytes, or a quotation mark is not closed")
        if rest and not rest.isspace():
            self._check_last_line(rest)
            yield rest

    def _end_of_lines(self, text: bytes) -> int:
        """Return the number of bytes of the whole lines at the start of ``text``."""
        return text.rfind(b"\n") + 1

    def _check_last_line(self, text: bytes) -> None:
        """Check what follows the last end of a line."""

    @abstractmethod
    def _parse(self, block: bytes, *, is_first: bool) -> pa.Table:
        """Return the lines of a block, which may be the file's first."""


class _CsvFile(_TextFile):
    def __init__(self, uri: str, file: RangedFile) -> None:
        super().__init__(uri, file)
        start = pa.BufferReader(next(self._blocks(), b""))
        options = pa.csv.ReadOptions(block_size=_MAX_LINE_BYTES)
        with pa.csv.open_csv(start, options, _CSV) as reader:
            self.schema = pa.schema([(name, pa.string()) for name in reader.schema.names])

    def _parse(self, block: bytes, *, is_first: bool) -> pa.Table:
        names = self.schema.names
        read_options = pa.csv.ReadOptions(block_size=_MAX_LINE_BYTES, column_names=None if is_first else names)
        convert_options = pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
        return pa.csv.read_csv(pa.BufferReader(block), read_options, _CSV, convert_options)

    def _end_of_lines(self, text: bytes) -> int:
        end = open_quote = len(text)
        while open_quote >= 0:  # the value that is open at the end of a line began in that line or an earlier one
            end = text.rfind(b"\n", 0, open_quote) + 1
            open_quote = _find_open_quote(text[:end])
        return end

    def _check_last_line(self, text: bytes) -> None:
        if _find_open_quote(text) >= 0:  # Arrow would take the rest of the file for the last value
            raise UsageError(f"--pairs {self.uri} ends inside a quoted value; close the quotation mark")


def _find_open_quote(text: bytes) -> int:
    """Return where the quoted value starts that is open at the end of some lines of CSV; -1 if there is none."""
    at = 0
    while (at := text.find(b'"', at)) >= 0:
        if at and text[at - 1] not in b",\r\n":
            at += 1  # a mark within a value that is not quoted
        elif quoted := _QUOTED_VALUES.match(text, at):
            at = quoted.end()
        else:
            return at
    return -1


class _JsonlFile(_TextFile):
    """Types are those of the whole file, so it is parsed once when it is opened, and once for its lines."""

    def __init__(self, uri: str, file: RangedFile) -> None:
        super().__init__(uri, file)
        self.schema, largest, long_integer = pa.schema([]), dict[_Path, float](), False
        for block in self._blocks():
            table = _parse_jsonl(block)
            numbers = {path: _largest(values) for path, values in _leaves(table)}
            if max(numbers.values(), default=0.0) >= _FIRST_INEXACT_FLOAT:
                long_integer = long_integer or bool(_LONG_INTEGER.search(block))
            largest = {path: max(largest.get(path, 0.0), numbers.get(path, 0.0)) for path in largest | numbers}
            schema = pa.schema([(field.name, _times_as_strings(field.type)) for field in table.schema])
            self.schema = pa.unify_schemas([self.schema, schema], promote_options="permissive")
        if not self.schema.names:
            raise ValueError("the file is empty")
        for path, values in _leaves(self.schema.empty_table()):
            if pa.types.is_floating(values.type) and largest[path] >= _FIRST_INEXACT_FLOAT and long_integer:
                raise ValueError(
                    f"column {path[0]} has fractions and integers above 2^53, which a float cannot hold exactly; write "
                    "these integers as strings"
                )

    def _parse(self, block: bytes, *, is_first: bool) -> pa.Table:
        return _parse_jsonl(block, self.schema).select(self.schema.names)


def _parse_jsonl(block: bytes, schema: pa.Schema | None = None) -> pa.Table:
    read_options = pa.json.ReadOptions(block_size=_MAX_LINE_BYTES)
    return pa.json.read_json(pa.BufferReader(block), read_options, pa.json.ParseOptions(explicit_schema=schema))


def _leaves(table: pa.Table) -> Iterator[tuple[_Path, pa.ChunkedArray]]:
    """Yield the path and the values of each column, or of each column nested in it."""
    stack: list[tuple[_Path, pa.ChunkedArray]] = [((name,), table[name]) for name in table.column_names]
    while stack:
        path, values = stack.pop()
        if pa.types.is_struct(values.type):
            names = [field.name for field in values.type]
            stack += [((*path, name), child) for name, child in zip(names, values.flatten(), strict=True)]
        elif pa.types.is_list(values.type):
            stack.append(((*path, ""), pc.list_flatten(values)))
        else:
            yield path, values


def _largest(values: pa.ChunkedArray) -> float:
    """Return the largest absolute value; 0 if the values are not numbers."""
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)):
        return 0.0
    ends = pc.min_max(values).as_py()
    return float(max(-(ends["min"] or 0), ends["max"] or 0))


def _times_as_strings(type_: pa.DataType) -> pa.DataType:
    """Return the type with strings in place of timestamps, in nested types too."""
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, _times_as_strings(field.type)) for field in type_])
    if pa.types.is_list(type_):
        return pa.list_(_times_as_strings(type_.value_type))
    return pa.string() if pa.types.is_timestamp(type_) else type_
