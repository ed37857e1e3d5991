"""The rows of an Arrow table as plain values and numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.schema import TENSORS, is_packed, unpack_mask

__all__ = ["Row", "Rows", "Tensors"]

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
        arrays = {name: Tensors(columns.pop(name)) for name in TENSORS if name in columns}
        self._columns: dict[str, Any] = {name: column.to_pylist() for name, column in columns.items()} | arrays
        self._count: int = batch.num_rows

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return {name: values[index] for name, values in self._columns.items()}

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))


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
