"""The rows of an Arrow table as plain values and numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from inpaint_encode import rows

__all__ = ["Row", "Rows"]

Row = dict[str, Any]
"""One row's values by column."""


class Rows:
    """The rows of one record batch, each made when it is asked for; masks are unpacked then, if they are packed.

    ``samples`` and ``original_samples`` are float16 or float32 ``[C, h, w]``, or ``[2C, h, w]`` of moments,
    ``noise_mask`` is uint8 ``[1, H, W]``, 0 or 1, and ``latent_mask`` ``[1, h, w]`` of the type of ``samples``.
    Arrays share the batch's memory where nothing had to be unpacked, and cannot be written to then.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        arrays = {name: rows.Tensors(columns.pop(name)) for name in rows.TENSORS if name in columns}
        self._columns: dict[str, Any] = {name: column.to_pylist() for name, column in columns.items()} | arrays
        self._count: int = batch.num_rows

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return {name: values[index] for name, values in self._columns.items()}

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))
