"""Pairs by a list of them: a Parquet, CSV or JSONL file, or several Parquet files, with columns to be carried along.

Parquet may hold images and masks themselves. Their bytes do not come here: the list then names rows, by
`inpaint_encode.sources.locators`, and other columns of bytes or of images are not carried. A value of another column
goes to the pair's row as it is, with its Arrow type; of dictionaries the values, of extension types the storage. CSV
has no types, so its columns are strings, and in JSONL what looks like a time is one too.
"""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import EXTRA_COLUMNS, data_schema
from inpaint_encode.settings import RowSettings, Source, SourceAccess
from inpaint_encode.stores import storage
from inpaint_encode.stores.ranged_file import RangedFile

from . import locators
from .files import PairFiles
from .found import FoundPairs
from .parquet import LARGEST_GROUP, has_bytes, holds_images
from .random_masks import with_random_masks

__all__ = ["from_manifest"]

_OURS = frozenset(data_schema(RowSettings(also_original=True, latent_mask="comfyui").model_dump()).names)
_LARGEST_LINE = 2**24
_ABSOLUTE = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/)"
_GOOD = r"^(?:(?:s3|gs|https?)://[^/@]+/|file:///|/)"


def from_manifest(source: Source, files: PairFiles, access: SourceAccess) -> FoundPairs:
    """Read the manifest; a line is a pair, or an image with its ``--random-masks``.

    Raises:
        UsageError: it cannot be read or has no lines, a column is missing or named like one of the output's, a line
            lacks a URI or comes twice, or a key is not unique.
    """
    table, about = _read(source, files, access)
    images = _uris(table, "--image-column", source.image_column, files.folder)
    alone = source.random_masks > 0 or source.is_own_mask
    masks = images if alone else _uris(table, "--mask-column", source.mask_column, files.folder)
    order = _order(images, masks)
    _refuse_repeated_lines(source, images, masks, order)
    index = order.mask_index()
    keys = _given_keys(table, source.key_column) if source.key_column else _default_keys(images, index, files.folder)
    columns = {
        "key": keys,
        "image_uri": images,
        "mask_uri": masks,
        "mask_index": pa.array(index, pa.int32()),
        "image_version": about["image_version"],
        "mask_version": about["image_version" if alone else "mask_version"],
        "image_bytes": about["image_bytes"],
    }
    used = {source.image_column, source.key_column} | (set() if source.random_masks else {source.mask_column})
    others = _carried(source.pairs, table, used)
    columns |= {EXTRA_COLUMNS: others.to_struct_array()} if others.num_columns else {}
    nothing = pa.array([], pa.string())
    pairs = order.applied(pa.table(columns))
    pairs = with_random_masks(pairs, source) if source.random_masks else pairs
    _refuse_shared_keys(source.pairs, source.key_column, pairs["key"], pairs["image_uri"])
    return FoundPairs(
        pairs,
        unpaired_images=nothing,
        unpaired_masks=nothing,
        ignored_files=0,
        listed=files.listed,
        bytes_listed=_bytes(about, alone),
        row_groups=pc.sum(about["groups"]).as_py(),
    )


def _read(source: Source, files: PairFiles, access: SourceAccess) -> tuple[pa.Table, pa.Table]:
    """The manifest's lines, with URIs where images were, and `_ABOUT` each line."""
    uri = source.pairs
    try:
        read = [_READERS[files.kind](uri, source, access) for uri in files.uris]
        table, about = (pa.concat_tables(tables) for tables in zip(*read, strict=True))
    except OSError as error:
        raise UsageError(
            f"--pairs {uri} cannot be read: {error.strerror or error}; check the path and the credentials"
        ) from error
    except (pa.ArrowException, ValueError) as error:
        raise UsageError(f"--pairs {uri} is no {' or '.join(_READERS)} of one table: {error}") from error
    if not table.num_rows:
        raise UsageError(f"--pairs {uri} has no lines; nothing is to be done")
    names = table.column_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--pairs {uri} has columns that are named alike: {', '.join(repeated)}; rename all but one")
    return table, about


_ABOUT = pa.schema(
    [
        ("image_version", pa.string()),
        ("mask_version", pa.string()),
        ("image_bytes", pa.int64()),
        ("mask_bytes", pa.int64()),
        ("groups", pa.int64()),
    ]
)
"""Of images and masks that are in the list themselves, the version of its file and their bytes, as a mean of the row
group; ``groups`` is the number of row groups, in the first line of a file."""


