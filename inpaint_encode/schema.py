"""What the output contains: every column of the data files, the rejects files, the plan and the receipts.

A pair becomes a row of a data file (`data_schema`) or a row of a rejects file (`REJECTS`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.metadata import RowMetadata

FOOTER_KEY = b"inpaint_encode"
"""Key of `inpaint_encode.metadata.RowMetadata` as JSON in the metadata of every data file."""

TENSORS = ("samples", "original_samples", "noise_mask", "latent_mask")
"""Columns of the data files that hold arrays; ``original_samples`` and ``latent_mask`` are optional."""

EXTRA_COLUMNS = "extra_columns"
"""Struct column with the source's own columns, in a plan and in the tables between stages. Missing if the source has no
other columns. Its fields must not be named like a column of the data files."""

PAIR_FIELDS = [
    pa.field("key", pa.string()),
    pa.field("image_uri", pa.string()),
    pa.field("mask_uri", pa.string()),
    pa.field("mask_index", pa.int32()),
    pa.field("image_version", pa.string()),
    pa.field("mask_version", pa.string()),
]
"""What identifies a pair, in every table of pairs; the fields of `inpaint_encode.core.chunk.Pair`."""

SOURCE_PAIRS = pa.schema([*PAIR_FIELDS, ("image_bytes", pa.int64()), ("line", pa.int32())])
"""Pairs as a source yields them, see `inpaint_encode.sources.pairs.PairBatch`; with an `EXTRA_COLUMNS` column if the
source has columns of its own.

``image_bytes`` is the size of the image's file, 0 if it is unknown. ``line`` counts the lines of the batch's slices,
from 0; it is 0 for all pairs of a source without lines."""

PAIRS = pa.schema(
    [
        ("chunk", pa.int32()),
        *PAIR_FIELDS,
        ("line", pa.int32()),
        ("encode", pa.bool_()),
        ("error", pa.string()),
    ]
)
"""The plan of one unit: each pair's chunk in the unit, its versions as listed (empty if nothing was listed), its line
in the unit's slices of the source, and whether to encode it or to keep its row from the chunk's previous revision.

``error`` is the message of a pair that is rejected without being read, see `DUPLICATE_KEY`; else null. Pairs of one
image are neighbors. A null key marks a chunk that has lost all its pairs."""

DUPLICATE_KEY = "list.duplicate_key"
"""Name of the error of a pair whose key belongs to another pair; the plan has the message."""

WORK = pa.schema(
    [
        ("chunk", pa.string()),
        ("revision", pa.int32()),
        ("hash", pa.string()),
        ("part", pa.string()),
        ("keep", pa.bool_()),
    ]
)
"""One chunk of work: its name, the newest revision that contains it, the hash of its planned pairs, the URI of the plan
file it is in, and whether rows that are not to be encoded are kept."""

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
"""A pair that did not become a row, with the stable name of the error and a message."""

_RESULT = [
    pa.field("revision", pa.int32()),
    pa.field("hash", pa.string()),
    pa.field("encoded", pa.int64()),
    pa.field("rejected", pa.int64()),
    pa.field("errors", pa.map_(pa.string(), pa.int64())),
    pa.field("data_bytes", pa.int64()),
    pa.field("version", pa.string()),
    pa.field("rejects_version", pa.string()),
    pa.field("group_rows", pa.list_(pa.int32())),
    pa.field("group_bytes", pa.list_(pa.int64())),
    pa.field("footer_bytes", pa.int32()),
]

RECEIPT = pa.schema(
    [
        ("chunk", pa.string()),
        *_RESULT,
        ("key_hashes", pa.binary()),
        ("counters", pa.map_(pa.string(), pa.float64())),
        ("fatal", pa.string()),
    ]
)
"""The result of a chunk: counts, file versions, row groups, and ``counters`` (seconds by stage, retries, ...).
``fatal`` is a message if the chunk could not be committed; it ends the job.

