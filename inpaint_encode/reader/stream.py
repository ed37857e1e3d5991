"""An iterable dataset of rows or batches: sharded over ranks and workers, shuffled, prefetched and resumable."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from inpaint_encode.errors import UsageError

from . import sampler
from .batches import ShapeBuckets, Transform, apply_transforms, collate, read_ahead, read_rows, to_tensors
from .groups import RowGroupReader
from .output import Row


@dataclass(frozen=True)
class StreamOptions:
    """Options that determine what a stream yields; see `LatentDataset.stream`."""

    batch_size: int | None
    shuffle: bool
    seed: int
    shuffle_groups: int
    drop_last: bool
    even: bool
    rank: int
    world_size: int

    def __post_init__(self) -> None:
        minimums = {"batch_size": 1, "seed": 0, "shuffle_groups": 1, "rank": 0, "world_size": 1}
        for name, minimum in minimums.items():
            if (value := getattr(self, name)) is not None and value < minimum:
                raise UsageError(f"{name} is {value}; it must be {minimum} or more")
        if self.rank >= self.world_size:
            raise UsageError(
                f"rank is {self.rank}, but ranks are 0 to {self.world_size - 1}: world_size is {self.world_size}"
            )


class _Position(NamedTuple):
    """Progress of an iteration, as in `LatentStream.state_dict`."""

    epoch: int
    taken: int = 0
    """Rows read, in the worker's order."""
    waiting: Sequence[int] = ()
    """Positions of read rows that are in no batch yet."""
    given: int = 0
    """Items yielded."""

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> _Position:
        return cls(**{name: state[name] for name in cls._fields})


