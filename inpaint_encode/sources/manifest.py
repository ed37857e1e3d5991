"""Pairs of a manifest (Parquet, CSV or JSONL): each line names an image and a mask, and has columns for the output.

A value of another column is copied to the pair's row with its Arrow type. Of a dictionary the value is copied, of an
extension type the storage. CSV has no types, so all its columns are strings. In JSONL a string that looks like a time
stays a string. Parquet may hold images and masks. Their bytes are not read here: the lines get the URIs of the rows,
see `part_uris`. Other columns of bytes or images are left out.
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
from inpaint_encode.schema import COLUMNS, EXTRA_COLUMNS
from inpaint_encode.settings import Source
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access
from inpaint_encode.stores.ranged_file import RangedFile

from .pairs import SYSTEM_POOL, FoundPairs, PairFiles, check_unique_keys
from .parquet import MAX_ROW_GROUP_BYTES, contains_bytes, is_image_type
from .part_uris import row_uris, without_suffix
from .random_masks import with_random_masks

_ABSOLUTE = r"^(?:[A-Za-z][A-Za-z0-9+.-]*://|/)"
_READABLE = r"^(?:(?:s3|gs|https?)://[^/@]+/|file:///|/)"
_MAX_LINE_BYTES = 2**24
_CSV = pa.csv.ParseOptions(newlines_in_values=True)
_QUOTED = re.compile(rb'(?:(?<=[,\r\n])|\A)"(?:[^"]|"")*+"')
_UNCLOSED = re.compile(rb'(?:[,\r\n]|\A)"')
_FIRST_INEXACT_FLOAT = 2.0**53
_LONG_INTEGER = re.compile(rb"[:,\[]\s*-?\d{16,}\s*[,}\]]")
_VERSIONS = pa.schema([("image_version", pa.string()), ("mask_version", pa.string()), ("image_bytes", pa.int64())])


class _Lines(NamedTuple):
    """The lines of one or more manifest files."""

    table: pa.Table
    """The columns of the file; of images, the URIs."""
    versions: pa.Table
    """``image_version, mask_version, image_bytes`` of each line's embedded images; bytes are the mean of the row group.
    Empty and 0 if the line has the URI of a file."""
    image_bytes: int = 0
    """Total of the embedded images."""
    mask_bytes: int = 0
    row_groups: int = 0
    """Number of row groups with embedded images."""


def from_manifest(source: Source, files: PairFiles, access: Access) -> FoundPairs:
    """Read the manifest; a line is a pair, or an image with its ``--random-masks``.

    Raises:
        UsageError: the manifest cannot be read or has no rows, a column is missing or has the name of an output
            column, a line has no URI or occurs twice, or a key is not unique.
    """
    table, versions, image_bytes, mask_bytes, row_groups = _read_files(source, files, access)
    images = _uri_column(table, "--image-column", source.image_column, files)
    no_mask_column = source.random_masks > 0 or source.is_own_mask
    masks = images if no_mask_column else _uri_column(table, "--mask-column", source.mask_column, files)
    image_numbers = _number_values(images)
    by_image = np.argsort(image_numbers, kind="stable")
    _check_repeated_lines(source, images, masks, image_numbers)
    index = _mask_index(image_numbers, by_image)
    if source.key_column:
        keys = _string_column(table, "--key-column", source.key_column, files)
    else:
        keys = _default_keys(images, index, files.folder)
    columns = {
        "key": keys,
        "image_uri": images,
        "mask_uri": masks,
        "mask_index": pa.array(index, pa.int32()),
        "image_version": versions["image_version"],
        "mask_version": versions["image_version" if no_mask_column else "mask_version"],
        "image_bytes": versions["image_bytes"],
    }
    used = {source.image_column, source.key_column} | (set() if source.random_masks else {source.mask_column})
    extra = _extra_columns(source.pairs, table, used)
    pairs = pa.table(columns | ({EXTRA_COLUMNS: extra.to_struct_array()} if extra.num_columns else {}))
    del table  # frees the columns of URIs before the keys are checked
    if not (np.diff(by_image) == 1).all():  # else save the copy
        pairs = pairs.take(by_image)
    pairs = with_random_masks(pairs, source) if source.random_masks else pairs
    advice = "make them unique" if source.key_column else "give a column with unique keys: --key-column"
    check_unique_keys(f"--pairs {source.pairs}", pairs, lambda some: some["image_uri"], advice)
    all_embedded = image_bytes and (mask_bytes or no_mask_column)
    return FoundPairs(
        pairs,
        objects_listed=files.objects_listed,
        image_row_groups=row_groups,
        image_and_mask_bytes=(image_bytes, mask_bytes) if all_embedded else None,
    )


def _read_files(source: Source, files: PairFiles, access: Access) -> _Lines:
    where = f"--pairs {source.pairs}"
    try:
        read = [_read_file(uri, source, access) for uri in files.uris]
        tables, versions, image_bytes, mask_bytes, row_groups = zip(*read, strict=True)
        table = pa.concat_tables(tables)
    except OSError as error:
        raise UsageError(
            f"{where} cannot be read: {error.strerror or error}; check the path and the credentials"
        ) from error
    except (pa.ArrowException, ValueError) as error:
        several = " or its files have different columns" if len(files.uris) > 1 else ""
        raise UsageError(f"{where} is not valid {files.suffix}{several}; correct it ({error})") from error
    if not table.num_rows:
        raise UsageError(f"{where} has no rows; add a row for each pair")
    names = table.column_names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"{where} has several columns with the same name: {', '.join(repeated)}; rename all but one")
    return _Lines(table, pa.concat_tables(versions), sum(image_bytes), sum(mask_bytes), sum(row_groups))


def _string_column(table: pa.Table, option: str, name: str, files: PairFiles) -> pa.ChunkedArray:
    if name not in table.column_names:
        has = ", ".join(table.column_names)
        raise UsageError(f"{option} {name}: there is no such column; the list of pairs has {has}")
    try:
        strings = table[name].cast(pa.string())
    except pa.ArrowException as error:
        raise UsageError(
            f"{option} {name} has type {table[name].type} instead of string; give another column ({error})"
        ) from error
    empty = pc.or_kleene(pc.is_null(strings), pc.equal(strings, ""))
    if (line := pc.index(empty, True).as_py()) >= 0:
        numbered = "numbered from 1 across all files" if len(files.uris) > 1 else "numbered from 1"
        if files.suffix == "csv":
            numbered = "not counting the header"
        raise UsageError(f"{option} {name} has no value in row {line + 1:,} ({numbered}); add the value")
    return strings


def _uri_column(table: pa.Table, option: str, name: str, files: PairFiles) -> pa.ChunkedArray:
    """Return the URIs of a column in the form of `storage.normalize_uri`; relative ones are below the files' folder."""
    uris = _string_column(table, option, name, files)
    absolute = pc.match_substring_regex(uris, _ABSOLUTE)
    readable = pc.or_(pc.invert(absolute), pc.match_substring_regex(uris, _READABLE))
    if (line := pc.index(readable, False).as_py()) >= 0:
        raise UsageError(
            f"{option} {name}: {uris[line]} is not supported; use a path, or a URI without credentials such as "
            "s3://bucket/key, gs://bucket/key, https://host/path or file:///path"
        )
    paths = uris
    if pc.any(pc.starts_with(paths, "./")).as_py():
        paths = pc.replace_substring_regex(paths, r"^(?:\./)+", "")
    relative = pc.binary_join_element_wise(files.folder, paths, "/")
    if not pc.any(absolute).as_py():
        return relative
    return pc.if_else(absolute, pc.replace_substring_regex(uris, "^file://", ""), relative)


