"""Parquet files that run code in a process that converts their values, where Ray is imported."""

import io
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.parquet_file import ParquetFile

PICKLED = "ray.data.arrow_pickled_object"


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def __reduce__(self):
        return open, (self._path, "w")


def extension(name: str, storage: pa.DataType, *, type_name: str = PICKLED, metadata: str = "") -> pa.Field:
    """Return a field that Arrow reads as an extension type where this type is registered."""
    return pa.field(name, storage, metadata={"ARROW:extension:name": type_name, "ARROW:extension:metadata": metadata})


def pickled_column(canary: Path, rows: int, nesting: str = "") -> tuple[pa.Field, pa.Array]:
    """Return a column whose conversion to Python's values creates ``canary``.

    Args:
        canary: path of the file.
        rows: number of rows.
        nesting: type that contains the values, or several, joined by dots.
    """
    values = pa.array([pickle.dumps(Payload(canary))] * rows, pa.large_binary())
    field = extension("x", values.type)
    offsets = pa.array(range(rows + 1), pa.int32())
    for kind in filter(None, nesting.split(".")):
        match kind:
            case "list":
                type_ = pa.list_(field)
                values = pa.ListArray.from_arrays(offsets, values, type=type_)
            case "large_list":
                type_ = pa.large_list(field)
                values = pa.LargeListArray.from_arrays(offsets.cast(pa.int64()), values, type=type_)
            case "fixed":
                type_ = pa.list_(field, 1)
                values = pa.FixedSizeListArray.from_arrays(values, type=type_)
            case "struct":
                type_ = pa.struct([field])
                values = pa.StructArray.from_arrays([values], fields=[field])
            case "map":
                type_ = pa.map_(pa.string(), field)
                values = pa.MapArray.from_arrays(offsets, pa.array(["k"] * rows), values, type=type_)
        field = pa.field("x", type_)
    return field, values


def encoded(table: pa.Table, **options: object) -> bytes:
    """Return a table as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


def with_pickled(data: bytes, column: str, canary: Path, nesting: str = "") -> bytes:
    """Return a Parquet file in which a column, new or not, has pickled values."""
    table = ParquetFile(data).read()
    field, values = pickled_column(canary, table.num_rows, nesting)
    field = field.with_name(column)
    at = table.schema.get_field_index(column)
    table = table.append_column(field, values) if at < 0 else table.set_column(at, field, values)
    return encoded(table)
