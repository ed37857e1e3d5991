"""Tables as Parquet files in memory, and back."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.errors import JobFailed
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
    """Read a data file as plain structs, whether or not Ray's tensor type is registered in this process."""
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    columns = [column.combine_chunks() for column in table.select(schema.names).columns]
    plain = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in columns]
    return pa.table([column.cast(field.type) for column, field in zip(plain, schema, strict=True)], schema=schema)


def read_parquet(uri: str, data: bytes, schema: pa.Schema) -> pa.Table:
    """Read a file of the job's own: exactly the columns and types of ``schema``.

    Raises:
        JobFailed: it is damaged, or has other columns.
    """
    with translate_errors(uri):
        return pq.read_table(pa.BufferReader(data), columns=schema.names, page_checksum_verification=True).cast(schema)


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