def _number_values(strings: pa.ChunkedArray) -> NDArray[np.int64]:
    """Number the different strings in order of appearance; return the number of each string."""
    chunks = pc.dictionary_encode(strings, memory_pool=SYSTEM_POOL).chunks  # all have the same dictionary
    return np.concatenate([chunk.indices.to_numpy() for chunk in chunks]).astype(np.int64)


def _mask_index(image_numbers: NDArray[np.int64], by_image: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return for each line the number of earlier lines with its image; ``by_image`` sorts the lines by image."""
    images = image_numbers[by_image]
    starts = np.flatnonzero(np.diff(images, prepend=-1))
    counts = np.diff(np.append(starts, len(images)))
    index = np.empty(len(images), np.int32)
    index[by_image] = np.arange(len(images)) - np.repeat(starts, counts)
    return index


def _check_repeated_lines(
    source: Source, images: pa.ChunkedArray, masks: pa.ChunkedArray, image_numbers: NDArray[np.int64]
) -> None:
    if source.random_masks and source.key_column:
        return  # then the keys tell lines with the same image apart
    pairs = image_numbers << 32 | (image_numbers if masks is images else _number_values(masks))
    numbers, first, counts = np.unique(pairs, return_index=True, return_counts=True)
    if len(numbers) < len(pairs):
        line = int(first[counts > 1][0])
        advice = ", or give a column with unique keys: --key-column" if source.random_masks else ""
        pair = f"image {images[line]} is" if masks is images else f"{images[line]} and {masks[line]} are a pair"
        raise UsageError(
            f"--pairs {source.pairs}: {pair} in several rows; remove the repeated rows "
            f"({len(pairs) - len(numbers):,} in total){advice}"
        )


def _default_keys(images: pa.ChunkedArray, index: NDArray[np.int32], folder: str) -> pa.ChunkedArray:
    """Return the image's path below ``folder``, or else its URI, without the suffix.

    From the image's second mask on, its number is added. So adding a line at the end changes no key.
    """
    below = pc.starts_with(images, f"{folder}/")
    paths = pc.utf8_slice_codeunits(images, len(folder) + 1)
    if not pc.all(below).as_py():
        paths = pc.if_else(below, paths, images)
    stems = without_suffix(paths)
    if not index.any():
        return stems
    numbered = pc.binary_join_element_wise(stems, pa.array(index).cast(pa.string()), "/")
    return pc.if_else(pa.array(index > 0), numbered, stems)


def _extra_columns(uri: str, table: pa.Table, used: set[str]) -> pa.Table:
    """Return the columns that are not ``used``, with the types that they have after a round trip through Parquet."""
    extra = table.select([name for name in table.column_names if name not in used])
    if clashes := [name for name in extra.column_names if name in COLUMNS]:
        advice = ", or use --key-column key" if clashes == ["key"] else ""
        raise UsageError(
            f"--pairs {uri} has columns with the names of output columns: {', '.join(clashes)}; rename them{advice}"
        )
    if not extra.num_columns:
        return extra
    plain = pa.table({name: _plain_values(extra[name]) for name in extra.column_names})
    try:
        file = io.BytesIO()
        pq.write_table(plain.schema.empty_table(), file)
        read = pq.read_schema(pa.BufferReader(file.getvalue()))
        return plain.cast(pa.schema([(field.name, field.type) for field in read]))
    except pa.ArrowException as error:
        raise UsageError(f"--pairs {uri} has a column that Parquet cannot store; remove it ({error})") from error


def _plain_values(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if isinstance(column.type, pa.BaseExtensionType):
        return column.cast(column.type.storage_type)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _read_file(uri: str, source: Source, access: Access) -> _Lines:
    """Read one file.

    Raises:
        UsageError: a quotation mark is not closed, or a row group is too large.
        ValueError, pa.ArrowException: the file is damaged, or a value cannot be read without loss.
        OSError: the file cannot be read.
        NotImplementedError: no reader is written for the file's suffix.
    """
    match uri.rpartition(".")[2]:
        case "parquet":
            return _read_parquet(uri, source, access)
        case "csv":
            return _without_embedded_images(_read_csv(uri, storage.read(uri, access).data))
        case "jsonl":
            return _without_embedded_images(_read_jsonl(storage.read(uri, access).data))
        case suffix:
            raise NotImplementedError(f"there is no reader for .{suffix} files")


def _without_embedded_images(table: pa.Table) -> _Lines:
    columns = [pa.repeat(pa.scalar("" if f.type == pa.string() else 0, f.type), table.num_rows) for f in _VERSIONS]
    return _Lines(table, pa.table(columns, _VERSIONS))


def _read_parquet(uri: str, source: Source, access: Access) -> _Lines:
    opened = RangedFile(uri, access)
    file = pq.ParquetFile(opened)
    schema = file.schema_arrow
    sides = [source.image_column, "" if source.random_masks or source.is_own_mask else source.mask_column]
    sides = [name if name in schema.names and is_image_type(schema.field(name).type) else "" for name in sides]
    kept = [field for field in schema if field.name not in sides and not contains_bytes(field.type)]
    if not any(sides):  # then all of the file is read, in one request
        file = pq.ParquetFile(pa.BufferReader(storage.read(uri, access).data))
    batches = file.iter_batches(columns=[field.name for field in kept])  # read_table would need twice the memory
    table = pa.Table.from_batches(batches, pa.schema(kept)).combine_chunks(memory_pool=SYSTEM_POOL)
    pa.default_memory_pool().release_unused()  # the memory of the decoder, twice the table
    if not any(sides):
        return _without_embedded_images(table)
    rows = pa.array(np.arange(file.metadata.num_rows))
    for name in dict.fromkeys(filter(None, sides)):
        table = table.append_column(name, row_uris(uri, rows, name))
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    image_sizes, mask_sizes = ([_compressed_bytes(uri, group, side) for group in groups] for side in sides)
    means = [size // max(1, group.num_rows) for size, group in zip(image_sizes, groups, strict=True)]
    image_bytes = np.repeat(np.array(means, np.int64), [group.num_rows for group in groups])
    versions = [pa.repeat(opened.version if side else "", len(rows)) for side in sides]
    versions_table = pa.table([*versions, pa.array(image_bytes)], schema=_VERSIONS)
    return _Lines(table, versions_table, sum(image_sizes), sum(mask_sizes), len(groups))


def _compressed_bytes(uri: str, group: pq.RowGroupMetaData, name: str) -> int:
    """Return the compressed size of a column in a row group; 0 if ``name`` is empty."""
    columns = [group.column(number) for number in range(group.num_columns)]
    columns = [column for column in columns if name and f"{column.path_in_schema}.".startswith(f"{name}.")]
    if (size := sum(column.total_uncompressed_size for column in columns)) > MAX_ROW_GROUP_BYTES:
        raise UsageError(
            f"--pairs {uri}: column {name} has {size:,} bytes in one row group, which a worker reads as a whole; write "
            f"the file with row groups of at most {MAX_ROW_GROUP_BYTES:,} bytes, for example 100 rows"
        )
    return sum(column.total_compressed_size for column in columns)


def _read_csv(uri: str, data: bytes) -> pa.Table:
    if b'"' in data and _UNCLOSED.search(_QUOTED.sub(b"", data)):
        raise UsageError(f"--pairs {uri} ends inside a quoted value; close the quotation mark")
    read_options = pa.csv.ReadOptions(block_size=_MAX_LINE_BYTES)
    header = pa.csv.open_csv(pa.BufferReader(data), parse_options=_CSV, read_options=read_options).schema.names
    strings = pa.csv.ConvertOptions(column_types=dict.fromkeys(header, pa.string()))
    return pa.csv.read_csv(pa.BufferReader(data), read_options, _CSV, strings)


def _read_jsonl(data: bytes) -> pa.Table:
    read_options = pa.json.ReadOptions(block_size=_MAX_LINE_BYTES)
    table = pa.json.read_json(pa.BufferReader(data), read_options)
    for name in table.column_names:
        if _largest_float(table[name].combine_chunks()) >= _FIRST_INEXACT_FLOAT and _LONG_INTEGER.search(data):
            raise ValueError(
                f"column {name} has fractions and integers above 2^53, which a float cannot hold exactly; write these "
                "integers as strings"
            )
    schema = pa.schema([(field.name, _times_as_strings(field.type)) for field in table.schema])
    if schema.equals(pa.schema([(field.name, field.type) for field in table.schema])):
        return table
    parse_options = pa.json.ParseOptions(explicit_schema=schema)
    return pa.json.read_json(pa.BufferReader(data), read_options, parse_options).select(table.column_names)


def _largest_float(values: pa.Array) -> float:
    """Return the largest absolute value of all floats in a column and its nested values; 0 if there is none."""
    if pa.types.is_struct(values.type):
        return max(map(_largest_float, values.flatten()), default=0.0)
    if pa.types.is_list(values.type):
        return _largest_float(values.flatten())
    return float(pc.max(pc.abs(values)).as_py() or 0) if pa.types.is_floating(values.type) else 0.0


def _times_as_strings(type_: pa.DataType) -> pa.DataType:
    """Return the type with strings in place of timestamps, in nested types too."""
    if pa.types.is_struct(type_):
        return pa.struct([(field.name, _times_as_strings(field.type)) for field in type_])
    if pa.types.is_list(type_):
        return pa.list_(_times_as_strings(type_.value_type))
    return pa.string() if pa.types.is_timestamp(type_) else type_