def _unlisted(lines: int) -> pa.Table:
    return pa.table([pa.repeat(pa.scalar("" if f.type == pa.string() else 0, f.type), lines) for f in _ABOUT], _ABOUT)


def _read_parquet(uri: str, source: Source, access: SourceAccess) -> tuple[pa.Table, pa.Table]:
    """A few lines at a time, since a decoder that is given all of them holds twice as much."""
    opened = RangedFile(uri, access)
    file = pq.ParquetFile(opened)
    schema = file.schema_arrow
    sides = [source.image_column, "" if source.random_masks or source.is_own_mask else source.mask_column]
    images = [name for name in sides if name in schema.names and holds_images(schema.field(name).type)]
    if not images:
        whole = pq.ParquetFile(pa.BufferReader(storage.read(uri, access).data))
        named = [field for field in schema if not has_bytes(field.type)]
        table = pa.Table.from_batches(whole.iter_batches(columns=[field.name for field in named]), pa.schema(named))
        return table, _unlisted(table.num_rows)
    others = [field.name for field in schema if field.name not in images and not has_bytes(field.type)]
    table = pa.Table.from_batches(file.iter_batches(columns=others), pa.schema([schema.field(n) for n in others]))
    numbers = pa.array(np.arange(file.metadata.num_rows))
    located = {name: locators.rows(uri, numbers, name) for name in images}
    table = pa.table({**{name: table[name] for name in others}, **located})
    return table, _about_rows(uri, file.metadata, opened.version, [name if name in images else "" for name in sides])


