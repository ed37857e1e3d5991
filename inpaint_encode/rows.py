"""Every table that the job makes: what is written, and what travels between its stages.

Open this file to know what is in the output. A *pair* becomes a *decoded* row, then an *encoded* row, then a
row of the data file, or a row of the rejects file if its ``error`` is set on the way. Between stages a whole
chunk is one Ray row (`fold`, `unfold`), so that Ray can neither split a chunk nor merge two.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

__all__ = [
    "CARRIED",
    "DECODED",
    "ENCODED",
    "FOOTER_KEY",
    "PAIRS",
    "RECEIPT",
    "REJECTS",
    "TENSORS",
    "WORK",
    "Room",
    "Tensors",
    "carrying",
    "data_groups",
    "data_schema",
    "data_table",
    "fold",
    "is_packed",
    "pack_mask",
    "packed_field",
    "parquet_bytes",
    "parquet_file",
    "read_data",
    "rejects_table",
    "table_of",
    "tensor_array",
    "unfold",
    "unpack_mask",
]

FOOTER_KEY = b"inpaint_encode"
"""Key of the JSON in every data file's metadata that says how its rows were made."""

TENSORS = ("samples", "original_samples", "noise_mask", "latent_mask")
"""Columns of the data files that hold an array of any shape; the second and the last only where they were asked for."""

CARRIED = "carried"
"""Column that a plan and the tables between stages have besides if the source has columns of its own: a struct of them,
in which any names are allowed that the data files do not have already."""

PAIRS = pa.schema(
    [
        ("chunk", pa.int64()),
        ("key", pa.string()),
        ("image_uri", pa.string()),
        ("mask_uri", pa.string()),
        ("mask_index", pa.int32()),
        ("image_version", pa.string()),
        ("mask_version", pa.string()),
        ("encode", pa.bool_()),
    ]
)
"""The plan: which pair is in which chunk, the versions that the listing saw (empty where nothing was listed), and
whether the pair is to be encoded or its row kept from the chunk's last generation. Pairs of one image are neighbours.
A null key stands for a chunk that has lost all its pairs."""

WORK = pa.schema([("chunk", pa.int64()), ("generation", pa.int32()), ("part", pa.string()), ("keep", pa.bool_())])
"""One Ray row, one chunk: where its plan is, and whether the rows that need no encoding are to be kept."""

_ABOUT = pa.schema([*WORK, ("counters", pa.map_(pa.string(), pa.float64())), ("fatal", pa.string())])

_SOURCE = [
    pa.field("key", pa.string()),
    pa.field("image_uri", pa.string()),
    pa.field("mask_uri", pa.string()),
    pa.field("mask_index", pa.int32()),
    pa.field("image_version", pa.string()),
    pa.field("mask_version", pa.string()),
]
_GEOMETRY = [
    pa.field("source_height", pa.int32()),
    pa.field("source_width", pa.int32()),
    pa.field("resized_height", pa.int32()),
    pa.field("resized_width", pa.int32()),
    pa.field("crop_top", pa.int32()),
    pa.field("crop_left", pa.int32()),
]
_SIZE = [pa.field("height", pa.int32()), pa.field("width", pa.int32())]
_ERROR = [pa.field("error", pa.string()), pa.field("message", pa.string())]

DECODED = pa.schema([*_SOURCE, *_GEOMETRY, *_SIZE, ("pixels", pa.large_binary()), ("mask", pa.large_binary()), *_ERROR])
"""Cropped ``pixels`` as uint8 ``[height, width, 3]`` and the ungrown ``mask`` as packed bits. A row without pixels and
without an error has those of the last row that has any: another mask of the same image."""

ENCODED = pa.schema(
    [
        *_SOURCE,
        *_GEOMETRY,
        *_SIZE,
        ("samples", pa.large_binary()),
        ("samples_shape", pa.list_(pa.int64())),
        ("original_samples", pa.large_binary()),
        ("noise_mask", pa.large_binary()),
        ("latent_mask", pa.large_binary()),
        ("mask_coverage", pa.float32()),
        ("precision", pa.string()),
        ("tiled", pa.bool_()),
        *_ERROR,
    ]
)
"""``samples``, ``original_samples`` of the same shape and ``latent_mask`` of one channel as raw values of the stored
type, the grown ``noise_mask`` as packed bits."""

