"""Which rows each worker reads, and in which order. Arithmetic on the sizes of row groups; nothing is read here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK_GROUPS = 2**17
"""Row groups whose order is in memory at the same time, about; a block takes 5 MB."""

_FIRST_BITS = 12
"""First bits of a random number by which a shuffled epoch is divided into blocks."""


class Shuffle(NamedTuple):
    """The random order of one epoch; see `windows`."""

    seed: int
    epoch: int
    groups: int
    """Row groups per window."""


class RowSlice(NamedTuple):
    """Consecutive rows of one row group."""

    group: int
    rows: range
    """Row numbers in the group."""


@dataclass(frozen=True)
class Window:
    """Slices that are in memory at the same time, and the order of their rows."""

    slices: tuple[RowSlice, ...]
    order: NDArray[np.int64]
    """Permutation of the rows of all slices, numbered from the first slice on."""

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.order)

    def rows(self) -> Iterator[tuple[int, int]]:
        """Yield for each row, in order, the number of its slice and its number in the row group."""
        slices = np.repeat(np.arange(len(self.slices)), [len(one.rows) for one in self.slices])
        rows = np.concatenate([np.arange(one.rows.start, one.rows.stop) for one in self.slices])
        return zip(slices[self.order].tolist(), rows[self.order].tolist(), strict=True)


def shard(rows: range, index: int, count: int) -> range:
    """Split ``rows`` into ``count`` shards whose sizes differ by at most one; return shard ``index``."""
    return rows[len(rows) * index // count : len(rows) * (index + 1) // count]


def shard_quota(batches: int, rows: range, shard: range) -> int:
    """Return how many of ``batches`` a shard of ``rows`` yields. The quotas of all shards add up to ``batches``."""
    end, start = (batches * (bound - rows.start) // max(1, len(rows)) for bound in (shard.stop, shard.start))
    return end - start


def windows(sizes: NDArray[np.int32] | NDArray[np.int64], shard: range, shuffle: Shuffle | None) -> Iterator[Window]:
    """Yield the windows of one worker in one epoch.

    The row groups are ordered first: in file order, or with ``shuffle`` in a random permutation that is the same for
    all workers. The epoch is the sequence of their rows, and each worker reads its shard of that sequence. Two workers
    may share a row group at the boundary of their shards.

    Without ``shuffle``, each slice is a window. With ``shuffle``, a window has ``shuffle.groups`` slices, and its rows
    are in a random permutation. Any row can be at any position of an epoch, but rows of the same row group, whose keys
    are neighbors, stay within one window per worker.

    Args:
        sizes: number of rows of each row group.
        shard: the worker's rows, a part of ``range(sizes.sum())``.
        shuffle: None keeps file order.
    """
    slices = _slices(sizes, shard, shuffle)
    start = shard.start
    while members := tuple(islice(slices, 1 if shuffle is None else shuffle.groups)):
        count = sum(len(one.rows) for one in members)
        # start + 1: a seed sequence is padded with zeros, so 0 would repeat the permutation of the row groups.
        order = np.arange(count) if shuffle is None else permutation(count, shuffle.seed, shuffle.epoch, start + 1)
        yield Window(members, order)
        start += count


def _slices(sizes: NDArray[np.int32] | NDArray[np.int64], shard: range, shuffle: Shuffle | None) -> Iterator[RowSlice]:
    """Yield the slices of ``shard``, in the order of the epoch."""
    for before, groups in _in_file_order(sizes, shard) if shuffle is None else _shuffled(sizes, shard, shuffle):
        ends = before + np.cumsum(sizes[groups], dtype=np.int64)
        for number in range(int(np.searchsorted(ends, shard.start, side="right")), len(ends)):
            start = int(ends[number - 1]) if number else before
            if start >= shard.stop:
                return
            if rows := range(max(shard.start, start) - start, min(shard.stop, int(ends[number])) - start):
                yield RowSlice(int(groups[number]), rows)


def _in_file_order(
    sizes: NDArray[np.int32] | NDArray[np.int64], shard: range
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield blocks of row groups in file order: the number of rows before the block, and its row groups."""
    end = 0
    for first in range(0, len(sizes), BLOCK_GROUPS):
        before, end = end, end + int(sizes[first : first + BLOCK_GROUPS].sum(dtype=np.int64))
        if end > shard.start:
            yield before, np.arange(first, min(first + BLOCK_GROUPS, len(sizes)))


