"""Pairs of a list (Parquet, CSV or JSONL): each line names an image and a mask, and has columns for the output.

A value of another column is copied to the pair's row with its Arrow type. Of a dictionary the value is copied.
`list_files` reads the lines.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Generator, Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inpaint_encode.errors import UsageError
from inpaint_encode.parquet_file import read_schema
from inpaint_encode.schema import COLUMNS, EXTRA_COLUMNS, SOURCE_PAIRS, extra_columns_schema
from inpaint_encode.settings import Source
from inpaint_encode.stores.base import Access
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import RangedFile

from .batches import Piece, find_unchanged, in_batches
from .list_files import Lines, ListFile, translate_errors
from .pairs import PairBatch, PairFiles, PairSource, Slice, check_access
from .parquet_lists import ParquetList
from .part_uris import without_suffix
from .random_masks import slice_version
from .signatures import Signatures, are_signed, without_signatures
from .text_lists import CsvList, JsonlList

_LOG = logging.getLogger(__name__)
_ABSOLUTE = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/)"
_READABLE = r"^(?:(?:s3|gs|https?)://[^/@]+/|file:///|/)"
_OPEN_AHEAD = 8
"""Files that are opened before their lines are needed."""


class PairList(PairSource):
    """The lines of one or more files; a line is a pair, or an image with its ``--random-masks``."""

    signatures: Signatures

    def __init__(self, source: Source, files: PairFiles, access: Access) -> None:
        """Open the first file.

        Raises:
            UsageError: it cannot be read, a column is missing, or has the name of an output column.
        """
        super().__init__(files.objects_listed)
        self._source, self._files, self._access = source, files, access
        self.signatures = Signatures()
        with translate_errors(files.uris[0]):
            self._first = RangedFile(files.uris[0], access)
            self._first_opened = open_list_file(files.uris[0], self._first, source)
        self._schema = self._first_opened.schema
        for name, type_ in self._first_opened.refused.items():
            _LOG.warning(
                "--pairs %s: column %s is left out, because values of its type %s could run code",
                source.pairs,
                name,
                type_,
            )
        names = self._schema.names
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise UsageError(
                f"--pairs {source.pairs} has several columns with the same name: {', '.join(repeated)}; rename all but "
                "one"
            )
        self._has_masks = not (source.random_masks or source.is_own_mask)
        self._names_of_uris = [source.image_column, *([source.mask_column] if self._has_masks else [])]
        self._check_column("--image-column", source.image_column)
        if self._has_masks:
            self._check_column("--mask-column", source.mask_column)
        if source.key_column:
            self._check_column("--key-column", source.key_column)
        self.extra_columns = self._find_extra_columns()
        extra = extra_columns_schema(self.extra_columns)
        self._pairs_schema = pa.schema([*(field for field in SOURCE_PAIRS if field.name != "line"), *extra])
        self.numbers_masks = self._has_masks and not source.key_column

    def batches(self, known: Mapping[str, Slice]) -> Generator[PairBatch, None, None]:
        """Yield the pairs, see `PairSource.batches`.

        Raises:
            UsageError: a file cannot be read or has other columns, a line has no URI, or the list has no rows.
        """
        first = True
        for batch in in_batches(self._pieces(known), self._source):
            if first and batch.pairs.num_rows:
                uris = pa.chunked_array([[self._source.pairs]])
                check_access(self._access, uris, batch.pairs["image_uri"], batch.pairs["mask_uri"])
                first = False
            yield batch

    @property
    def is_signed(self) -> bool:
        """Whether the first lines have signed URLs; reads them."""
        with translate_errors(self._files.uris[0]):
            for lines in self._first_opened.lines(0):
                return any(are_signed(lines.table[name].cast(pa.string())) for name in self._names_of_uris)
        return False

    def _read_signatures(self, unchanged: Mapping[str, RangedFile], ends: Mapping[str, int]) -> None:
        """Read the signed URLs of lines that are planned: the plan has them without signatures."""
        for uri, ranged in unchanged.items():
            start, file = 0, self._open(uri, ranged)
            with translate_errors(uri):
                for lines in file.lines(0):
                    for name in self._names_of_uris:
                        self._uris("--pairs", name, lines.table, file, start)
                    start += lines.table.num_rows
                    if start >= ends[uri]:
                        break

    def _pieces(self, known: Mapping[str, Slice]) -> Generator[Piece, None, None]:
        empty, image_bytes, mask_bytes = not known, 0, 0
        unchanged = find_unchanged(self._files.uris, known, self._source, self._open_ranged)
        self.unchanged = frozenset(unchanged)
        starts = {uri: known[uri].end for uri in unchanged}
        if unchanged and self.is_signed:
            self._read_signatures(unchanged, starts)
        uris = [uri for uri in self._files.uris if not (uri in unchanged and known[uri].is_last)]
        for file in map_concurrently(
            lambda uri: self._open(uri, unchanged.get(uri)), uris, _OPEN_AHEAD, ahead=_OPEN_AHEAD
        ):
            uri, version = file.uri, slice_version(file.version, self._source)
            start = end = starts.get(uri, 0)
            with translate_errors(uri):
                for lines in file.lines(start):
                    pairs = self._pairs_of(lines, file, end)
                    start, end, empty = end, end + pairs.num_rows, False
                    yield Piece(pairs, Slice(uri, version, start, end, is_last=False))
            yield Piece(self._pairs_schema.empty_table(), Slice(uri, version, end, end, is_last=True))
            image_bytes, mask_bytes = image_bytes + file.image_bytes, mask_bytes + file.mask_bytes
            self.image_row_groups += file.row_groups
        if empty:
            raise UsageError(f"--pairs {self._source.pairs} has no rows; add a row for each pair")
        if image_bytes and (mask_bytes or not self._has_masks):
            self.image_and_mask_bytes = image_bytes, mask_bytes

    def _open_ranged(self, uri: str) -> RangedFile:
        with translate_errors(uri):
            return self._first if uri == self._files.uris[0] else RangedFile(uri, self._access)

    def _open(self, uri: str, ranged: RangedFile | None) -> ListFile:
        if uri == self._files.uris[0]:
            return self._first_opened
        with translate_errors(uri):
            file = open_list_file(uri, ranged or RangedFile(uri, self._access), self._source)
        if (file.schema.names, file.schema.types) != (self._schema.names, self._schema.types):
            raise UsageError(
                f"--pairs {uri} has other columns than {self._files.uris[0]}; give all files the same columns and types"
            )
        return file

    def _check_column(self, option: str, name: str) -> None:
        if name not in self._schema.names:
            has = ", ".join(self._schema.names)
            raise UsageError(f"{option} {name}: there is no such column; the list of pairs has {has}")
        type_ = self._schema.field(name).type
        try:
            pa.nulls(0, type_).cast(pa.string())
        except pa.ArrowException as error:
            raise UsageError(
                f"{option} {name} has type {type_} instead of string; give another column ({error})"
            ) from error

    def _find_extra_columns(self) -> list[pa.Field]:
        """Return the other columns with the types that they have after a round trip through Parquet."""
        source = self._source
        used = {source.image_column, source.key_column} | (set() if source.random_masks else {source.mask_column})
        extra = [field for field in self._schema if field.name not in used]
        if clashes := [field.name for field in extra if field.name in COLUMNS]:
            advice = ", or use --key-column key" if clashes == ["key"] else ""
            raise UsageError(
                f"--pairs {source.pairs} has columns with the names of output columns: {', '.join(clashes)}; rename "
                f"them{advice}"
            )
        plain = pa.schema([(field.name, _plain_type(field.type)) for field in extra])
        try:
            file = io.BytesIO()
            pq.write_table(plain.empty_table(), file)
            read = read_schema(file.getvalue())
        except pa.ArrowException as error:
            raise UsageError(
                f"--pairs {source.pairs} has a column that Parquet cannot store; remove it ({error})"
            ) from error
        return [pa.field(field.name, field.type) for field in read]

    def _pairs_of(self, lines: Lines, file: ListFile, start: int) -> pa.Table:
        """Return the pairs of consecutive lines; ``start`` is the number of the first line in its file."""
        source, table = self._source, lines.table
        images = self._uris("--image-column", source.image_column, table, file, start)
        masks = self._uris("--mask-column", source.mask_column, table, file, start) if self._has_masks else images
        if source.key_column:
            keys = self._strings("--key-column", source.key_column, table, file, start)
        else:
            keys = _default_keys(images, self._files.folder)
        image_version, mask_version = (file.version if name else "" for name in file.embedded)
        columns = {
            "key": keys,
            "image_uri": images,
            "mask_uri": masks,
            "mask_index": pa.repeat(pa.scalar(0, pa.int32()), table.num_rows),
            "image_version": pa.repeat(image_version, table.num_rows),
            "mask_version": pa.repeat(mask_version if self._has_masks else image_version, table.num_rows),
            "image_bytes": pa.repeat(lines.image_bytes, table.num_rows),
        }
        if self.extra_columns:
            values = {field.name: _plain_values(table[field.name]).cast(field.type) for field in self.extra_columns}
            columns[EXTRA_COLUMNS] = pa.table(values, pa.schema(self.extra_columns)).to_struct_array()
        return pa.table(columns, self._pairs_schema)

    def _strings(self, option: str, name: str, table: pa.Table, file: ListFile, start: int) -> pa.ChunkedArray:
        strings = table[name].cast(pa.string())
        if name == self._source.key_column:
            strings = without_signatures(strings)
        empty = pc.or_kleene(pc.is_null(strings), pc.equal(strings, ""))
        if (line := pc.index(empty, True).as_py()) >= 0:
            raise UsageError(f"{option} {name} has no value in {self._row(file, start + line)}; add the value")
        if file.may_have_nul and (line := pc.index(pc.match_substring(strings, "\0"), True).as_py()) >= 0:
            raise UsageError(f"{option} {name} has a NUL character in {self._row(file, start + line)}; remove it")
        return strings

    def _uris(self, option: str, name: str, table: pa.Table, file: ListFile, start: int) -> pa.ChunkedArray:
        """Return the URIs of a column as `storage.normalize_uri` does; relative ones are below the files' folder.

        Signed URLs are kept in ``signatures``, and returned without their signatures.
        """
        uris = self._strings(option, name, table, file, start)
        if name in file.embedded:
            return uris
        absolute = pc.match_substring_regex(uris, _ABSOLUTE)
        if any_absolute := pc.any(absolute).as_py():
            readable = pc.or_(pc.invert(absolute), pc.match_substring_regex(uris, _READABLE))
            if (line := pc.index(readable, False).as_py()) >= 0:
                raise UsageError(
                    f"{option} {name}: {uris[line]} is not supported; use a path, or a URI without credentials such as "
                    "s3://bucket/key, gs://bucket/key, https://host/path or file:///path"
                )
        whole = pc.replace_substring_regex(uris, "^file://", "") if any_absolute else uris
        if any_absolute and pc.all(absolute).as_py():
            return self.signatures.add(whole)
        paths = uris
        if pc.any(pc.starts_with(paths, "./")).as_py():
            paths = pc.replace_substring_regex(paths, r"^(?:\./)+", "")
        below = pc.binary_join_element_wise(self._files.folder, paths, "/")
        return self.signatures.add(pc.if_else(absolute, whole, below))

    def _row(self, file: ListFile, line: int) -> str:
        """Return the number of a line, for an error."""
        of = f" of {file.uri}" if len(self._files.uris) > 1 else ""
        return f"row {line + 1:,}{of} ({'not counting the header' if file.uri.endswith('.csv') else 'numbered from 1'})"


def _default_keys(images: pa.ChunkedArray, folder: str) -> pa.ChunkedArray:
    """Return the image's path below ``folder``, or else its URI, without the suffix; a URL's query stays."""
    below = pc.starts_with(images, f"{folder}/")
    paths = pc.utf8_slice_codeunits(images, len(folder) + 1)
    if not pc.all(below).as_py():
        paths = pc.if_else(below, paths, images)
    has_query = pc.match_substring_regex(images, r"^https?://[^?]*\?")
    if not pc.any(has_query).as_py():
        return without_suffix(paths)
    queries = pc.if_else(has_query, pc.replace_substring_regex(paths, r"^[^?]*", ""), "")
    places = pc.if_else(has_query, pc.replace_substring_regex(paths, r"(?s)\?.*$", ""), paths)
    return pc.binary_join_element_wise(without_suffix(places), queries, "")


def _plain_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _plain_values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    plain = _plain_type(column.type)
    return column if plain == column.type else column.cast(plain)


def open_list_file(uri: str, file: RangedFile, source: Source) -> ListFile:
    """Return the file with the reader for its suffix; raises the errors of `ListFile.lines`."""
    match uri.rpartition(".")[2]:
        case "parquet":
            return ParquetList(uri, file, source)
        case "csv":
            return CsvList(uri, file)
        case "jsonl":
            return JsonlList(uri, file)
        case suffix:
            raise NotImplementedError(f"there is no reader for .{suffix} files")