REJECTS = pa.schema(
    [
        ("key", pa.string()),
        ("image_uri", pa.string()),
        ("mask_uri", pa.string()),
        ("stage", pa.string()),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""A pair that did not become a row, and why."""

RECEIPT = pa.schema(
    [
        ("chunk", pa.int64()),
        ("generation", pa.int32()),
        ("encoded", pa.int64()),
        ("rejected", pa.int64()),
        ("errors", pa.map_(pa.string(), pa.int64())),
        ("data_bytes", pa.int64()),
        ("version", pa.string()),
        ("rejects_version", pa.string()),
        ("counters", pa.map_(pa.string(), pa.float64())),
        ("fatal", pa.string()),
    ]
)
"""What the driver hears of a chunk. ``counters`` are seconds by stage, ``retries`` and the like; ``fatal`` is a
sentence where the chunk could not be decided, which ends the job."""


def tensor_field(name: str, value_type: pa.DataType) -> pa.Field:
    """Field of a tensor column of any shapes, in the one layout that Ray and all common readers understand.

    Storage is ``struct<data: large_list<T>, shape: list<int64>>``; the metadata is that of Ray Data's
    variable-shaped tensor of three dimensions.
    """
    storage = pa.struct([("data", pa.large_list(value_type)), ("shape", pa.list_(pa.int64()))])
    extension = {
        "ARROW:extension:name": "ray.data.arrow_variable_shaped_tensor",
        "ARROW:extension:metadata": "3",
    }
    return pa.field(name, storage, metadata=extension)


def packed_field(name: str) -> pa.Field:
    """Field of a binary mask at a bit a pixel: `pack_mask`'s bytes beside the shape that they have unpacked."""
    storage = pa.struct([("bits", pa.large_binary()), ("shape", pa.list_(pa.int64()))])
    return pa.field(name, storage, metadata={"inpaint_encode.mask": "bits, most significant first, 1 = repaint"})


def carrying(schema: pa.Schema, like: pa.Schema) -> pa.Schema:
    """Return ``schema`` with the `CARRIED` column that ``like`` has, if it has one."""
    at = like.get_field_index(CARRIED)
    return schema if at < 0 else schema.append(like.field(at))


def data_schema(made_by: Mapping[str, Any], like: pa.Schema = PAIRS) -> pa.Schema:
    """Schema of the data files. Shapes a row: ``samples [C, h, w]``, ``noise_mask [1, H, W]``.

    ``samples`` of moments is ``[2C, h, w]``, the means first; ``original_samples`` has its shape, and
    ``latent_mask`` is ``[1, h, w]``.

    Args:
        made_by: what the rows were made by, kept in the schema's metadata: the fields of
            `inpaint_encode.settings.RowSettings`, of which ``samples_dtype`` and ``mask_encoding`` must be there and
            others say which columns are, and whatever else a reader must know.
        like: schema of the plan, or of a table that is made from it; the fields of its `CARRIED` come last.
    """
    value_type = {"float16": pa.float16(), "float32": pa.float32()}[made_by["samples_dtype"]]
    packed = made_by["mask_encoding"] == "packed"
    fields = [
        pa.field("key", pa.string()),
        tensor_field("samples", value_type),
        *([tensor_field("original_samples", value_type)] if made_by.get("also_original") else []),
        packed_field("noise_mask") if packed else tensor_field("noise_mask", pa.uint8()),
        *([tensor_field("latent_mask", value_type)] if made_by.get("latent_mask", "none") != "none" else []),
        *_SOURCE[1:],
        *_GEOMETRY,
        pa.field("mask_coverage", pa.float32()),
        pa.field("precision", pa.string()),
        *([pa.field("tiled", pa.bool_())] if made_by.get("tile", False) is not False else []),
        *(list(like.field(CARRIED).type) if CARRIED in like.names else []),
    ]
    return pa.schema(fields, metadata={FOOTER_KEY: json.dumps(made_by, sort_keys=True)})


def data_table(encoded: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the rows of the data file: the `ENCODED` rows without an error, tensors in their columns."""
    rows = encoded.filter(encoded["error"].is_null())
    shapes = rows["samples_shape"].to_pylist()
    plane = [[1, *shape[1:]] for shape in shapes]
    tensors = {"noise_mask": _mask_array(rows, schema.field("noise_mask"))}
    for name, its_shapes in (("samples", shapes), ("original_samples", shapes), ("latent_mask", plane)):
        if name in schema.names:
            tensors[name] = _values_array(rows[name], its_shapes, schema.field(name))
    carried = rows.select([CARRIED]).flatten() if CARRIED in rows.column_names else rows.select([])
    own = dict(zip([name.removeprefix(f"{CARRIED}.") for name in carried.column_names], carried.columns, strict=True))
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


def is_packed(mask_type: pa.DataType) -> bool:
    """Whether a ``noise_mask`` column of this type holds bits, as `packed_field` has them."""
    return bool(pa.types.is_struct(mask_type) and mask_type.get_field_index("bits") >= 0)


def rejects_table(encoded: pa.Table) -> pa.Table:
    """Return the rows of the rejects file: the `ENCODED` rows with an error."""
    rows = encoded.filter(encoded["error"].is_valid())
    stages = [error.partition(".")[0] for error in rows["error"].to_pylist()]
    return rows.append_column("stage", pa.array(stages, pa.string())).select(REJECTS.names).cast(REJECTS)


def table_of(
    rows: Iterable[Mapping[str, Any]], schema: pa.Schema, rooms: Mapping[str, Room] = MappingProxyType({})
) -> pa.Table:
    """`pa.Table.from_pylist`, with arrays of any shape and type for large_binary columns, each copied at once.

    So a generator of rows holds one row's arrays at a time.

    Args:
        rows: what is missing in one is null.
        schema: of the table.
        rooms: where columns' bytes go, by their names; by default fresh memory.
    """
    blobs = {f.name: _Blobs(rooms.get(f.name) or Room()) for f in schema if pa.types.is_large_binary(f.type)}
    plain: dict[str, list[Any]] = {name: [] for name in schema.names if name not in blobs}
    for row in rows:
        for name, blob in blobs.items():
            blob.append(row.get(name))
        for name, values in plain.items():
            values.append(row.get(name))
    columns = [blobs[f.name].array() if f.name in blobs else pa.array(plain[f.name], f.type) for f in schema]
    return pa.table(columns, schema=schema)


class Room:
    """Memory for one column of one table after another, used again as soon as no one holds the last table's any more.

    It stays as large as it once had to be: fresh pages for a chunk's pixels cost a third of what decoding them does.
    But what is over ``kept`` bytes and over four times of a table's is given back.
    """

    def __init__(self, kept: int = 2**29) -> None:
        self._data = np.empty(0, np.uint8)
        self._kept = kept

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return a buffer of at least ``size`` bytes that nothing else refers to."""
        holders = sys.getrefcount(self._data) - 2  # but for this object and the call itself; views count
        if holders or self._data.size < size:
            self._data = np.empty(size, np.uint8)
        return self._data

    def settle(self, used: int) -> None:
        """Hear that a table is whole, and how many bytes it took; what is too large lives as long as that table."""
        if self._data.size > max(self._kept, 4 * used):
            self._data = np.empty(0, np.uint8)


class _Blobs:
    """A large_binary column under construction."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._data = room.take(0)
        self._ends = [0]
        self._valid: list[bool] = []

    def append(self, value: NDArray[Any] | None) -> None:
        start = self._ends[-1]
        end = start + (0 if value is None else value.nbytes)
        if end > self._data.size:
            larger = self._room.take(end + end // 2)
            larger[:start] = self._data[:start]
            self._data = larger
        if value is not None:
            self._data[start:end].view(value.dtype).reshape(value.shape)[...] = value
        self._ends.append(end)
        self._valid.append(value is not None)

    def array(self) -> pa.Array:
        _, valid = pa.array(self._valid, pa.bool_()).buffers()
        offsets, data = np.array(self._ends, np.int64), self._data[: self._ends[-1]]
        self._room.settle(self._ends[-1])
        buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self._valid), buffers)


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


class Tensors:
    """A tensor column's values, each in its shape and made when it is asked for; packed masks are unpacked then.

    Arrays share the column's memory where nothing is unpacked, and cannot be written to.
    """

    def __init__(self, column: pa.Array) -> None:
        plain = column.storage if isinstance(column, pa.ExtensionArray) else column
        self._packed = is_packed(plain.type)
        data = plain.field("bits" if self._packed else "data")
        _, offsets, *values = data.buffers()
        self._ends = np.frombuffer(offsets or b"", np.int64)[data.offset :]
        self._values = np.frombuffer(values[0] or b"", np.uint8) if self._packed else _flat(data.values)
        self._shapes = plain.field("shape").to_pylist()

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> NDArray[Any]:
        shape = self._shapes[index]
        values = self._values[self._ends[index] : self._ends[index + 1]]
        return (unpack_mask(values, *shape[1:]) if self._packed else values).reshape(shape)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return map(self.__getitem__, range(len(self)))


def _flat(values: pa.Array) -> NDArray[Any]:
    array: NDArray[Any] = values.to_numpy(zero_copy_only=False)
    return array


def pack_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Eight pixels a byte, the most significant bit first, rows run together; `unpack_mask` is the inverse."""
    return np.packbits(mask)


def unpack_mask(bits: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return the ``height * width`` pixels, 0 or 1, flat, of `pack_mask`'s bytes."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width)


def fold(
    table: pa.Table, work: Mapping[str, Any], counters: Sequence[tuple[str, float]], fatal: str | None
) -> pa.Table:
    """One Ray row: ``work`` and what is said of the chunk, and each column of ``table`` as a list, without a copy."""
    whole = table.combine_chunks()
    offsets = pa.array([0, whole.num_rows], pa.int64())
    columns = {name: pa.LargeListArray.from_arrays(offsets, _contiguous(whole[name])) for name in whole.column_names}
    about = pa.Table.from_pylist([{**work, "counters": counters, "fatal": fatal}], _ABOUT)
    return pa.table({**dict(zip(_ABOUT.names, about.columns, strict=True)), **columns})


def unfold(row: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table of ``schema`` that `fold` put into ``row``."""
    return pa.table([_only_list(row[name]) for name in schema.names], schema=schema)


def _only_list(column: pa.ChunkedArray) -> pa.Array:
    """The items of a column's one list; `flatten` would copy them."""
    (lists,) = column.chunks
    start, end = lists.offsets[0].as_py(), lists.offsets[1].as_py()
    return lists.values.slice(start, end - start)


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