class LatentStream(IterableDataset[Row]):
    """Iterable dataset of rows or batches; created by `LatentDataset.stream`.

    Iterate it, or pass it to ``DataLoader(stream, batch_size=None, num_workers=...)``.

    **Sharding.** Every rank, and every worker of a ``DataLoader``, reads its own shard of the rows. The sizes of the
    shards differ by at most one row. Together they yield each row exactly once per epoch.

    **Batches.** Rows are collected by the shapes of their tensors and stacked by `collate`. The rows that are left at
    the end of a shard form smaller batches, so the number of batches can differ between ranks. With ``even``, every
    rank yields rows // (world_size * batch_size) full batches, as DistributedDataParallel requires: some rows are left
    out, and a worker that has too few rows of one shape repeats rows.

    **Shuffling.** Row groups come in random order, and the rows of ``shuffle_groups`` row groups are mixed; see
    `sampler.windows`. These row groups are in memory, and the next ones are prefetched: about 10 MB per row group.

    **Prefetching.** ``prefetch`` threads read one row group each. A row group is one request, plus one if the file's
    footer is not among the last 256 used. Arrow decodes without the GIL, so workers help only with slow transforms.

    **Resuming.** `state_dict` and `load_state_dict` resume exactly, within one process. For the workers of a
    ``DataLoader``, use torchdata's ``StatefulDataLoader``.
    """

    def __init__(
        self, groups: RowGroupReader, transforms: tuple[Transform, ...], options: StreamOptions, prefetch: int
    ) -> None:
        if prefetch < 1:
            raise UsageError(f"prefetch is {prefetch}; it must be 1 or more")
        self._groups, self._transforms, self._options, self._prefetch = groups, transforms, options, prefetch
        self._count = len(groups.index)  # builds the index here, once, and not in every worker and epoch
        self._epoch: torch.Tensor = torch.zeros((), dtype=torch.int64)
        self._epoch.share_memory_()  # type: ignore[no-untyped-call]  # persistent workers see changes
        self._position: _Position | None = None
        self._identity: dict[str, Any] = {}
        self._resume: dict[str, Any] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, which determines the order of the next iteration, in workers too. The default is 0."""
        if epoch < 0:
            raise UsageError(f"epoch is {epoch}; it must be 0 or more")
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the progress of this process's iteration as JSON values. Prefetched rows do not count."""
        position = self._position or _Position(int(self._epoch))
        return {**position._asdict(), "waiting": list(position.waiting), "of": self._identity}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next iteration continue after the last item that was yielded before `state_dict`.

        The rest of that epoch is the same as without the interruption. ``set_epoch`` with another epoch before the
        iteration discards the state.
        """
        self.set_epoch(state["epoch"])
        self._resume, self._position, self._identity = state, _Position.from_state(state), state["of"]

    def __len__(self) -> int:
        """Return the number of items that this rank yields per epoch, in all its workers.

        Raises:
            TypeError: the items are batches and ``even`` is False: their number depends on the rows' shapes.
        """
        options = self._options
        if options.even:
            return self._count // (options.world_size * (options.batch_size or 1))
        if options.batch_size is not None:
            raise TypeError("the number of batches depends on the rows' shapes; it is known with even=True")
        return len(sampler.shard(range(self._count), options.rank, options.world_size))

    def __iter__(self) -> Iterator[Row]:
        options, index, worker, epoch = self._options, self._groups.index, get_worker_info(), int(self._epoch)
        sizes = index.sizes
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        rank_rows = sampler.shard(range(self._count), options.rank, options.world_size)
        rows = sampler.shard(rank_rows, number, workers)
        quota = sampler.shard_quota(len(self), rank_rows, rows) if options.even else None
        shuffle = sampler.Shuffle(options.seed, epoch, options.shuffle_groups) if options.shuffle else None

        def windows() -> Iterator[sampler.Window]:
            passes = count() if options.even else range(1)
            return chain.from_iterable(sampler.windows(sizes, rows, shuffle) for _ in passes)

        checksum = 0
        for first in range(0, len(sizes), sampler.BLOCK_GROUPS):
            checksum = zlib.crc32(sizes[first : first + sampler.BLOCK_GROUPS].astype(np.int64).tobytes(), checksum)
        fingerprint = f"{len(sizes):,} with {len(index):,} rows, {checksum:08x}"
        identity = {"row_groups": fingerprint, **asdict(options), "worker": number, "workers": workers}
        start, state = _Position(epoch), self._resume
        if state is not None and state["epoch"] == epoch and state["of"]:
            if different := [name for name, value in identity.items() if state["of"].get(name) != value]:
                theirs, ours = ({name: of.get(name) for name in different} for of in (state["of"], identity))
                raise UsageError(f"the loaded state is of another stream: it has {theirs}, this stream has {ours}")
            start = _Position.from_state(state)
        self._resume, self._position, self._identity = None, start, identity
        return self._iterate(start, windows, len(rows), quota)

    def _iterate(
        self, position: _Position, windows: Callable[[], Iterator[sampler.Window]], row_count: int, quota: int | None
    ) -> Iterator[Row]:
        """Yield the items after ``position``, and keep `_position` at the last item yielded.

        Args:
            position: where to start.
            windows: returns the windows of this worker in this epoch.
            row_count: number of the worker's rows.
            quota: number of items to yield; None yields all rows once.
        """
        if position.given == quota:
            return
        batch_size = self._options.batch_size
        buckets = ShapeBuckets(batch_size or 1)
        waiting_rows = self._waiting_rows(windows(), position.waiting)
        for number, row in chain(waiting_rows, self._rows(windows(), position.taken)):
            if batch := buckets.add(number, row):
                position = _Position(position.epoch, number + 1, buckets.positions, position.given + 1)
                self._position = position
                yield collate(batch) if batch_size else row
                if position.given == quota:
                    return
        for batch in () if self._options.drop_last else buckets.drain():
            position = self._position = _Position(position.epoch, row_count, buckets.positions, position.given + 1)
            yield collate(batch)

    def _waiting_rows(self, windows: Iterator[sampler.Window], waiting: Sequence[int]) -> Iterator[tuple[int, Row]]:
        """Read the rows again that were in no batch when the state was saved."""
        places = sampler.locate(windows, waiting)
        rows = read_rows(self._groups, [places[number] for number in waiting])
        for number, row in zip(waiting, rows, strict=True):
            yield number, apply_transforms(row, self._transforms)

    def _rows(self, windows: Iterator[sampler.Window], taken: int) -> Iterator[tuple[int, Row]]:
        """Yield each row after the first ``taken`` rows with its position."""

        def read(part: sampler.RowSlice) -> dict[int, Row]:
            rows = self._groups.read(part.group)
            return {number: to_tensors(rows[number]) for number in part.rows}

        for window, slices in read_ahead(sampler.skip_rows(windows, taken), read, self._prefetch):
            for number, row in window.rows():
                yield taken, apply_transforms(slices[number].pop(row), self._transforms)
                taken += 1


def current_rank(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """Return rank and world size. Defaults: those of torch.distributed, else RANK and WORLD_SIZE, else 0 and 1."""
    found = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        found = torch.distributed.get_rank(), torch.distributed.get_world_size()
    return found[0] if rank is None else rank, found[1] if world_size is None else world_size