``group_rows`` and ``group_bytes`` have one element per row group of the data file. The first row group begins at byte
4, each other one where the one before it ends, and the last one is followed by the footer of ``footer_bytes``.
``key_hashes`` are the hashes of the rows' keys in file order, 8 bytes each, see `inpaint_encode.output.known_keys`. All
of these are null if the chunk had been committed before."""

UNIT_INDEX = pa.schema([("chunk", pa.int32()), *_RESULT])
"""The index of a unit: one row for each committed chunk, sorted by number; the other columns are those of `RECEIPT`."""

FILE_INDEX = pa.schema(
    [
        ("unit", pa.int32()),
        ("chunk", pa.int32()),
        ("rejected", pa.int64()),
        ("data_bytes", pa.int64()),
        ("version", pa.string()),
        ("footer_bytes", pa.int32()),
        ("group_rows", pa.list_(pa.int32())),
    ]
)
"""The index of a finished output: one row for each data file, in the order of their names."""

KEY_INDEX = pa.schema([("hash", pa.uint64()), ("file", pa.uint32()), ("group", pa.uint16())])
"""Where keys are, sorted by hash: the number of the file's row in the unit's or the output's index, and the number of
the row group in the file. Different keys may have one hash."""


COLUMNS = frozenset(
    ["key", *TENSORS, *(field.name for field in [*PAIR_FIELDS, *GEOMETRY]), "mask_coverage", "precision", "tiled"]
)
"""Names of all columns that data files may have, without the source's own."""


def tensor_type(value_type: pa.DataType) -> pa.StructType:
    """Return the type of a tensor column with these values."""
    return pa.struct([("data", pa.large_list(value_type)), ("shape", pa.list_(pa.int64()))])


def tensor_field(name: str, value_type: pa.DataType) -> pa.Field:
    """Return the field of a tensor column: ``struct<data: large_list<T>, shape: list<int64>>``.

    All common readers understand this layout. The metadata is that of Ray Data's variable-shaped tensor of three
    dimensions.
    """
    storage = tensor_type(value_type)
    extension = {
        "ARROW:extension:name": "ray.data.arrow_variable_shaped_tensor",
        "ARROW:extension:metadata": "3",
    }
    return pa.field(name, storage, metadata=extension)


PACKED_MASK = pa.struct([("bits", pa.large_binary()), ("shape", pa.list_(pa.int64()))])
"""Type of a mask at one bit a pixel, with its unpacked shape."""


def packed_field(name: str) -> pa.Field:
    """Return the field of a binary mask at one bit a pixel, with its unpacked shape."""
    return pa.field(name, PACKED_MASK, metadata={"inpaint_encode.mask": "bits, most significant first, 1 = repaint"})


def extra_columns_schema(fields: Sequence[pa.Field]) -> pa.Schema:
    """Return a schema whose only column is `EXTRA_COLUMNS` with ``fields``; without fields it has no column."""
    return pa.schema([(EXTRA_COLUMNS, pa.struct(fields))] if fields else [])


def with_extra_columns(schema: pa.Schema, like: pa.Schema) -> pa.Schema:
    """Return ``schema`` with the `EXTRA_COLUMNS` column of ``like``, if ``like`` has one."""
    at = like.get_field_index(EXTRA_COLUMNS)
    return schema if at < 0 else schema.append(like.field(at))


def data_schema(metadata: RowMetadata, like: pa.Schema = PAIRS) -> pa.Schema:
    """Return the schema of the data files.

    Shapes of a row: ``samples`` and ``original_samples`` ``[C, h, w]`` (of moments ``[2C, h, w]``, the means first),
    ``noise_mask`` ``[1, H, W]``, ``latent_mask`` ``[1, h, w]``.

    Args:
        metadata: how the rows are made; it becomes the schema's metadata.
        like: schema of the plan; the fields of its `EXTRA_COLUMNS` come last.
    """
    value_type = {"float16": pa.float16(), "float32": pa.float32()}[metadata.samples_dtype]
    packed = metadata.mask_encoding == "packed"
    fields = [
        pa.field("key", pa.string()),
        tensor_field("samples", value_type),
        *([tensor_field("original_samples", value_type)] if metadata.also_original else []),
        packed_field("noise_mask") if packed else tensor_field("noise_mask", pa.uint8()),
        *([tensor_field("latent_mask", value_type)] if metadata.latent_mask != "none" else []),
        *PAIR_FIELDS[1:],
        *GEOMETRY,
        pa.field("mask_coverage", pa.float32()),
        pa.field("precision", pa.string()),
        *([pa.field("tiled", pa.bool_())] if metadata.tile is not False else []),
        *(list(like.field(EXTRA_COLUMNS).type) if EXTRA_COLUMNS in like.names else []),
    ]
    return pa.schema(fields, metadata={FOOTER_KEY: json.dumps(metadata.to_dict())})


def is_packed(mask_type: pa.DataType) -> bool:
    """Whether a ``noise_mask`` column of this type holds packed bits."""
    return bool(pa.types.is_struct(mask_type) and mask_type.get_field_index("bits") >= 0)


def unpack_mask(bits: Any, height: int, width: int) -> NDArray[np.uint8]:
    """Return the ``height * width`` pixels, 0 or 1, of a mask that `numpy.packbits` packed, flat."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=height * width)
