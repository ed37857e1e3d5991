"""Every column that the job writes, and the tables of its plan.

A *pair* becomes a row of a data file, see `data_schema`, or a row of a rejects file, see `REJECTS`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = [
    "EXTRA_COLUMNS",
    "FOOTER_KEY",
    "GEOMETRY",
    "PAIRS",
    "RECEIPT",
    "REJECTS",
    "SOURCE",
    "TENSORS",
    "WORK",
    "data_schema",
    "is_packed",
    "pack_mask",
    "packed_field",
    "tensor_field",
    "unpack_mask",
    "with_extra_columns",
]

FOOTER_KEY = b"inpaint_encode"
"""Key of the JSON in every data file's metadata that says how its rows were made."""

TENSORS = ("samples", "original_samples", "noise_mask", "latent_mask")
"""Columns of the data files that hold an array of any shape; the second and the last only where they were asked for."""

EXTRA_COLUMNS = "extra_columns"
"""Struct column with the source's own columns, in a plan and in the tables between stages. Missing if the source has no
other columns. Its fields must not be named like a column of the data files."""

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

SOURCE = [
    pa.field("key", pa.string()),
    pa.field("image_uri", pa.string()),
    pa.field("mask_uri", pa.string()),
    pa.field("mask_index", pa.int32()),
    pa.field("image_version", pa.string()),
    pa.field("mask_version", pa.string()),
]

GEOMETRY = [
    pa.field("source_height", pa.int32()),
    pa.field("source_width", pa.int32()),
    pa.field("resized_height", pa.int32()),
    pa.field("resized_width", pa.int32()),
    pa.field("crop_top", pa.int32()),
    pa.field("crop_left", pa.int32()),
]

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


def with_extra_columns(schema: pa.Schema, like: pa.Schema) -> pa.Schema:
    """Return ``schema`` with the `EXTRA_COLUMNS` column of ``like``, if ``like`` has one."""
    at = like.get_field_index(EXTRA_COLUMNS)
    return schema if at < 0 else schema.append(like.field(at))


def data_schema(made_by: Mapping[str, Any], like: pa.Schema = PAIRS) -> pa.Schema:
    """Schema of the data files. Shapes a row: ``samples [C, h, w]``, ``noise_mask [1, H, W]``.

    ``samples`` of moments is ``[2C, h, w]``, the means first; ``original_samples`` has its shape, and
    ``latent_mask`` is ``[1, h, w]``.

    Args:
        made_by: what the rows were made by, kept in the schema's metadata: the fields of
            `inpaint_encode.settings.RowSettings`, of which ``samples_dtype`` and ``mask_encoding`` must be there and
            others say which columns are, and whatever else a reader must know.
        like: schema of the plan, or of a table that is made from it; the fields of its `EXTRA_COLUMNS` come last.
    """
    value_type = {"float16": pa.float16(), "float32": pa.float32()}[made_by["samples_dtype"]]
    packed = made_by["mask_encoding"] == "packed"
    fields = [
        pa.field("key", pa.string()),
        tensor_field("samples", value_type),
        *([tensor_field("original_samples", value_type)] if made_by.get("also_original") else []),
        packed_field("noise_mask") if packed else tensor_field("noise_mask", pa.uint8()),
        *([tensor_field("latent_mask", value_type)] if made_by.get("latent_mask", "none") != "none" else []),
        *SOURCE[1:],
        *GEOMETRY,
        pa.field("mask_coverage", pa.float32()),
        pa.field("precision", pa.string()),
        *([pa.field("tiled", pa.bool_())] if made_by.get("tile", False) is not False else []),
        *(list(like.field(EXTRA_COLUMNS).type) if EXTRA_COLUMNS in like.names else []),
    ]
    return pa.schema(fields, metadata={FOOTER_KEY: json.dumps(made_by, sort_keys=True)})


def is_packed(mask_type: pa.DataType) -> bool:
    """Whether a ``noise_mask`` column of this type holds bits, as `packed_field` has them."""
    return bool(pa.types.is_struct(mask_type) and mask_type.get_field_index("bits") >= 0)


def pack_mask(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Eight pixels a byte, the most significant bit first, rows run together; `unpack_mask` is the inverse."""
    return np.packbits(mask)


def unpack_mask(bits: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return the ``height * width`` pixels, 0 or 1, flat, of `pack_mask`'s bytes."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width)