def _about_rows(uri: str, metadata: pq.FileMetaData, version: str, sides: list[str]) -> pa.Table:
    """`_ABOUT` the lines of a Parquet file; ``sides`` are its columns of images and of masks, or empty."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    counts = [group.num_rows for group in groups]
    sizes = [[_column_bytes(uri, group, side) // max(1, group.num_rows) for group in groups] for side in sides]
    number_of_groups = np.zeros(metadata.num_rows, np.int64)
    number_of_groups[:1] = len(groups)
    columns = [pa.repeat(version if side else "", metadata.num_rows) for side in sides]
    columns += [pa.array(np.repeat(np.array(size, np.int64), counts)) for size in sizes]
    return pa.table([*columns, pa.array(number_of_groups)], schema=_ABOUT)


def _column_bytes(uri: str, group: pq.RowGroupMetaData, side: str) -> int:
    columns = [group.column(number) for number in range(group.num_columns)]
    mine = [column for column in columns if side and (column.path_in_schema + ".").startswith(f"{side}.")]
    if (largest := sum(column.total_uncompressed_size for column in mine)) > LARGEST_GROUP:
        raise UsageError(
            f"--pairs {uri}: column {side} has {largest:,} bytes in one row group, and a worker reads it as a whole; "
            f"write the file with row groups of {LARGEST_GROUP:,} bytes at most, 100 rows are usual"
        )
    return sum(column.total_compressed_size for column in mine)


def _bytes(about: pa.Table, alone: bool) -> tuple[int, int] | None:
    """Of all images and of all masks; None where only URIs are there."""
    of_images, of_masks = (pc.sum(about[f"{side}_bytes"]).as_py() for side in ("image", "mask"))
    return (of_images, of_masks) if of_images and (of_masks or alone) else None


def _read_csv(uri: str, _source: Source, access: SourceAccess) -> tuple[pa.Table, pa.Table]:
    data = storage.read(uri, access).data
    if b'"' in data and _UNCLOSED.search(_QUOTED.sub(b"", data)):
        raise UsageError(f"--pairs {uri} ends inside a quoted value, which swallows lines; close its quotation mark")
    reading = {"parse_options": _LINES, "read_options": pa.csv.ReadOptions(block_size=_LARGEST_LINE)}
    header = pa.csv.open_csv(pa.BufferReader(data), **reading).schema.names
    options = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()))
    table = pa.csv.read_csv(pa.BufferReader(data), convert_options=options, **reading)
    return table, _unlisted(table.num_rows)


_LINES = pa.csv.ParseOptions(newlines_in_values=True)
_QUOTED = re.compile(rb'(?:(?<=[,\r\n])|\A)"(?:[^"]|"")*+"')
_UNCLOSED = re.compile(rb'(?:[,\r\n]|\A)"')


def _read_jsonl(uri: str, _source: Source, access: SourceAccess) -> tuple[pa.Table, pa.Table]:
    table = _parsed_jsonl(storage.read(uri, access).data)
    return table, _unlisted(table.num_rows)


def _parsed_jsonl(data: bytes) -> pa.Table:
    blocks = pa.json.ReadOptions(block_size=_LARGEST_LINE)
    table = pa.json.read_json(pa.BufferReader(data), read_options=blocks)
    for name in table.column_names:
        if _largest_float(table[name].combine_chunks()) >= _INEXACT and _LONG_INTEGER.search(data):
            raise ValueError(f"column {name} has fractions, and integers beyond 2^53 that a float changes; quote them")
    written = [(field.name, _as_written(field.type)) for field in table.schema]
    if pa.schema(written).equals(pa.schema([(field.name, field.type) for field in table.schema])):
        return table
    as_written = pa.json.ParseOptions(explicit_schema=pa.schema(written))
    again = pa.json.read_json(pa.BufferReader(data), read_options=blocks, parse_options=as_written)
    return again.select(table.column_names)


_INEXACT = 2.0**53
_LONG_INTEGER = re.compile(rb"[:,\[]\s*-?\d{16,}\s*[,}\]]")


def _largest_float(values: pa.Array) -> float:
    """The largest absolute value of all floats in a column, however deep; 0 if there is none."""
    if pa.types.is_struct(values.type):
        return max(map(_largest_float, values.flatten()), default=0.0)
    if pa.types.is_list(values.type):
        return _largest_float(values.flatten())
    return float(pc.max(pc.abs(values)).as_py() or 0) if pa.types.is_floating(values.type) else 0.0


def _as_written(of: pa.DataType) -> pa.DataType:
    """The type with strings in the place of times, however deep."""
    if pa.types.is_struct(of):
        return pa.struct([(field.name, _as_written(field.type)) for field in of])
    if pa.types.is_list(of):
        return pa.list_(_as_written(of.value_type))
    return pa.string() if pa.types.is_timestamp(of) else of


_READERS = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}


def _strings(table: pa.Table, option: str, name: str) -> pa.ChunkedArray:
    if name not in table.column_names:
        raise UsageError(f"{option} {name}: the manifest has no such column, it has {', '.join(table.column_names)}")
    try:
        strings = table[name].cast(pa.string())
    except pa.ArrowException as error:
        raise UsageError(f"{option} {name} is of type {table[name].type}, not of strings: {error}") from error
    empty = pc.or_kleene(pc.is_null(strings), pc.equal(strings, ""))
    if (line := pc.index(empty, True).as_py()) >= 0:
        raise UsageError(f"{option} {name} has no value in line {line} (the first is 0); give each line one")
    return strings


def _uris(table: pa.Table, option: str, name: str, folder: str) -> pa.ChunkedArray:
    """The column's URIs as `storage.normalise` spells them, relative ones put below ``folder``."""
    given = _strings(table, option, name)
    scheme = pc.match_substring_regex(given, _ABSOLUTE)
    good = pc.or_(pc.invert(scheme), pc.match_substring_regex(given, _GOOD))
    if (line := pc.index(good, False).as_py()) >= 0:
        raise UsageError(
            f"{option} {name}: {given[line]} cannot be read; only s3://, gs://, http://, https:// and file:// with a "
            "name after it and without credentials, and paths can"
        )
    if not pc.any(scheme).as_py():
        return _below(folder, given)
    return pc.if_else(scheme, pc.replace_substring_regex(given, "^file://", ""), _below(folder, given))


def _below(folder: str, paths: pa.ChunkedArray) -> pa.ChunkedArray:
    if pc.any(pc.starts_with(paths, "./")).as_py():
        paths = pc.replace_substring_regex(paths, r"^(?:\./)+", "")
    return pc.binary_join_element_wise(folder, paths, "/")