def _shuffled(
    sizes: NDArray[np.int32] | NDArray[np.int64], shard: range, shuffle: Shuffle
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield blocks of the permutation of all row groups: the number of rows before the block, and its row groups.

    The permutation sorts random numbers, one for each row group. Those of all row groups are never in memory at the
    same time: they are drawn once to count by their first bits, and drawn again for each block that has rows of
    ``shard``.
    """
    groups_of, rows_of = np.zeros(2**_FIRST_BITS, np.int64), np.zeros(2**_FIRST_BITS, np.int64)
    for first, numbers in _random_numbers(len(sizes), shuffle.seed, shuffle.epoch):
        bits = (numbers >> np.uint64(64 - _FIRST_BITS)).astype(np.int64)
        groups_of += np.bincount(bits, minlength=len(groups_of))
        # Weights are float64, which is exact: a block has fewer than 2**53 rows.
        weights = sizes[first : first + len(numbers)]
        rows_of += np.bincount(bits, weights, minlength=len(rows_of)).astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(rows_of)])
    blocks = np.cumsum(groups_of) // BLOCK_GROUPS
    edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(blocks)]
    for low, high in pairwise(edges):
        if starts[high] > shard.start and starts[low] < shard.stop:
            yield int(starts[low]), _sorted_block(len(sizes), shuffle, low, high)


def _sorted_block(count: int, shuffle: Shuffle, low: int, high: int) -> NDArray[np.int64]:
    """Return the row groups whose random numbers have first bits from ``low`` to ``high`` - 1, in random order."""
    found, groups = [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for first, numbers in _random_numbers(count, shuffle.seed, shuffle.epoch):
        bits = numbers >> np.uint64(64 - _FIRST_BITS)
        inside = np.flatnonzero((bits >= low) & (bits < high))
        found.append(numbers[inside])
        groups.append(inside + first)
    return np.concatenate(groups)[np.argsort(np.concatenate(found), kind="stable")]


def _random_numbers(count: int, *seeds: int) -> Iterator[tuple[int, NDArray[np.uint64]]]:
    """Yield ``count`` random numbers in blocks, with the number of the block's first."""
    random = np.random.Philox(np.random.SeedSequence(seeds))
    for first in range(0, count, BLOCK_GROUPS):
        yield first, random.random_raw(min(BLOCK_GROUPS, count - first))


def permutation(count: int, *seeds: int) -> NDArray[np.int64]:
    """Return a random permutation of ``range(count)``, the same with every version of numpy."""
    random = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(count)
    return np.argsort(random, kind="stable")


def skip_rows(windows: Iterable[Window], count: int) -> Iterator[Window]:
    """Skip the first ``count`` rows: yield the rest of the window that they end in, and all windows after it."""
    for window in windows:
        if count < len(window):
            yield Window(window.slices, window.order[count:])
        count = max(0, count - len(window))


def locate(windows: Iterable[Window], positions: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Return, for each of these positions in ``windows``, the row group and the row's number in it."""
    wanted, start = set(positions), 0
    found: dict[int, tuple[int, int]] = {}
    for window in windows:
        if len(found) == len(wanted):
            break
        if any(start <= position < start + len(window) for position in wanted):
            for position, (number, row) in enumerate(window.rows(), start):
                if position in wanted:
                    found[position] = window.slices[number].group, row
        start += len(window)
    return found
