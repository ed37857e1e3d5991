"""Reads rows in threads, as torch tensors, and stacks rows of the same shapes to batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from .groups import RowGroupReader
from .output import Row
from .sampler import RowSlice, Window

Transform = Callable[[Row], Row]
"""Function of one row. It runs in the process that reads the row."""

_T = TypeVar("_T")

_ROW_THREADS = 4
"""Row groups that `read_rows` reads, and keeps in memory, at the same time."""


def read_ahead(
    windows: Iterable[Window], read: Callable[[RowSlice], _T], threads: int
) -> Iterator[tuple[Window, list[_T]]]:
    """Read the slices of windows in threads, at least one window ahead, and enough windows to keep all threads busy.

    Args:
        windows: in the order of their use.
        read: reads one slice.
        threads: number of threads. They end when the iterator is closed.

    Yields:
        A window, and the result of ``read`` for each slice.
    """
    pending: deque[tuple[Window, list[Future[_T]]]] = deque()

    def next_window() -> tuple[Window, list[_T]]:
        window, futures = pending.popleft()
        return window, [future.result() for future in futures]

    pool = ThreadPoolExecutor(threads, "read-ahead")
    try:
        for window in windows:
            pending.append((window, [pool.submit(read, one) for one in window.slices]))
            while sum(len(futures) for _, futures in pending) - len(pending[0][1]) >= threads:
                yield next_window()
        while pending:
            yield next_window()
    finally:
        pool.shutdown(cancel_futures=True)


def read_rows(groups: RowGroupReader, places: Sequence[tuple[int, int]]) -> list[Row]:
    """Read rows with tensors, given their row groups and their numbers in them. Each row group is read once."""
    by_group: dict[int, list[int]] = {}
    for index, (group, _) in enumerate(places):
        by_group.setdefault(group, []).append(index)

    def read(group: int) -> list[tuple[int, Row]]:
        rows = groups.read(group)
        return [(index, to_tensors(rows[places[index][1]])) for index in by_group[group]]

    with ThreadPoolExecutor(_ROW_THREADS) as pool:
        found = dict(row for rows in pool.map(read, by_group) for row in rows)
    return [found[index] for index in range(len(places))]


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