class _Order(NamedTuple):
    """The lines grouped by image, images and the lines of each in their order in the manifest."""

    lines: NDArray[np.int64]
    images: NDArray[np.int64]
    """Each line's image as a number, in the sorted order."""
    masks: NDArray[np.int64]

    def applied(self, table: pa.Table) -> pa.Table:
        """The table in this order, without a copy where it is so already."""
        return table if (np.diff(self.lines) == 1).all() else table.take(self.lines)

    def mask_index(self) -> NDArray[np.int32]:
        """How many lines with its image come before each line."""
        starts = np.flatnonzero(np.diff(self.images, prepend=-1))
        counts = np.diff(np.append(starts, len(self.images)))
        index = np.empty(len(self.lines), np.int32)
        index[self.lines] = np.arange(len(self.lines)) - np.repeat(starts, counts)
        return index


def _order(images: pa.ChunkedArray, masks: pa.ChunkedArray) -> _Order:
    image_codes, mask_codes = _numbered(images), _numbered(masks)
    lines = np.argsort(image_codes, kind="stable")
    return _Order(lines, image_codes[lines], mask_codes[lines])


def _numbered(strings: pa.ChunkedArray) -> NDArray[np.int64]:
    """Equal strings as equal numbers, in order of appearance."""
    chunks = strings.dictionary_encode().chunks  # of one dictionary
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]).astype(np.int64)


def _refuse_repeated_lines(source: Source, images: pa.ChunkedArray, masks: pa.ChunkedArray, order: _Order) -> None:
    if source.random_masks and source.key_column:
        return  # keys tell such lines apart
    pairs, first, counts = np.unique(order.images << 32 | order.masks, return_index=True, return_counts=True)
    if len(pairs) < len(order.lines):
        line = int(order.lines[first[counts > 1][0]])
        raise UsageError(
            f"--pairs {source.pairs}: {len(order.lines) - len(pairs):,} lines are there again, such as the one with "
            f"{images[line]} and {masks[line]}; leave each pair one line"
            + (", or tell them apart by --key-column" if source.random_masks else "")
        )


def _given_keys(table: pa.Table, name: str) -> pa.ChunkedArray:
    return _strings(table, "--key-column", name)


def _default_keys(images: pa.ChunkedArray, index: NDArray[np.int32], folder: str) -> pa.ChunkedArray:
    """The image's path below ``folder``, or else its URI, without the suffix; from its second mask on with a number.

    So a line that is added at the end changes no key.
    """
    below = pc.starts_with(images, f"{folder}/")
    paths = pc.utf8_slice_codeunits(images, len(folder) + 1)
    if not pc.all(below).as_py():
        paths = pc.if_else(below, paths, images)
    stems = locators.stem(paths)
    if not index.any():
        return stems
    numbered = pc.binary_join_element_wise(stems, pa.array(index).cast(pa.string()), "/")
    return pc.if_else(pa.array(index > 0), numbered, stems)


def _refuse_shared_keys(uri: str, key_column: str, keys: pa.ChunkedArray, images: pa.ChunkedArray) -> None:
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = keys.value_counts()
    shared = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    rivals = sorted(set(images.filter(pc.equal(keys, shared[0])).to_pylist()))
    advice = "make them unique" if key_column else "name a column of unique keys by --key-column"
    raise UsageError(
        f"--pairs {uri}: {len(shared):,} keys are shared, the first, {shared[0]}, by lines with "
        f"{' and '.join(rivals[:3])}; {advice}"
    )


def _carried(uri: str, table: pa.Table, used: set[str]) -> pa.Table:
    """The other columns, with the types that they have once they have been in Parquet."""
    others = table.select([name for name in table.column_names if name not in used])
    if clashes := [name for name in others.column_names if name in _OURS]:
        raise UsageError(
            f"--pairs {uri} has columns that are named like the output's own: {', '.join(clashes)}; rename them"
            + (", or give --key-column key" if clashes == ["key"] else "")
        )
    plain = {field.name: _plain(others[field.name]) for field in others.schema}
    try:
        return pa.table(plain).cast(_in_parquet(pa.table(plain).schema)) if plain else others
    except pa.ArrowException as error:
        raise UsageError(f"--pairs {uri} has a column that Parquet cannot hold: {error}") from error


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(column.type, pa.BaseExtensionType):
        return column.cast(column.type.storage_type)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _in_parquet(schema: pa.Schema) -> pa.Schema:
    file = io.BytesIO()
    pq.write_table(pa.schema([(field.name, field.type) for field in schema]).empty_table(), file)
    read = pq.read_schema(pa.BufferReader(file.getvalue()))
    return pa.schema([(field.name, field.type) for field in read])
