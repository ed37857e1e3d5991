"""A stream of an output's rows or batches: shared by ranks and workers, shuffled, read ahead, and resumable."""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain, islice
from typing import Any, NamedTuple, TypeVar

import torch
from torch.utils.data import IterableDataset, get_worker_info

from inpaint_encode.errors import UsageError

from . import order
from .batches import Bins, Function, applied, as_tensors, collate
from .columns import Row
from .groups import Groups
from .index import Index

__all__ = ["LatentStream", "Plan", "read_ahead", "rows_at", "this_rank"]

T = TypeVar("T")

_AT_ONCE = 4
"""Row groups that a list of rows is read from at the same time."""


@dataclass(frozen=True)
class Plan:
    """What a stream yields; see `inpaint_encode.reader.dataset.LatentDataset.stream`."""

    batch_size: int | None
    shuffle: bool
    seed: int
    shuffle_groups: int
    drop_last: bool
    even: bool
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "seed": 0, "shuffle_groups": 1, "rank": 0, "world_size": self.rank + 1}
        for name, bound in least.items():
            if (value := getattr(self, name)) is not None and value < bound:
                raise UsageError(f"{name} is {value}; it must be {bound} or more")


class _Position(NamedTuple):
    """How far an iteration is: what `LatentStream.state_dict` tells."""

    epoch: int
    taken: int = 0
    """Rows that were read, in the worker's own order."""
    waiting: tuple[int, ...] = ()
    """Those of them that no batch has had yet."""
    given: int = 0
    """Items that were yielded."""

    @classmethod
    def of(cls, state: dict[str, Any]) -> _Position:
        return cls(state["epoch"], state["taken"], tuple(state["waiting"]), state["given"])


@dataclass(frozen=True)
class _Course:
    """What one worker does in one epoch."""

    rows: range
    """Of the epoch, its part."""
    windows: Callable[[], Iterator[order.Window]]
    quota: int | None
    """Items that it yields; None is whatever its rows make."""
    of: dict[str, Any]
    """Everything that its order depends on."""


class LatentStream(IterableDataset[Row]):
    """Rows or batches of an output: iterate it, or give it to ``DataLoader(stream, batch_size=None, num_workers=…)``.

    **Shared.** Each rank, and in a ``DataLoader`` each worker, has its part of the rows, as large as any other's to
    within one row, so that all together yield every row exactly once an epoch, however few files there are.

    **Batches** are stacked by `collate`. Rows wait until there are enough of the same shapes; what still waits at the
    end of a worker's rows comes as smaller batches. So ranks may yield a few batches more or less than others. With
    ``even`` each yields rows // (world_size * batch_size), all full, as DistributedDataParallel needs it: rows that
    fill no batch are left out, and where a worker is short of like rows some of its rows come twice.

    **Shuffled.** `order.windows` says how: all row groups of an epoch in random order, and then the rows of
    ``shuffle_groups`` of them. Those are held in memory until they are yielded, and as many are read ahead: a row group
    takes 10 MB, whatever the images' size and however masks are stored.

    **Read** in ``prefetch`` threads, each a row group at a time, one request for it and one more where a file's footer
    is not among the 256 used last. Arrow decodes without Python's lock, so that workers pay only for slow functions.

    **Resumed** exactly, by `state_dict` and `load_state_dict`: those of one process, not of a ``DataLoader``'s workers,
    whose states torchdata's ``StatefulDataLoader`` collects.
    """

    def __init__(self, groups: Groups, functions: tuple[Function, ...], plan: Plan, prefetch: int) -> None:
        if prefetch < 1:
            raise UsageError(f"prefetch is {prefetch}; it must be 1 or more")
        self._groups, self._functions, self._plan, self._prefetch = groups, functions, plan, prefetch
        self._count = len(groups.index)  # read here, once, or else every worker would read it in every epoch
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # workers that live on see it change
        self._at: _Position | None = None
        self._of: dict[str, Any] = {}
        self._resume: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration, in workers too; without it every epoch has that of epoch 0."""
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}; it must be 0 or more")
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Say, as plain values, how far the iteration in this process is: what it yielded, not what it read ahead."""
        at = self._at or _Position(int(self._epoch))
        return {**at._asdict(), "waiting": list(at.waiting), "of": self._of}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration go on after what had been yielded when the state was taken, in its epoch.

        The rest of that epoch comes as it would have come. ``set_epoch`` before that iteration begins its epoch anew,
        unless it is the same one.
        """
        self.set_epoch(state["epoch"])
        self._resume, self._at, self._of = state, _Position.of(state), state["of"]

    def __len__(self) -> int:
        """Items that this rank yields in an epoch, in all its workers.

        Raises:
            TypeError: of batches it depends on shapes, which are not known before they are read, unless all ranks
                yield as many (``even``).
        """
        plan = self._plan
        if plan.even:
            return self._count // (plan.world_size * (plan.batch_size or 1))
        if plan.batch_size is not None:
            raise TypeError("the number of batches depends on the rows' shapes; it is known with even=True")
        return len(order.part(range(self._count), plan.rank, plan.world_size))

    def __iter__(self) -> Iterator[Row]:
        course = self._course(int(self._epoch))
        start, self._resume = self._start(course), None
        self._at, self._of = start, course.of
        return self._noted(course, start)

    def _noted(self, course: _Course, start: _Position) -> Iterator[Row]:
        for at, item in self._items(course, start):
            self._at = at
            yield item

    def _course(self, epoch: int) -> _Course:
        plan, index, worker = self._plan, self._groups.index, get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        of_rank = order.part(range(self._count), plan.rank, plan.world_size)
        mine = order.part(of_rank, number, workers)
        shuffle = order.Shuffle(plan.seed, epoch, plan.shuffle_groups) if plan.shuffle else None
        return _Course(
            rows=mine,
            windows=lambda: order.passes(lambda: order.windows(index.sizes, mine, shuffle), endless=plan.even),
            quota=order.quota(len(self), of_rank, mine) if plan.even else None,
            of={"row_groups": _fingerprint(index), **asdict(plan), "worker": number, "workers": workers},
        )

    def _start(self, course: _Course) -> _Position:
        """Where this iteration begins: at the epoch's beginning, or where a state says that another one ended."""
        epoch, state = int(self._epoch), self._resume
        if state is None or state["epoch"] != epoch or not state["of"]:
            return _Position(epoch)
        if differing := [name for name, value in course.of.items() if state["of"].get(name) != value]:
            was, now = ({name: of.get(name) for name in differing} for of in (state["of"], course.of))
            raise UsageError(f"the state is of another stream: {was} there, {now} here")
        return _Position.of(state)

    def _items(self, course: _Course, start: _Position) -> Iterator[tuple[_Position, Row]]:
        """Yield what a worker gives, from ``start`` on, each with where it is then."""
        make = self._batches if self._plan.batch_size else self._singles
        return make(course, start) if start.given != course.quota else iter(())

    def _singles(self, course: _Course, start: _Position) -> Iterator[tuple[_Position, Row]]:
        left = None if course.quota is None else course.quota - start.given
        for position, row in islice(self._rows(course, start.taken), left):
            yield _Position(start.epoch, position + 1, (), position + 1), row

    def _batches(self, course: _Course, at: _Position) -> Iterator[tuple[_Position, Row]]:
        bins = Bins(self._plan.batch_size or 1)
        for position, row in chain(self._waiting(course, at), self._rows(course, at.taken)):
            if batch := bins.add(position, row):
                at = _Position(at.epoch, position + 1, tuple(bins.positions), at.given + 1)
                yield at, collate(batch)
                if at.given == course.quota:
                    return
        for batch in () if self._plan.drop_last else bins.rest():
            at = _Position(at.epoch, len(course.rows), tuple(bins.positions), at.given + 1)
            yield at, collate(batch)

    def _waiting(self, course: _Course, at: _Position) -> Iterator[tuple[int, Row]]:
        """Read the rows again that were waiting when a state was taken."""
        found = order.places(course.windows(), at.waiting)
        rows = rows_at(self._groups, [found[position] for position in at.waiting])
        return ((position, applied(row, self._functions)) for position, row in zip(at.waiting, rows, strict=True))

    def _rows(self, course: _Course, taken: int) -> Iterator[tuple[int, Row]]:
        """Read the rows after the first ``taken`` ones."""
        coming = order.from_position(course.windows(), taken)
        for window, skipped, pieces in read_ahead(coming, self._piece, self._prefetch):
            for piece, row in islice(window.places(), skipped, None):
                yield taken, applied(pieces[piece].pop(row), self._functions)
                taken += 1

    def _piece(self, piece: order.Piece) -> dict[int, Row]:
        rows = self._groups.read(piece.group)
        return {number: as_tensors(rows[number]) for number in piece.rows}


