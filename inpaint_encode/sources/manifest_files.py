"""Reads the files of a manifest: Parquet, CSV and JSONL.

Parquet may hold images and masks. Their bytes are not read here: the lines get the URIs of the rows, see `part_uris`.
Other columns of bytes or images are left out. CSV has no types, so all its columns are strings. In JSONL a string that
looks like a time stays a string.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.stores import storage
from inpaint_encode.stores.access import Access
from inpaint_encode.stores.ranged_file import RangedFile

from .pairs import SYSTEM_POOL
from .parquet import MAX_ROW_GROUP_BYTES, contains_bytes, is_image_type
from .part_uris import row_uris

_MAX_LINE_BYTES = 2**24
_CSV = pa.csv.ParseOptions(newlines_in_values=True)
_QUOTED = re.compile(rb'(?:(?<=[,\r\n])|\A)"(?:[^"]|"")*+"')
_UNCLOSED = re.compile(rb'(?:[,\r\n]|\A)"')
_FIRST_INEXACT_FLOAT = 2.0**53
_LONG_INTEGER = re.compile(rb"[:,\[]\s*-?\d{16,}\s*[,}\]]")
_VERSIONS = pa.schema([("image_version", pa.string()), ("mask_version", pa.string()), ("image_bytes", pa.int64())])


class ManifestLines(NamedTuple):
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


def read_manifest_file(uri: str, source: Source, access: Access) -> ManifestLines:
    """Read one file.

    Raises:
        UsageError: a quotation mark is not closed, or a row group is too large.
        ValueError, pa.ArrowException: the file is damaged, or a value cannot be read without loss.
        OSError: the file cannot be read.
    """
    match uri.rpartition(".")[2]:
        case "parquet":
            return _read_parquet(uri, source, access)
        case "csv":
            table = _read_csv(uri, storage.read(uri, access).data)
        case _:
            table = _read_jsonl(storage.read(uri, access).data)
    return _without_embedded_images(table)


def _without_embedded_images(table: pa.Table) -> ManifestLines:
    columns = [pa.repeat(pa.scalar("" if f.type == pa.string() else 0, f.type), table.num_rows) for f in _VERSIONS]
    return ManifestLines(table, pa.table(columns, _VERSIONS))


def _read_parquet(uri: str, source: Source, access: Access) -> ManifestLines:
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
    return ManifestLines(table, versions_table, sum(image_sizes), sum(mask_sizes), len(groups))


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
