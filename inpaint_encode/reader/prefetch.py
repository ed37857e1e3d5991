"""Reads rows in threads: windows ahead of their use, and lists of rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from .batches import to_tensors
from .columns import Row
from .groups import RowGroupReader
from .sampler import RowSlice, Window

__all__ = ["read_ahead", "read_rows"]

_T = TypeVar("_T")

_ROW_THREADS = 4
"""Row groups that `read_rows` reads, and keeps in memory, at the same time."""


def read_ahead(
    windows: Iterable[tuple[Window, int]], read: Callable[[RowSlice], _T], threads: int
) -> Iterator[tuple[Window, int, list[_T]]]:
    """Read the slices of windows in threads, at least one window ahead, and enough windows to keep all threads busy.

    Args:
        windows: each with a number that is passed through.
        read: reads one slice.
        threads: number of threads. They end when the iterator is closed.

    Yields:
        A window, its number, and the result of ``read`` for each slice.
    """
    pending: deque[tuple[Window, int, list[Future[_T]]]] = deque()

    def next_window() -> tuple[Window, int, list[_T]]:
        window, number, futures = pending.popleft()
        return window, number, [future.result() for future in futures]

    pool = ThreadPoolExecutor(threads, "read-ahead")
    try:
        for window, number in windows:
            pending.append((window, number, [pool.submit(read, one) for one in window.slices]))
            while sum(len(futures) for _, _, futures in pending) - len(pending[0][2]) >= threads:
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