def _fingerprint(index: Index) -> str:
    return f"{len(index.sizes):,} with {len(index):,} rows, {zlib.crc32(index.sizes.tobytes()):08x}"


def rows_at(groups: Groups, places: Sequence[tuple[int, int]]) -> list[Row]:
    """Read rows by their row groups and their numbers there, each group once, `_AT_ONCE` of them held at a time."""
    wanted: dict[int, list[int]] = {}
    for at, (group, _) in enumerate(places):
        wanted.setdefault(group, []).append(at)

    def read(group: int) -> list[tuple[int, Row]]:
        rows = groups.read(group)
        return [(at, as_tensors(rows[places[at][1]])) for at in wanted[group]]

    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = dict(chain.from_iterable(pool.map(read, wanted)))
    return [found[at] for at in range(len(places))]


def read_ahead(
    windows: Iterable[tuple[order.Window, int]], read: Callable[[order.Piece], T], threads: int
) -> Iterator[tuple[order.Window, int, list[T]]]:
    """Read windows' pieces in ``threads``: while a window is used the next one, or more for a piece a thread.

    Args:
        windows: each with a number that is handed on.
        read: what is made of a piece.
        threads: to read in; they end with this iterator.
    """
    coming: deque[tuple[order.Window, int, list[Future[T]]]] = deque()
    pool = ThreadPoolExecutor(threads, "read-ahead")
    try:
        for window, skipped in windows:
            coming.append((window, skipped, [pool.submit(read, piece) for piece in window.pieces]))
            while sum(len(reads) for _, _, reads in coming) - len(coming[0][2]) >= threads:
                yield _whole(*coming.popleft())
        while coming:
            yield _whole(*coming.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _whole(window: order.Window, skipped: int, reads: list[Future[T]]) -> tuple[order.Window, int, list[T]]:
    return window, skipped, [read.result() for read in reads]


def this_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return what is given, else torch.distributed's, else those of RANK and WORLD_SIZE, else of one process alone."""
    found = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return found[0] if rank is None else rank, found[1] if world_size is None else world_size
