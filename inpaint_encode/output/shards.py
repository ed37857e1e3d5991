"""Several runs that encode one output: which leases they hold, and which chunks each of them encodes.

A run with ``--shard i/n`` encodes the units whose number modulo n is i. One of the runs plans, the others follow it.
When its own units are done, a run takes the units of other shards whose runs have ended or died. All this saves double
work only: two runs that encode the same chunk commit it once.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import pyarrow as pa

from inpaint_encode.settings import EncodeJob, RunOptions
from inpaint_encode.sources.pairs import PairSource
from inpaint_encode.stores import storage

from . import plan
from .lease import Lease, LeaseCandidate, acquire_lease, check_no_lease
from .notes import check_no_links
from .plan_log import PlanTaken
from .resume import Remaining
from .state import ChunkResult, Inventory, OutputState

LEASE = "_lease.json"
_LEASES = "_leases"
_PLAN_LEASE = f"{_LEASES}/plan.json"
_PLANNED = "planned.json"
"""Name of the note of the run that has planned the source last; it is no lease."""

_LEASE_NAME = re.compile(r"plan\.json|\d+-of-\d+\.json")
"""Names of leases in their folder."""

_POLL_S = 2.0
"""Interval of looking for new units while another run plans."""


def lease_path(run: RunOptions) -> str:
    """Return the path of a run's lease in the output."""
    return f"{_LEASES}/{'-of-'.join(map(str, run.shard_numbers))}.json" if run.shard else LEASE


@contextmanager
def hold_output(output: str, run: RunOptions, on_status: Callable[[str], None]) -> Iterator[Lease]:
    """Hold the lease of a run; a run without ``--shard`` excludes all others, and they exclude it.

    Raises:
        UsageError: another run holds a lease that excludes this one; or a folder of the output is a link.
    """
    check_no_links(output)
    with acquire_lease(storage.join(output, lease_path(run)), on_status) as lease:
        if run.shard:
            check_no_lease([storage.join(output, LEASE)], on_status)
        else:
            folder = storage.join(output, _LEASES)
            paths = [path for page in storage.list_objects(folder) for path in page.paths]
            check_no_lease([storage.join(folder, path) for path in paths if _LEASE_NAME.fullmatch(path)], on_status)
        yield lease


class SharedRemaining(Remaining):
    """What is left to encode for one of several runs; see `Remaining`.

    Args:
        state: of the output.
        inventory: its files.
        job: the settings.
        source: of the pairs.
        on_status: called with a line when the run waits for another one or takes over.
        stopped: ends a wait for other runs.
    """

    def __init__(
        self,
        state: OutputState,
        inventory: Inventory,
        job: EncodeJob,
        source: PairSource,
        on_status: Callable[[str], None],
        stopped: threading.Event,
    ) -> None:
        super().__init__(state, inventory, job, source)
        self._shard, self._shards = job.run.shard_numbers
        self._job = job
        self._on_status, self._stopped = on_status, stopped
        self._leases = ExitStack()
        self._uncommitted: set[str] = set()
        """Chunks that `work` has yielded and that are not committed yet."""

    def close(self) -> None:
        """Release the leases of shards that were taken over."""
        self._leases.close()

    def _committed(self, inventory: Inventory) -> dict[str, ChunkResult]:
        # The listing may have data files of units that other runs planned after the plan was read.
        for _ in self.log.read_on():
            pass
        return super()._committed(inventory)

    def note_committed(self, chunk: str) -> None:
        """Note that a chunk of `work` is committed."""
        self._uncommitted.discard(chunk)

    def _work_of(self, names: Sequence[str]) -> pa.Table:
        self._uncommitted.update(names)
        return super()._work_of(names)

    def _whole(self, results: Mapping[str, ChunkResult]) -> Mapping[str, ChunkResult]:
        """Return the results of all committed chunks, those of other runs included."""
        whole = self._committed(self.state.inventory())
        if others := sorted({plan.split_chunk_name(name)[0] for name in self.log.chunks.keys() - whole.keys()}):
            self._on_status(
                f"{len(others):,} of {len(self.log.units):,} units are left to other runs, first unit {others[0]}"
            )
        return whole

    def _is_last(self, whole: Mapping[str, ChunkResult]) -> bool:
        return len(whole) == len(self.log.chunks)

    def _names(self) -> Iterator[list[str]]:
        yield self._undone(self._shard)
        for names in self._planned_meanwhile():
            yield [name for name in names if plan.split_chunk_name(name)[0] % self._shards == self._shard]
        for number in range(self._shard + 1, self._shard + self._shards):
            shard = number % self._shards
            while self._uncommitted and not self._stopped.wait(_POLL_S):
                pass  # a run that took shards before it is done would take those of runs that are about to start
            if self._stopped.is_set():
                return
            uri = self.state.uri(_LEASES, f"{shard}-of-{self._shards}.json")
            if lease := LeaseCandidate(uri, lambda _: None).try_acquire():
                self._leases.enter_context(lease)
                self.done |= self._committed(self.state.inventory())
                if names := self._undone(shard):
                    self._on_status(f"taking over what the run with --shard {shard}/{self._shards} has left")
                    yield names

    def _undone(self, shard: int) -> list[str]:
        names = sorted(self.log.chunks.keys() - self.done.keys())
        return [name for name in names if plan.split_chunk_name(name)[0] % self._shards == shard]

    def _planned_meanwhile(self) -> Iterator[list[str]]:
        """Yield the chunks of new units, planned by this run or by another one, until the source is planned."""
        before = self._planned_note()
        candidate = LeaseCandidate(self.state.uri(_PLAN_LEASE), lambda _: None)
        while not self._stopped.is_set():
            lease = candidate.try_acquire()
            yield from self.log.read_on()
            if lease is not None:
                with lease:
                    if self._planned_note() == before:  # else another run has planned the source meanwhile
                        try:
                            yield from self.new_planner(self._job, self._source).plan()
                        except PlanTaken:  # by a run that took the lease; this one follows it
                            continue
                        storage.write(self.state.uri(_LEASES, _PLANNED), self.state.token.encode())
                return
            self._stopped.wait(_POLL_S)

    def _planned_note(self) -> bytes:
        """Return the token of the run that has planned the source last."""
        try:
            return storage.read(self.state.uri(_LEASES, _PLANNED), max_bytes=1_000).data
        except (FileNotFoundError, storage.TooLarge):
            return b""
