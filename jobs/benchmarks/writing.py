"""What it costs to turn encoded rows into the bytes of a file, and how many bytes they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.demo.pairs import draw_mask
from inpaint_encode.job.transfer import ENCODED, table_of
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import data_groups, data_table, parquet_bytes, parquet_file
from inpaint_encode.schema import data_schema, pack_mask

from .fake_vae import FAKE_VAE
from .figures import Figure, Measure, Ratio, cpu_ms, in_turn
from .record import Section

__all__ = ["encoded_rows", "writing_section"]

_ROWS, _SIDE = 64, 512
_UNIT = "ms CPU/row"


def writing_section(repeats: int = 5) -> Section:
    """Write rows of 512 x 512 with each way to store masks, in memory; latents are normally distributed float16."""
    encoded = encoded_rows(_ROWS)
    ways = {way: data_schema(RowMetadata(vae=FAKE_VAE, mask_encoding=way)) for way in ("tensor", "packed")}
    measures: dict[str, Measure] = {f"write, {way} masks": _writing(encoded, schema) for way, schema in ways.items()}
    tensor, packed = in_turn(_UNIT, measures, repeats).values()
    sizes = [
        Figure(f"{column}, {way} masks", "bytes/row", (stored / _ROWS,))
        for way, schema in ways.items()
        for column, stored in _stored(parquet_bytes(data_table(encoded, schema))).items()
    ]
    text = f"{_ROWS} rows of {_SIDE} x {_SIDE} as one Parquet file in memory, in one thread."
    ratio = Ratio("tensor masks over packed", tensor, packed)
    return Section("Write alone", text, (tensor, packed, *sizes), (ratio,))


def encoded_rows(count: int) -> pa.Table:
    """Rows of 512 x 512 as the VAE's workers hand them on; latents are normally distributed float16, masks strokes."""
    rng = np.random.default_rng(0)
    masks = [np.array(draw_mask(rng, (_SIDE, _SIDE), "strokes")) // 255 for _ in range(min(count, _ROWS))]
    shape = (4, _SIDE // 8, _SIDE // 8)
    about = {"key": "k", "height": _SIDE, "width": _SIDE, "samples_shape": shape}
    return table_of(
        (
            about
            | {"samples": rng.normal(size=shape).astype(np.float16)}
            | {"noise_mask": pack_mask(masks[number % len(masks)])}
            for number in range(count)
        ),
        ENCODED,
    )


def _writing(encoded: pa.Table, schema: pa.Schema) -> Measure:
    return lambda: cpu_ms(lambda: parquet_file(data_groups(encoded, schema), schema), _ROWS)


def _stored(data: bytes) -> Mapping[str, int]:
    """Compressed bytes of the tensor columns."""
    metadata = pq.read_metadata(pa.BufferReader(data))
    sizes = dict.fromkeys(("samples", "noise_mask"), 0)
    for group in range(metadata.num_row_groups):
        for column in map(metadata.row_group(group).column, range(metadata.num_columns)):
            name = column.path_in_schema.partition(".")[0]
            if name in sizes:
                sizes[name] += column.total_compressed_size
    return sizes
