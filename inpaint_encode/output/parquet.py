"""Tables as Parquet files in memory, and back."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inpaint_encode.errors import JobFailed
from inpaint_encode.parquet_file import read_table
from inpaint_encode.schema import PACKED_MASK, TENSORS
from inpaint_encode.stores.ranged_file import Changed


def parquet_bytes(table: pa.Table) -> bytes:
    """Encode ``table`` as one Parquet file of one row group."""
    return parquet_file([table], table.schema)


def parquet_file(groups: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """Encode tables as one Parquet file in memory, each as a row group, so that one request can write it."""
    out = io.BytesIO()
    with open_writer(out, schema) as writer:
        for table in groups:
            write_row_group(writer, table)
    return out.getvalue()


def open_writer(out: io.BytesIO, schema: pa.Schema) -> pq.ParquetWriter:
    """Open a writer with the compression and the encodings of data files.

    Compression is zstd, with page checksums. Only float32 tensors use the byte-stream split: DuckDB cannot read it on
    float16. Masks have no dictionary: it would save a kilobyte of a row's thirty, and cost a third of its writing.
    """
    strings = [field.name for field in schema if field.type == pa.string()]
    float32 = pa.large_list(pa.float32())
    tensors = {name: schema.field(name).type for name in TENSORS if name in schema.names}
    split = [name for name, kind in tensors.items() if kind != PACKED_MASK and kind.field("data").type == float32]
    return pq.ParquetWriter(
        out,
        schema,
        compression="zstd",
        use_dictionary=strings,
        use_byte_stream_split=[f"{name}.data.list.element" for name in split] or False,
        write_statistics=strings,
        write_page_checksum=True,
    )


def write_row_group(writer: pq.ParquetWriter, table: pa.Table) -> None:
    """Write a table as one row group."""
    writer.write_table(table, row_group_size=max(1, table.num_rows))


def read_data(data: bytes, schema: pa.Schema) -> pa.Table:
    """Read a data file: exactly the columns and types of ``schema``."""
    columns = read_table(data, schema.names, page_checksum_verification=True).combine_chunks().columns
    return pa.table([column.cast(field.type) for column, field in zip(columns, schema, strict=True)], schema=schema)


def read_parquet(uri: str, data: bytes, schema: pa.Schema) -> pa.Table:
    """Read a file of the job's own: exactly the columns and types of ``schema``.

    Raises:
        JobFailed: it is damaged, or has other columns.
    """
    with translate_errors(uri):
        table = read_table(data, schema.names, page_checksum_verification=True).cast(schema)
        if "encoded" in schema.names:
            check_counts(table, schema)
        return table


_OPTIONAL = frozenset({"group_rows", "group_bytes", "footer_bytes", "key_hashes", "counters", "fatal"})
"""Columns of receipts that may be null."""


def check_counts(table: pa.Table, schema: pa.Schema) -> None:
    """Check the values of a table that has counts of chunks, or keys: receipts and the index.

    Args:
        table: columns of ``schema``.
        schema: `inpaint_encode.schema.RECEIPT`, or one of the index, whose values are never null.

    Raises:
        ValueError: a value is null or negative, or a name is none of a chunk.
    """
    for name, column in zip(table.column_names, table.columns, strict=True):
        is_optional = name in _OPTIONAL and "fatal" in schema.names
        if pa.types.is_map(column.type):
            values = [column, *(part for chunk in column.chunks for part in (chunk.keys, chunk.items))]
        else:
            values = [column, pc.list_flatten(column)] if pa.types.is_list(column.type) else [column]
        if any(one.null_count for one in values) and not (
            is_optional and not any(one.null_count for one in values[1:])
        ):
            raise ValueError(f"column {name} has nulls")
        if any(pa.types.is_signed_integer(one.type) and (pc.min(one).as_py() or 0) < 0 for one in values):
            raise ValueError(f"column {name} has negative numbers")
    names = set(table.column_names)
    if "chunk" in names and pa.types.is_string(table["chunk"].type):
        matches = pc.match_substring_regex(table["chunk"], r"^\d{6}-\d{5}$")
        if not pc.all(matches, min_count=0).as_py():
            raise ValueError("column chunk has names that no chunk has")
    too_large = names >= {"footer_bytes", "data_bytes"} and pc.greater(table["footer_bytes"], table["data_bytes"])
    if too_large and pc.any(too_large, min_count=0).as_py():
        raise ValueError("column footer_bytes has numbers larger than the file")


@contextmanager
def translate_errors(uri: str) -> Iterator[None]:
    """Name the file in the errors of the block.

    Raises:
        JobFailed: Arrow or JSON cannot parse the file.
        OSError: the store's error, of the same class.
    """
    try:
        yield
    except Changed:
        raise
    except OSError as error:
        if error.errno:
            raise type(error)(error.errno, f"{uri}: {error.strerror}") from error
        raise JobFailed(_damaged(uri, error)) from error
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise JobFailed(_damaged(uri, error)) from error


def _damaged(uri: str, error: Exception) -> str:
    if "/_plan/" in uri:
        remedy = "`inpaint-encode verify OUTPUT --repair` rebuilds it"
    else:
        remedy = "`inpaint-encode verify OUTPUT --repair` removes it; in an export, use export with --overwrite"
    return f"{uri} is damaged ({(str(error).strip().splitlines() or [''])[0]}); {remedy}"
