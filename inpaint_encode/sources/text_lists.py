"""Reads the lines of a list of pairs in CSV or JSONL, a part at a time.

CSV has no types, so all its columns are strings. In JSONL a string that looks like a time stays a string.
"""

from __future__ import annotations

import io
import re
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json

from inpaint_encode.errors import UsageError
from inpaint_encode.stores.ranged_file import RangedFile

from . import pairs
from .list_files import SMALL_BYTES, Lines, ListFile
from .text_checks import Text, TextError, check_encoding, check_json, end_of_csv_lines, find_open_quote

_MAX_LINE_BYTES = 2**24
"""Size of the largest line of a text file."""
_BLOCK_BYTES = 2**24
"""Bytes of a text file that are read in one request and parsed together."""
_INFERRED_BYTES = 2**16
"""Bytes of JSONL that are parsed together to find the types. A name takes memory in each object that is parsed with it,
and the number of names is only known afterwards."""
_MAX_CELLS = 2**24
"""Values of a table that is parsed from JSONL, missing ones included."""
MAX_COLUMNS = 2_000
"""Limit for the columns of a text file, those nested in others included."""
_CSV = pa.csv.ParseOptions(newlines_in_values=True)
_FIRST_INEXACT_FLOAT = 2.0**53
_LONG_INTEGER = re.compile(rb"[:,\[]\s*-?\d{16,}\s*[,}\]]")

_Path = tuple[str, ...]


class _TextFile(ListFile):
    """A file that is read from its start to its end, in blocks of whole lines. A small one is kept in memory."""

    may_have_nul = False
    _suffix: str

    def __init__(self, uri: str, file: RangedFile) -> None:
        super().__init__(uri, file)
        self._file: io.RawIOBase | io.BytesIO = io.BytesIO(file.read()) if file.size <= SMALL_BYTES else file

    def lines(self, start: int) -> Iterator[Lines]:
        """See `ListFile.lines`."""
        first = 0
        for block in self._blocks():
            for piece in self._pieces(block):
                table = self._located(self._parse, piece)
                skipped = min(table.num_rows, max(0, start - first))
                first += table.num_rows
                for row in range(skipped, table.num_rows, pairs.BATCH_PAIRS):
                    yield Lines(table.slice(row, pairs.BATCH_PAIRS))

    def _blocks(self) -> Iterator[Text]:
        """Yield the file in blocks of whole lines, which `_check` accepts."""
        self._file.seek(0)
        rest, lines = b"", 0
        while data := self._file.read(_BLOCK_BYTES):
            text = rest + data
            end = self._end_of_lines(text)
            block, rest = Text(text[:end], partial(int, lines)), text[end:]
            if block.text and not block.text.isspace():
                self._check(block)
                yield block
            lines += int(np.count_nonzero(np.frombuffer(block.text, np.uint8) == ord("\n")))
            if len(rest) > _MAX_LINE_BYTES:
                raise TextError(
                    lines + 1, f"it has more than {_MAX_LINE_BYTES:,} bytes, or a quotation mark is not closed"
                )
        if rest and not rest.isspace():
            self._check_last_line(rest)
            last = Text(rest, partial(int, lines))
            self._check(last)
            yield last

    def _end_of_lines(self, text: bytes) -> int:
        """Return the number of bytes of the whole lines at the start of ``text``."""
        return text.rfind(b"\n") + 1

    def _check_last_line(self, text: bytes) -> None:
        """Check what follows the last end of a line."""

    def _check(self, block: Text) -> None:
        """Check lines before they are parsed; raise TextError."""
        check_encoding(block)

    def _pieces(self, block: Text) -> Iterator[Text]:
        """Yield a block in parts of whole lines, each of which makes a table of bounded size."""
        yield block

    @abstractmethod
    def _parse(self, piece: Text) -> pa.Table:
        """Return the lines of a part of a block."""

    def _located(self, parse: Callable[[Text], pa.Table], piece: Text) -> pa.Table:
        """Call ``parse``; if it fails, raise TextError with the number of the line. It is searched by halves."""
        try:
            return parse(piece)
        except (pa.ArrowException, ValueError) as error:
            ends = np.flatnonzero(np.frombuffer(piece.text, np.uint8) == ord("\n")) + 1
            good, bad, reason = 0, len(ends) + (not piece.text.endswith(b"\n")), str(error)
            while bad - good > 1:
                middle = (good + bad) // 2
                text = piece.text[: ends[middle - 1]]
                try:
                    if end := self._end_of_lines(text):
                        parse(piece.part(0, end))
                    good = middle
                except (pa.ArrowException, ValueError) as found:
                    bad, reason = middle, str(found)
            line = piece.line_of(0) + bad - 1
            raise TextError(line, f"it is not valid {self._suffix}; correct it ({reason})") from error


