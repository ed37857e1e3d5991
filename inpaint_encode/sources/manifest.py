"""Pairs by a list of them: a Parquet, CSV or JSONL file, or several Parquet files, with columns to be carried along.

A value of another column goes to the pair's row as it is, with its Arrow type; of dictionaries the values, of extension
types the storage. CSV has no types, so its columns are strings, and in JSONL what looks like a time is one too.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode import storage
from inpaint_encode.errors import UsageError
from inpaint_encode.rows import CARRIED, data_schema
from inpaint_encode.settings import RowSettings, Source

from .found import FoundPairs, normalised

__all__ = ["from_manifest"]

_OURS = frozenset(data_schema(RowSettings(also_original=True, latent_mask="comfyui").model_dump()).names)
_LARGEST_LINE = 2**24
_SUFFIX = r"\.[^./]+$"
_ABSOLUTE = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/)"


@contextmanager
def _freed_at_once() -> Iterator[None]:
    """Arrow's own allocator keeps what is freed, here 150 MB of a million lines; the system's gives it back."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@_freed_at_once()
def from_manifest(source: Source) -> FoundPairs:
    """Read the manifest; a line is a pair.

    Raises:
        UsageError: it cannot be read or has no lines, a column is missing or named like one of the output's, a line
            lacks a URI or comes twice, or a key is not unique.
    """
    uri = normalised("--pairs", source.pairs)
    table, folder = _read(uri)
    images = _uris(table, "--image-column", source.image_column, folder)
    masks = _uris(table, "--mask-column", source.mask_column, folder)
    order = _order(images, masks)
    _refuse_repeated_lines(uri, images, masks, order)
    index = order.mask_index()
    keys = _given_keys(table, source.key_column) if source.key_column else _default_keys(images, index, folder)
    _refuse_shared_keys(uri, source.key_column, keys, images)
    unlisted = pa.repeat("", table.num_rows)
    columns = {
        "key": keys,
        "image_uri": images,
        "mask_uri": masks,
        "mask_index": pa.array(index, pa.int32()),
        "image_version": unlisted,
        "mask_version": unlisted,
        "image_bytes": pa.repeat(0, table.num_rows),
    }
    others = _carried(uri, table, {source.image_column, source.mask_column, source.key_column})
    columns |= {CARRIED: others.to_struct_array()} if others.num_columns else {}
    nothing = pa.array([], pa.string())
    pairs = order.applied(pa.table(columns))
    return FoundPairs(pairs, unpaired_images=nothing, unpaired_masks=nothing, ignored_files=0)


def _read(uri: str) -> tuple[pa.Table, str]:
    """The manifest's lines, and the folder that its relative URIs begin in."""
    try:
        if (suffix := uri.rpartition(".")[2]) in _READERS:
            table, folder = _READERS[suffix](storage.read(uri).data), uri.rpartition("/")[0]
        else:
            table, folder = _read_parts(uri), uri
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
    return table, folder


def _read_parts(prefix: str) -> pa.Table:
    """The Parquet files below a prefix, by name; those that begin with ``_`` or a dot are somebody's notes."""
    paths = [path for listed in storage.list_objects(prefix) for path in listed.paths if path.endswith(".parquet")]
    parts = sorted(path for path in paths if path.rpartition("/")[2][0] not in "_.")
    if not parts:
        raise UsageError(
            f"--pairs {prefix} is neither a .parquet, .csv or .jsonl file nor a prefix with .parquet files below it"
        )
    return pa.concat_tables([_read_parquet(storage.read(f"{prefix}/{path}").data) for path in parts])


def _read_parquet(data: bytes) -> pa.Table:
    """A few lines at a time, since a decoder that is given all of them holds twice as much."""
    file = pq.ParquetFile(pa.BufferReader(data))
    return pa.Table.from_batches(file.iter_batches(), file.schema_arrow)


def _read_csv(data: bytes) -> pa.Table:
    header = pa.csv.open_csv(pa.BufferReader(data), parse_options=_LINES).schema.names
    options = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()))
    return pa.csv.read_csv(pa.BufferReader(data), parse_options=_LINES, convert_options=options)


_LINES = pa.csv.ParseOptions(newlines_in_values=True)


def _read_jsonl(data: bytes) -> pa.Table:
    blocks = pa.json.ReadOptions(block_size=_LARGEST_LINE)
    table = pa.json.read_json(pa.BufferReader(data), read_options=blocks)
    times = [(field.name, pa.string()) for field in table.schema if pa.types.is_timestamp(field.type)]
    if not times:
        return table
    as_written = pa.json.ParseOptions(explicit_schema=pa.schema(times))
    again = pa.json.read_json(pa.BufferReader(data), read_options=blocks, parse_options=as_written)
    return again.select(table.column_names)


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
    good = pc.or_(pc.invert(scheme), pc.match_substring_regex(given, r"^(?:s3://[^/@]+/|file:///|/)"))
    if (line := pc.index(good, False).as_py()) >= 0:
        raise UsageError(f"{option} {name}: {given[line]} cannot be read; only s3://, file:// and paths can")
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


def _refuse_repeated_lines(uri: str, images: pa.ChunkedArray, masks: pa.ChunkedArray, order: _Order) -> None:
    pairs, first, counts = np.unique(order.images << 32 | order.masks, return_index=True, return_counts=True)
    if len(pairs) < len(order.lines):
        line = int(order.lines[first[counts > 1][0]])
        raise UsageError(
            f"--pairs {uri}: {len(order.lines) - len(pairs):,} lines are there again, such as the one with "
            f"{images[line]} and {masks[line]}; leave each pair one line"
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
    stems = pc.replace_substring_regex(paths, _SUFFIX, "")
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
