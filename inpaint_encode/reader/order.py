"""Which rows are read by whom, and in which order: arithmetic on the sizes of row groups, without any reading."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count, islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Piece", "Shuffle", "Window", "from_position", "part", "passes", "permutation", "places", "quota", "windows"]


class Shuffle(NamedTuple):
    """An order for an epoch. `windows` says how random it is."""

    seed: int
    epoch: int
    groups: int
    """Row groups in a window."""


class Piece(NamedTuple):
    """Neighbouring rows of one row group."""

    group: int
    rows: range
    """Their numbers in the group."""


@dataclass(frozen=True)
class Window:
    """Pieces that are held together, and the order in which their rows come out."""

    pieces: tuple[Piece, ...]
    order: NDArray[np.int64]
    """Numbers of the rows, counted through all pieces."""

    def __len__(self) -> int:
        """Rows."""
        return len(self.order)

    def places(self) -> Iterator[tuple[int, int]]:
        """Yield of each row the number of its piece, and its own in the row group."""
        pieces = np.repeat(np.arange(len(self.pieces)), [len(piece.rows) for piece in self.pieces])
        rows = np.concatenate([np.arange(piece.rows.start, piece.rows.stop) for piece in self.pieces])
        return zip(pieces[self.order].tolist(), rows[self.order].tolist(), strict=True)


def part(rows: range, index: int, parts: int) -> range:
    """Cut ``rows`` into so many ``parts`` whose lengths differ by one at most, and return part ``index``."""
    return rows[len(rows) * index // parts : len(rows) * (index + 1) // parts]


def quota(batches: int, rows: range, mine: range) -> int:
    """How many of the ``batches`` of all ``rows`` a worker makes that has a `part` of them; the parts' add up."""
    end, start = (batches * (at - rows.start) // max(1, len(rows)) for at in (mine.stop, mine.start))
    return end - start


def windows(sizes: NDArray[np.int64], mine: range, shuffle: Shuffle | None) -> Iterator[Window]:
    """Yield the windows of one worker in one epoch.

    All row groups of the output are put into an order, the same for every worker: that of the files, or with
    ``shuffle`` an exact random permutation. Their rows, one behind the other, are the epoch; a worker has a `part` of
    it, so that the first and the last of its row groups may be shared with its neighbours. Without ``shuffle`` each
    piece is a window. With it ``shuffle.groups`` pieces are, and its rows come in an exact random permutation. So any
    row may come at any time of an epoch, but the rows of one row group, neighbours by their keys, come within the same
    window of each worker that reads some of them.

    Args:
        sizes: rows of each row group.
        mine: the worker's part of ``range(sizes.sum())``.
        shuffle: None keeps the order of the files.
    """
    groups = np.arange(len(sizes)) if shuffle is None else permutation(len(sizes), shuffle.seed, shuffle.epoch)
    pieces = _pieces(sizes[groups], groups, mine)
    at = mine.start
    while held := tuple(islice(pieces, 1 if shuffle is None else shuffle.groups)):
        rows = sum(len(piece.rows) for piece in held)
        order = np.arange(rows) if shuffle is None else permutation(rows, shuffle.seed, shuffle.epoch, at + 1)
        yield Window(held, order)
        at += rows


def _pieces(sizes: NDArray[np.int64], groups: NDArray[np.int64], mine: range) -> Iterator[Piece]:
    """The pieces of ``mine``, of groups that have ``sizes`` in this order."""
    ends = np.cumsum(sizes)
    for number in range(int(np.searchsorted(ends, mine.start, side="right")), len(ends)):
        start = int(ends[number] - sizes[number])
        rows = range(max(mine.start, start) - start, min(mine.stop, int(ends[number])) - start)
        if start >= mine.stop:
            return
        if rows:
            yield Piece(int(groups[number]), rows)


def permutation(things: int, *seeds: int) -> NDArray[np.int64]:
    """Return a random order of so many things: that of random numbers which are the same in every numpy."""
    drawn = np.random.Philox(np.random.SeedSequence(seeds)).random_raw(things)
    return np.argsort(drawn, kind="stable")


def passes(once: Callable[[], Iterator[Window]], *, endless: bool) -> Iterator[Window]:
    """Yield the windows of an epoch, if ``endless`` again and again."""
    return chain.from_iterable(once() for _ in (count() if endless else range(1)))


def from_position(coming: Iterable[Window], position: int) -> Iterator[tuple[Window, int]]:
    """Leave out the first ``position`` rows: yield the other windows, each with how many of its rows to leave out."""
    for window in coming:
        if position < len(window):
            yield window, position
        position = max(0, position - len(window))


def places(coming: Iterable[Window], positions: Iterable[int]) -> dict[int, tuple[int, int]]:
    """Say of rows by their positions in ``coming`` which row groups they are in, and their numbers there."""
    wanted, start = set(positions), 0
    found: dict[int, tuple[int, int]] = {}
    for window in coming:
        if len(found) == len(wanted):
            break
        if any(start <= position < start + len(window) for position in wanted):
            for position, (piece, row) in enumerate(window.places(), start):
                if position in wanted:
                    found[position] = window.pieces[piece].group, row
        start += len(window)
    return found
