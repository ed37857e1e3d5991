"""Runs the job in a driver process of its own and measures it: time, CPU, memory and Ray's object store."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import ray

from inpaint_encode.job.cluster import connect_ray
from inpaint_encode.job.progress import Display
from inpaint_encode.settings import Source

from .cpu import CpuMeter, CpuReading
from .our_job import fake_backend, run_our_job

__all__ = ["Commit", "JobRun", "StoreUsage", "Workload", "run_in_driver"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Workload:
    """One run of the job with a fake VAE."""

    folder: Path
    """Contains ``images`` and ``masks``; the job writes to ``out`` in it."""
    chunk_rows: int
    workers: int = 1
    seconds_per_image: float = 0.0


class Commit(NamedTuple):
    """Measured in the driver when one more chunk is committed."""

    at_s: float
    pairs: int
    """Pairs encoded or rejected so far."""
    driver_cpu_s: float
    """CPU time of the driver so far, without the threads that measure."""
    driver_bytes: int
    """Resident memory of the driver."""


class StoreUsage(NamedTuple):
    """Use of Ray's object store, as Ray reports it."""

    peak_bytes: int
    """Maximum of samples every 0.1 s."""
    spilled_bytes: int


@dataclass(frozen=True)
class JobRun:
    """The measurements of one run. Times are from the first commit to the last, so that Ray's start does not count."""

    commits: tuple[Commit, ...]
    used: CpuReading
    """Of all processes."""
    resident_before: int
    """Bytes of the driver before it lists the pairs."""
    resident_peak: int
    """Bytes of the driver since its start."""
    store: StoreUsage | None
    """None if this version of Ray does not report it."""
    report: dict[str, Any]

    @property
    def seconds(self) -> float:
        """Wall time."""
        return self.commits[-1].at_s - self.commits[0].at_s

    @property
    def pairs(self) -> int:
        """Pairs after the first commit."""
        return self.commits[-1].pairs - self.commits[0].pairs

    @property
    def wall_ms_per_pair(self) -> float:
        """Wall time of a pair."""
        return 1000 * self.seconds / self.pairs

    @property
    def cpu_ms_per_pair(self) -> float:
        """CPU time of all processes for a pair."""
        return 1000 * self.used.seconds / self.pairs

    @property
    def driver_ms_per_chunk(self) -> float:
        """CPU time of the driver for a chunk."""
        used = self.commits[-1].driver_cpu_s - self.commits[0].driver_cpu_s
        return 1000 * used / (len(self.commits) - 1)

    @property
    def driver_bytes_per_chunk(self) -> float:
        """Memory of the driver for one more chunk: the slope over the second half of the commits."""
        half = self.commits[len(self.commits) // 2 :]
        return statistics.linear_regression(range(len(half)), [commit.driver_bytes for commit in half]).slope

    def rate(self, begin: float, end: float) -> float:
        """Pairs a second between two fractions of the commits: the slope of a line through all of them."""
        first, last = (int(fraction * len(self.commits)) for fraction in (begin, end))
        part = self.commits[first : max(last, first + 2)]
        return statistics.linear_regression([one.at_s for one in part], [one.pairs for one in part]).slope


def run_in_driver(address: str, workloads: Sequence[Workload]) -> list[JobRun]:
    """Run the workloads one after the other, in one new process that connects to the Ray at ``address``."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_run_all, address, workloads).result()


def _run_all(address: str, workloads: Sequence[Workload]) -> list[JobRun]:
    with connect_ray(address), CpuMeter(root=os.getppid()) as meter:
        return [_run(workload, meter) for workload in workloads]


def _run(workload: Workload, meter: CpuMeter) -> JobRun:
    before = _memory("VmRSS")
    with _StoreMonitor() as store:
        display = _CommitRecorder(meter, store)
        report = run_our_job(
            Source(images=f"{workload.folder}/images", masks=f"{workload.folder}/masks"),
            workload.folder / "out",
            backend_of=partial(fake_backend, seconds_per_image=workload.seconds_per_image),
            display=display,
            chunk_rows=workload.chunk_rows,
            min_workers=workload.workers,
            max_workers=workload.workers,
            gpus_per_worker="0",
        )
    return JobRun(tuple(display.commits), display.used, before, _memory("VmHWM"), store.usage, report)


def _memory(field: str) -> int:
    """Return a field of this process's memory statistics, in bytes."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


class _CommitRecorder(Display):
    """A display that records every commit, and the CPU time of all processes from the first to the last."""

    used: CpuReading

    def __init__(self, meter: CpuMeter, store: _StoreMonitor) -> None:
        super().__init__()
        self.commits: list[Commit] = []
        self._meter, self._store = meter, store

    def update(self, done: int, total: int, rejected: int, rate: float) -> None:
        """Record one commit."""
        cpu = time.process_time() - self._meter.own_seconds - self._store.own_seconds
        self.commits.append(Commit(time.perf_counter(), done, cpu, _memory("VmRSS")))
        if len(self.commits) == 1:
            self._first = self._meter.read()
        if done == total:
            self.used = self._meter.read().since(self._first)


class _StoreMonitor:
    """Samples the object stores of all nodes, inside its ``with`` block; ``usage`` is set at the end."""

    def __init__(self) -> None:
        self.usage: StoreUsage | None = None
        self.own_seconds = 0.0
        """CPU time of the monitor itself."""
        self._read = store_statistics()
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="store-monitor", daemon=True)

    def __enter__(self) -> Self:
        if self._read is not None:
            self._spilled_before = self._read().spilled_bytes_total
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._read is not None:
            self._stop.set()
            self._thread.join()
            self.usage = StoreUsage(self._peak, self._read().spilled_bytes_total - self._spilled_before)

    def _sample(self) -> None:
        assert self._read is not None
        while not self._stop.wait(0.1):
            self._peak = max(self._peak, self._read().object_store_bytes_used)
            self.own_seconds = time.thread_time()


def store_statistics() -> Callable[[], Any] | None:
    """Return a function that reads the object stores' statistics from a private API of Ray; None if it is missing."""
    try:
        from ray._private.internal_api import get_memory_info_reply, get_state_from_address

        state = get_state_from_address(ray.get_runtime_context().gcs_address)
        get_memory_info_reply(state).store_stats  # noqa: B018
    except (ImportError, AttributeError):
        _LOG.warning("this version of Ray does not report its object store's use; the record omits these figures")
        return None
    return lambda: get_memory_info_reply(state).store_stats
