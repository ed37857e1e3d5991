"""The cost of turning encoded rows into the bytes of a file, and the size of the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa

from inpaint_encode.core.chunk import EncodedPair, Pair
from inpaint_encode.core.decode import DecodedImage
from inpaint_encode.core.geometry import CropBox, Geometry
from inpaint_encode.demo.pairs import draw_mask
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import parquet_file
from inpaint_encode.output.rows import row_groups, rows_table
from inpaint_encode.parquet_file import read_footer
from inpaint_encode.schema import data_schema

from .fake_vae import FAKE_VAE
from .figures import Figure, Measure, Ratio, cpu_ms, in_turn
from .record import Section

__all__ = ["MASK_ENCODINGS", "encoded_rows", "writing_section"]

MASK_ENCODINGS: tuple[Literal["tensor", "packed"], ...] = ("tensor", "packed")
_ROWS, _SIDE = 64, 512


def writing_section(repeats: int = 5) -> Section:
    """Write rows of 512 x 512 with each mask encoding, in memory; latents are normally distributed float16."""
    encoded = encoded_rows(_ROWS)
    measures: dict[str, Measure] = {}
    sizes: list[Figure] = []
    for encoding in MASK_ENCODINGS:
        schema = data_schema(RowMetadata(vae=FAKE_VAE, mask_encoding=encoding))
        table = rows_table(encoded, schema)
        measures[f"write, {encoding} masks"] = _measure(table, schema)
        for column, stored in _compressed_bytes(parquet_file(row_groups(table, schema), schema)).items():
            sizes.append(Figure.once(f"{column}, {encoding} masks", "bytes/row", stored / _ROWS))
    tensor, packed = in_turn("ms CPU/row", measures, repeats).values()
    text = f"{_ROWS} rows of {_SIDE} x {_SIDE} as one Parquet file in memory, in one thread."
    ratio = Ratio("tensor masks over packed", tensor, packed)
    return Section("Write alone", text, (tensor, packed, *sizes), (ratio,))


def encoded_rows(count: int) -> list[EncodedPair]:
    """Return rows of 512 x 512 as an encoder returns them: latents are normal float16, masks are strokes."""
    rng = np.random.default_rng(0)
    masks = [np.array(draw_mask(rng, (_SIDE, _SIDE), "strokes")) // 255 for _ in range(min(count, _ROWS))]
    pixels = np.broadcast_to(np.uint8(0), (_SIDE, _SIDE, 3))
    image = DecodedImage(pixels, _SIDE, _SIDE, Geometry(_SIDE, _SIDE, CropBox(0, 0, _SIDE, _SIDE)), transposed=False)
    return [
        EncodedPair(
            pair=Pair(f"{number // 1000:04}/{number:07}", "image.jpg", "mask.png"),
            image=image,
            samples=rng.normal(size=(4, _SIDE // 8, _SIDE // 8)).astype(np.float16),
            original_samples=None,
            noise_mask=np.packbits(masks[number % len(masks)]),
            latent_mask=None,
            mask_coverage=float(masks[number % len(masks)].mean()),
            precision="float32",
            tiled=False,
        )
        for number in range(count)
    ]


def _measure(table: pa.Table, schema: pa.Schema) -> Measure:
    return lambda: cpu_ms(lambda: parquet_file(row_groups(table, schema), schema), _ROWS)


def _compressed_bytes(data: bytes) -> Mapping[str, int]:
    """Return the compressed size of the tensor columns."""
    metadata = read_footer(data)
    sizes = {"samples": 0, "noise_mask": 0}
    for group in range(metadata.num_row_groups):
        for column in map(metadata.row_group(group).column, range(metadata.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            if name in sizes:
                sizes[name] += column.total_compressed_size
    return sizes
