"""Tables as Parquet files: how rows are laid out, compressed and read back."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.errors import JobFailed
from inpaint_encode.schema import EXTRA_COLUMNS, REJECTS, TENSORS, is_packed, unpack_mask
from inpaint_encode.stores.ranged_file import Changed

__all__ = [
    "damage_named",
    "data_groups",
    "data_table",
    "parquet_bytes",
    "parquet_file",
    "read_data",
    "rejects_table",
    "tensor_array",
]


def data_table(encoded: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the rows of the data file: the `ENCODED` rows without an error, tensors in their columns."""
    rows = encoded.filter(encoded["error"].is_null())
    shapes = rows["samples_shape"].to_pylist()
    plane = [[1, *shape[1:]] for shape in shapes]
    tensors = {"noise_mask": _mask_array(rows, schema.field("noise_mask"))}
    for name, its_shapes in (("samples", shapes), ("original_samples", shapes), ("latent_mask", plane)):
        if name in schema.names:
            tensors[name] = _values_array(rows[name], its_shapes, schema.field(name))
    extra = rows.select([EXTRA_COLUMNS]).flatten() if EXTRA_COLUMNS in rows.column_names else rows.select([])
    own = dict(zip([name.removeprefix(f"{EXTRA_COLUMNS}.") for name in extra.column_names], extra.columns, strict=True))
    columns = {name: rows[name] for name in rows.column_names} | tensors | own
    return pa.table([columns[name] for name in schema.names], schema=schema)


def data_groups(encoded: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield `data_table` a row group at a time: fresh memory for a chunk's masks costs as much as writing them does."""
    rows = encoded.filter(encoded["error"].is_null())
    pixels = pc.max(pc.multiply(rows["height"].cast(pa.int64()), rows["width"])).as_py() or 1
    size = _rows_in_a_group(pixels)
    for start in range(0, max(1, rows.num_rows), size):
        yield data_table(rows.slice(start, size), schema)


def _values_array(column: pa.ChunkedArray, shapes: Sequence[Sequence[int]], field: pa.Field) -> pa.Array:
    """Raw values of the type of ``field`` in its layout."""
    dtype = np.dtype(field.type.field("data").type.value_type.to_pandas_dtype())
    return tensor_array([np.frombuffer(value.as_buffer(), dtype) for value in column], shapes, field)


def _mask_array(encoded: pa.Table, field: pa.Field) -> pa.Array:
    """The masks of `ENCODED` rows in the layout of ``field``."""
    sizes = list(zip(encoded["height"].to_pylist(), encoded["width"].to_pylist(), strict=True))
    shapes = [[1, *size] for size in sizes]
    if is_packed(field.type):
        bits = encoded["noise_mask"].combine_chunks()
        return pa.StructArray.from_arrays([bits, pa.array(shapes, pa.list_(pa.int64()))], fields=list(field.type))
    masks = [unpack_mask(bits.as_buffer(), *size) for bits, size in zip(encoded["noise_mask"], sizes, strict=True)]
    return tensor_array(masks, shapes, field)


def rejects_table(encoded: pa.Table) -> pa.Table:
    """Return the rows of the rejects file: the `ENCODED` rows with an error."""
    rows = encoded.filter(encoded["error"].is_valid())
    stages = [error.partition(".")[0] for error in rows["error"].to_pylist()]
    return rows.append_column("stage", pa.array(stages, pa.string())).select(REJECTS.names).cast(REJECTS)


def tensor_array(values: Sequence[NDArray[Any]], shapes: Sequence[Sequence[int]], field: pa.Field) -> pa.Array:
    """Column of ``field`` whose row ``i`` holds ``values[i]``, flattened, with ``shapes[i]``."""
    value_type = field.type.field("data").type.value_type
    flat = np.concatenate(values) if values else np.empty(0, value_type.to_pandas_dtype())
    offsets = np.cumsum([0, *(value.size for value in values)], dtype=np.int64)
    data = pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat, value_type))
    return pa.StructArray.from_arrays([data, pa.array(shapes, pa.list_(pa.int64()))], fields=list(field.type))


def parquet_bytes(table: pa.Table) -> bytes:
    """Encode ``table`` as one Parquet file in memory, so that it can be committed by one call."""
    return parquet_file([table], table.schema)


def parquet_file(groups: Iterable[pa.Table], schema: pa.Schema) -> bytes:
    """Encode tables of ``schema`` as one Parquet file in memory; each begins a row group.

    zstd and page checksums throughout; byte-stream split for float32 samples alone, since DuckDB cannot read it on
    float16. No dictionary for masks: it would save a kilobyte of a row's thirty, and costs a third of a row's writing.
    """
    strings = [field.name for field in schema if field.type == pa.string()]
    out = io.BytesIO()
    with pq.ParquetWriter(
        out,
        schema,
        compression="zstd",
        use_dictionary=strings,
        use_byte_stream_split=[f"{name}.data.list.element" for name in _float32_tensors(schema)] or False,
        write_statistics=strings,
        write_page_checksum=True,
    ) as writer:
        for table in groups:
            writer.write_table(table, row_group_size=_group_size(table))
    return out.getvalue()


_GROUP_PIXELS = 2**23
"""Of the masks in a row group. What the writer holds for a group grows with every value of a tensor, and who wants one
row reads a group, however masks are stored."""


def _group_size(table: pa.Table) -> int:
    if "noise_mask" not in table.column_names or not table.num_rows:
        return max(1, int(table.num_rows))
    mask = table["noise_mask"]
    if is_packed(mask.type):
        pixels = pc.multiply(pc.binary_length(pc.struct_field(mask, "bits")), 8)
    else:
        pixels = pc.list_value_length(pc.struct_field(mask, "data"))
    return _rows_in_a_group(pc.max(pixels).as_py())


def _rows_in_a_group(pixels: int) -> int:
    return max(1, _GROUP_PIXELS // max(1, pixels))


def _float32_tensors(schema: pa.Schema) -> list[str]:
    """Columns whose values a byte-stream split makes smaller; a packed mask has no ``data``."""
    storages = {name: schema.field(name).type for name in TENSORS if name in schema.names}
    wanted = pa.large_list(pa.float32())
    return [name for name, kind in storages.items() if not is_packed(kind) and kind.field("data").type == wanted]


def read_data(data: bytes, schema: pa.Schema) -> pa.Table:
    """Read a data file as plain structs, whether or not Ray's tensor type is registered in this process."""
    table = pq.read_table(pa.BufferReader(data), page_checksum_verification=True)
    columns = [column.combine_chunks() for column in table.select(schema.names).columns]
    plain = [column.storage if isinstance(column, pa.ExtensionArray) else column for column in columns]
    return pa.table([column.cast(field.type) for column, field in zip(plain, schema, strict=True)], schema=schema)


@contextmanager
def damage_named(uri: str) -> Iterator[None]:
    """Say which file it is that cannot be parsed.

    Raises:
        JobFailed: in the place of what Arrow and JSON raise on wrong bytes.
        OSError: of the same kind as what the store said.
    """
    try:
        yield
    except Changed:
        raise
    except OSError as error:
        if error.errno:
            raise type(error)(error.errno, f"{uri}: {error.strerror}") from error
        raise JobFailed(_not_whole(uri, error)) from error
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise JobFailed(_not_whole(uri, error)) from error


def _not_whole(uri: str, error: Exception) -> str:
    return f"{uri} is not whole ({str(error).strip()}); `inpaint-encode verify OUTPUT --repair` removes it"