class CsvList(_TextFile):
    """A CSV file with a header; all columns are strings."""

    _suffix = "csv"

    def __init__(self, uri: str, file: RangedFile) -> None:
        super().__init__(uri, file)
        self.schema = pa.schema([])
        first = next(self._blocks(), Text(b""))
        self._header_line = first.line_of(0)
        if first.text.lstrip(b"\r\n").partition(b"\n")[0].count(b",") >= MAX_COLUMNS:
            raise TextError(self._header_line, f"it has more than {MAX_COLUMNS:,} columns; remove columns")
        names = self._located(self._parse, first).column_names
        self.schema = pa.schema([(name, pa.string()) for name in names])

    def _parse(self, piece: Text) -> pa.Table:
        names = None if piece.line_of(0) == self._header_line else self.schema.names
        read_options = pa.csv.ReadOptions(block_size=_MAX_LINE_BYTES, column_names=names)
        types = dict.fromkeys(self.schema.names, pa.string())
        convert_options = pa.csv.ConvertOptions(column_types=types)
        return pa.csv.read_csv(pa.BufferReader(piece.text), read_options, _CSV, convert_options)

    def _end_of_lines(self, text: bytes) -> int:
        return end_of_csv_lines(text)

    def _check_last_line(self, text: bytes) -> None:
        if find_open_quote(text) >= 0:  # Arrow would take the rest of the file for the last value
            raise UsageError(f"--pairs {self.uri} ends inside a quoted value; close the quotation mark")


class JsonlList(_TextFile):
    """Types are those of the whole file, so it is parsed once when it is opened, and once for its lines."""

    _suffix = "jsonl"

    def __init__(self, uri: str, file: RangedFile) -> None:
        super().__init__(uri, file)
        self.schema, largest, long_integer = pa.schema([]), dict[_Path, float](), False
        for piece, table in self._parsed():
            numbers = {path: _largest(values) for path, values in _leaves(table)}
            if max(numbers.values(), default=0.0) >= _FIRST_INEXACT_FLOAT:
                long_integer = long_integer or bool(_LONG_INTEGER.search(piece))
            largest = {path: max(largest.get(path, 0.0), numbers.get(path, 0.0)) for path in largest | numbers}
        if not self.schema.names:
            raise ValueError("the file is empty")
        for path, values in _leaves(self.schema.empty_table()):
            if pa.types.is_floating(values.type) and largest[path] >= _FIRST_INEXACT_FLOAT and long_integer:
                raise ValueError(
                    f"column {path[0]} has fractions and integers above 2^53, which a float cannot hold exactly; write "
                    "these integers as strings"
                )

    def _parsed(self) -> Iterator[tuple[bytes, pa.Table]]:
        """Yield parts of the file with their tables, and extend the schema by the types that they have.

        Large parts are parsed with the types of the lines before them. If that fails, the types of a small part are
        inferred: each name of one line takes memory in all lines that are parsed with it, and their number is unknown.
        """
        size = 0
        for block in self._blocks():
            check_json(block)
            self.may_have_nul = self.may_have_nul or b"\\u0000" in block.text
            start = 0
            while start < len(block.text):
                end = _cut(block.text, start, size) if size else start
                known = self._parse_known(block.text[start:end]) if size else None
                if known is None:
                    end = _cut(block.text, start, _INFERRED_BYTES)
                    piece = block.part(start, end)
                    known = None if piece.text.isspace() else self._infer(piece)
                if known is not None:
                    yield block.text[start:end], known
                    size = min(4 * max(size, _INFERRED_BYTES), self._max_bytes()) if size else _INFERRED_BYTES
                start = end

    def _parse_known(self, text: bytes) -> pa.Table | None:
        """Return some lines if they have no other names and types than the lines before; else None."""
        try:
            return _read_jsonl(text, self.schema, "error")
        except pa.ArrowException:
            return None

    def _infer(self, piece: Text) -> pa.Table:
        def parse(some: Text) -> pa.Table:
            table = _read_jsonl(some.text)
            schema = pa.schema([(field.name, _times_as_strings(field.type)) for field in table.schema])
            return table, pa.unify_schemas([self.schema, schema], promote_options="permissive")

        table, schema = self._located(parse, piece)
        if _count_fields(schema) > MAX_COLUMNS:
            raise TextError(
                piece.line_of(0),
                f"this line and the next ones have new names; the list has more than {MAX_COLUMNS:,} names, the nested "
                "ones included; write such values as strings",
            )
        self.schema = schema
        return table

    def _max_bytes(self) -> int:
        """Return the size of lines whose table has at most `_MAX_CELLS` values; the shortest line has two bytes."""
        return max(_INFERRED_BYTES, 2 * _MAX_CELLS // max(1, _count_fields(self.schema)))

    def _pieces(self, block: Text) -> Iterator[Text]:
        start = 0
        while start < len(block.text):
            end = _cut(block.text, start, self._max_bytes())
            yield block.part(start, end)
            start = end

    def _parse(self, piece: Text) -> pa.Table:
        return _read_jsonl(piece.text, self.schema).select(self.schema.names)


def _read_jsonl(text: bytes, schema: pa.Schema | None = None, unexpected: str = "infer") -> pa.Table:
    read_options = pa.json.ReadOptions(block_size=2 * _MAX_LINE_BYTES)
    parse_options = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected)
    return pa.json.read_json(pa.BufferReader(text), read_options, parse_options)


def _cut(text: bytes, start: int, size: int) -> int:
    """Return the end of at most ``size`` bytes of whole lines from ``start`` on, between objects if possible.

    It is the end of one line if that is longer.
    """
    end = start + size
    if end >= len(text):
        return len(text)
    whole = text.rfind(b"\n{", start, end) + 1 or text.rfind(b"\n", start, end) + 1
    return whole or text.find(b"\n", end) + 1 or len(text)


def _count_fields(schema: pa.Schema) -> int:
    """Return the number of columns, and of fields nested in them."""
    stack, count = list(schema.types), 0
    while stack:
        type_ = stack.pop()
        count += 1
        stack += [type_.field(number).type for number in range(type_.num_fields)]
    return count


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
