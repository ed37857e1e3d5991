"""Encoded pairs as Arrow tables: the rows of a data file, and the rejects."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.core.chunk import EncodedPair, Pair, Reject
from inpaint_encode.errors import JobFailed
from inpaint_encode.schema import PACKED_MASK, REJECTS
from inpaint_encode.stores.redaction import for_terminal

ROW_GROUP_PIXELS = 2**23
"""Mask pixels in a row group. A writer's memory grows with them, and a reader of one row reads its whole group."""


def rows_table(rows: Sequence[EncodedPair], schema: pa.Schema, extra: pa.Array | None = None) -> pa.Table:
    """Return encoded pairs with the columns of a data file, but with packed masks, which take an eighth of the memory.

    Tensors keep their own value type, so that `row_groups` notices one that is not the output's.

    Args:
        rows: encoded pairs.
        schema: `inpaint_encode.schema.data_schema` of the output.
        extra: the source's own columns of the rows, as structs.
    """
    columns: dict[str, Any] = {name: [getattr(row.pair, name) for row in rows] for name in Pair._fields}
    columns |= {name: [getattr(row.image, name) for row in rows] for name in ("source_height", "source_width")}
    columns |= {f"resized_{side}": [getattr(row.image.geometry, f"resized_{side}") for row in rows] for side in _SIDES}
    columns |= {f"crop_{start}": [getattr(row.image.geometry.crop, start) for row in rows] for start in ("top", "left")}
    columns |= {name: [getattr(row, name) for row in rows] for name in ("mask_coverage", "precision", "tiled")}
    arrays = {name: pa.array(columns[name], schema.field(name).type) for name in columns if name in schema.names}
    arrays["noise_mask"] = pa.StructArray.from_arrays(
        [
            pa.array([row.noise_mask.tobytes() for row in rows], pa.large_binary()),
            pa.array([[1, *row.image.pixels.shape[:2]] for row in rows], pa.list_(pa.int64())),
        ],
        names=["bits", "shape"],
    )
    for name in ("samples", "original_samples", "latent_mask"):
        if name in schema.names:
            arrays[name] = tensor_array([getattr(row, name) for row in rows], schema.field(name).type)
    if extra is not None:
        arrays |= {extra.type.field(at).name: extra.field(at) for at in range(extra.type.num_fields)}
    return pa.table({name: arrays[name] for name in schema.names})


_SIDES = ("height", "width")


def tensor_array(values: Sequence[NDArray[Any]], empty: pa.DataType) -> pa.StructArray:
    """Return a tensor column of arrays ``[C, h, w]`` of one dtype; of type ``empty`` if there are none."""
    if not values:
        return pa.array([], empty)
    flat = pa.array(np.concatenate([value.reshape(-1) for value in values]))
    offsets = np.cumsum([0, *(value.size for value in values)], dtype=np.int64)
    data = pa.LargeListArray.from_arrays(pa.array(offsets), flat)
    shapes = pa.array([value.shape for value in values], pa.list_(pa.int64()))
    return pa.StructArray.from_arrays([data, shapes], names=["data", "shape"])


def row_groups(rows: pa.Table, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of `rows_table` as row groups of ``schema``; masks are unpacked one group at a time.

    Raises:
        JobFailed: a column is not of the output's type.
    """
    found, wanted = (one.field("noise_mask").type for one in (rows.schema, schema))
    unpack = found == PACKED_MASK and wanted != PACKED_MASK
    for field in schema:
        found = rows.schema.field(field.name).type
        if found != field.type and not (field.name == "noise_mask" and unpack):
            raise JobFailed(
                f"a worker produced {found} for column {field.name}, but the output has {field.type}; check that all "
                "nodes have the same version of inpaint-encode"
            )
    shapes = rows["noise_mask"].combine_chunks().field("shape").to_pylist()
    size = max(1, ROW_GROUP_PIXELS // max([height * width for _, height, width in shapes], default=1))
    for start in range(0, max(1, rows.num_rows), size):
        group = rows.slice(start, size)
        if unpack:
            masks = group["noise_mask"].combine_chunks()
            bits = zip(masks.field("bits"), shapes[start : start + size], strict=True)
            unpacked = [
                np.unpackbits(np.frombuffer(one.as_buffer(), np.uint8), count=shape[1] * shape[2]).reshape(shape)
                for one, shape in bits
            ]
            column = tensor_array(unpacked, schema.field("noise_mask").type)
            group = group.set_column(schema.get_field_index("noise_mask"), "noise_mask", column)
        yield pa.table(group.columns, schema=schema)


def rejects_table(rejects: Sequence[Reject]) -> pa.Table:
    """Return rejects as a table of `inpaint_encode.schema.REJECTS`."""
    values = [
        {
            **one.pair._asdict(),
            "stage": one.error.partition(".")[0],
            "error": one.error,
            "message": for_terminal(one.message),
        }
        for one in rejects
    ]
    return pa.table({name: [value[name] for value in values] for name in REJECTS.names}, schema=REJECTS)
