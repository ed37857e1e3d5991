"""Rows as torch tensors, and batches of rows whose tensors have the same shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .columns import Row

__all__ = ["Bins", "Function", "applied", "as_tensors", "collate"]

Function = Callable[[Row], Row]
"""What is made of each row, in the process that reads it."""


def as_tensors(row: Row) -> Row:
    """Turn a row's arrays into tensors that own their memory; other values stay as they are."""
    return {name: _tensor(value) if isinstance(value, np.ndarray) else value for name, value in row.items()}


def applied(row: Row, functions: Iterable[Function]) -> Row:
    """Give a row to ``functions``, one after the other."""
    for function in functions:
        row = function(row)
    return row


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def collate(batch: Sequence[Row]) -> Row:
    """Stack the tensors of rows, ``[B, …]``; of every other column make a list.

    So is every batch of a stream; a ``DataLoader`` over the dataset itself takes it as its ``collate_fn``.

    Raises:
        ValueError: the rows have tensors of different shapes.
    """
    return {
        name: (_stacked if torch.is_tensor(value) else list)([row[name] for row in batch])
        for name, value in batch[0].items()
    }


def _stacked(tensors: list[torch.Tensor]) -> torch.Tensor:
    """In one thread: on a busy machine torch's threads wait for each other, for milliseconds a row."""
    try:
        arrays = [tensor.numpy() for tensor in tensors]
    except TypeError:  # bfloat16, or on a GPU
        return torch.stack(tensors)
    return torch.from_numpy(np.stack(arrays))


class Bins:
    """Rows that wait, under their positions, until there are ``size`` of the same shapes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._bins: dict[tuple[Any, ...], dict[int, Row]] = {}

    def add(self, position: int, row: Row) -> list[Row] | None:
        """Put a row to its like; return all of them if that fills a batch."""
        shapes = tuple((name, value.shape) for name, value in row.items() if isinstance(value, torch.Tensor))
        waiting = self._bins.setdefault(shapes, {})
        waiting[position] = row
        return list(self._bins.pop(shapes).values()) if len(waiting) == self._size else None

    def rest(self) -> Iterator[list[Row]]:
        """Empty them, the one that has waited longest first."""
        while self._bins:
            yield list(self._bins.pop(next(iter(self._bins))).values())

    @property
    def positions(self) -> list[int]:
        """Of the rows that wait; adding these in this order brings back the same bins."""
        return [position for waiting in self._bins.values() for position in waiting]
