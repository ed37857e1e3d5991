"""Rows and tensor columns of Arrow data, as plain values and numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.schema import TENSORS, is_packed, unpack_mask

__all__ = ["Row", "RowBatch", "TensorColumn"]

Row = dict[str, Any]
"""One row: values by column name."""


class RowBatch:
    """The rows of one record batch. Each row is created on access; packed masks are unpacked then.

    ``samples`` and ``original_samples`` are float16 or float32 ``[C, h, w]``, or ``[2C, h, w]`` for moments.
    ``noise_mask`` is uint8 ``[1, H, W]``, 0 or 1. ``latent_mask`` is ``[1, h, w]``, in the type of ``samples``.
    Arrays that need no unpacking are read-only views of the batch's memory.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        tensors = {name: TensorColumn(columns.pop(name)) for name in TENSORS if name in columns}
        self._columns: dict[str, Any] = {name: column.to_pylist() for name, column in columns.items()} | tensors
        self._count: int = batch.num_rows

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return {name: values[index] for name, values in self._columns.items()}

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))


class TensorColumn:
    """The arrays of a tensor column, each in its own shape. Each is created on access; packed masks are unpacked then.

    Arrays that need no unpacking are read-only views of the column's memory.
    """

    def __init__(self, column: pa.Array) -> None:
        plain = column.storage if isinstance(column, pa.ExtensionArray) else column
        self._packed = is_packed(plain.type)
        data = plain.field("bits" if self._packed else "data")
        _, offsets, *values = data.buffers()
        self._offsets = np.frombuffer(offsets or b"", np.int64)[data.offset :]
        self._values: NDArray[Any] = (
            np.frombuffer(values[0] or b"", np.uint8) if self._packed else data.values.to_numpy(zero_copy_only=False)
        )
        self._shapes = plain.field("shape").to_pylist()

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> NDArray[Any]:
        shape = self._shapes[index]
        values = self._values[self._offsets[index] : self._offsets[index + 1]]
        return (unpack_mask(values, *shape[1:]) if self._packed else values).reshape(shape)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return map(self.__getitem__, range(len(self)))
