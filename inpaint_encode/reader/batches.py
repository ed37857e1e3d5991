"""Rows with torch tensors, and batches of rows whose tensors have the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .columns import Row

__all__ = ["ShapeBuckets", "Transform", "apply_transforms", "collate", "to_tensors"]

Transform = Callable[[Row], Row]
"""Function of one row. It runs in the process that reads the row."""


def to_tensors(row: Row) -> Row:
    """Replace arrays by tensors, which own their memory. Other values stay."""
    return {
        name: torch.from_numpy(value if value.flags.writeable else value.copy())
        if isinstance(value, np.ndarray)
        else value
        for name, value in row.items()
    }


def apply_transforms(row: Row, transforms: Iterable[Transform]) -> Row:
    """Apply ``transforms`` to a row, in their order."""
    for transform in transforms:
        row = transform(row)
    return row


def collate(batch: Sequence[Row]) -> Row:
    """Stack the tensors of rows to ``[B, ...]``; collect every other column in a list.

    Streams use it for their batches. Pass it as ``collate_fn`` to a ``DataLoader`` over a `LatentDataset`.

    Raises:
        ValueError: tensors of one column have different shapes.
    """
    return {
        name: (_stack if torch.is_tensor(value) else list)([row[name] for row in batch])
        for name, value in batch[0].items()
    }


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    try:
        # numpy stacks in one thread. On a busy machine, torch's threads wait milliseconds for each other.
        return torch.from_numpy(np.stack([tensor.numpy() for tensor in tensors]))
    except TypeError:  # bfloat16, or on a GPU
        return torch.stack(tensors)


class ShapeBuckets:
    """Collects rows by the shapes of their tensors until ``batch_size`` rows have the same shapes."""

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._buckets: dict[tuple[Any, ...], dict[int, Row]] = {}

    def add(self, position: int, row: Row) -> list[Row] | None:
        """Add a row to its bucket; return and remove the bucket's rows if it is full now."""
        shapes = tuple((name, value.shape) for name, value in row.items() if torch.is_tensor(value))
        bucket = self._buckets.setdefault(shapes, {})
        bucket[position] = row
        return list(self._buckets.pop(shapes).values()) if len(bucket) == self._batch_size else None

    def drain(self) -> Iterator[list[Row]]:
        """Yield and remove the rows of each bucket, oldest bucket first."""
        while self._buckets:
            yield list(self._buckets.pop(next(iter(self._buckets))).values())

    @property
    def positions(self) -> list[int]:
        """Positions of the rows in the buckets. Adding the rows in this order restores the buckets."""
        return [position for bucket in self._buckets.values() for position in bucket]
