"""Encoded pairs and data files of tests, made without a VAE."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from inpaint_encode.core.chunk import EncodedPair, Pair
from inpaint_encode.core.decode import DecodedImage
from inpaint_encode.core.geometry import CropBox, Geometry
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import parquet_file
from inpaint_encode.output.rows import row_groups, rows_table
from inpaint_encode.schema import EXTRA_COLUMNS, data_schema


def encoded_pair(key: str, samples: np.ndarray, mask: np.ndarray, *, border: int = 0, **values: Any) -> EncodedPair:
    """Return a row of these ``samples`` ``[C, h, w]`` and this grown ``mask`` ``[H, W]``.

    Args:
        key: of the pair; the URIs contain it.
        samples: in the stored type.
        mask: 0 or 1.
        border: pixels that the source is higher than the crop.
        values: other fields of `Pair` and `EncodedPair`.
    """
    height, width = mask.shape
    of_pair = {name: values.pop(name) for name in Pair._fields if name in values}
    geometry = Geometry(height + border, width, CropBox(border // 2, 0, height, width))
    pixels = np.broadcast_to(np.uint8(0), (height, width, 3))
    fields = {
        "pair": Pair(key, f"s3://in/{key}.jpg", f"s3://in/{key}.png")._replace(**of_pair),
        "image": DecodedImage(pixels, height + border, width, geometry, transposed=False),
        "samples": samples,
        "original_samples": None,
        "noise_mask": np.packbits(mask),
        "latent_mask": None,
        "mask_coverage": float(mask.mean(dtype=np.float32)),
        "precision": "float32",
        "tiled": False,
    }
    return EncodedPair(**fields | values)


def groups_of(
    rows: Sequence[EncodedPair], metadata: RowMetadata, extra: Sequence[dict] | None = None, extra_type: Any = None
) -> tuple[list[pa.Table], pa.Schema]:
    """Return the row groups of a data file and its schema.

    Args:
        rows: of the file.
        metadata: of the rows.
        extra: the source's own columns of each row.
        extra_type: their type.
    """
    like = pa.schema([] if extra is None else [(EXTRA_COLUMNS, extra_type)])
    schema = data_schema(metadata, like)
    table = rows_table(rows, schema, None if extra is None else pa.array(extra, extra_type))
    return list(row_groups(table, schema)), schema


def data_file(
    rows: Sequence[EncodedPair], metadata: RowMetadata, extra: Sequence[dict] | None = None, extra_type: Any = None
) -> bytes:
    """Return a data file of these rows; arguments as for `groups_of`."""
    return parquet_file(*groups_of(rows, metadata, extra, extra_type))
