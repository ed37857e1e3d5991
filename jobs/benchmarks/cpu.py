"""CPU time of a process and of everything that it started, Ray's workers among them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import psutil

__all__ = ["CpuMeter", "CpuReading"]

_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_Id = tuple[int, float]
"""A process id and its start: ids are used again."""


class CpuReading(NamedTuple):
    """What a `CpuMeter` has counted up to a moment, or between two of them."""

    seconds: float
    """User and system time."""
    workers_started: int
    """Ray worker processes, each counted once."""
    workers_alive: int
    """At the moment, or at the later of the two."""

    def since(self, earlier: CpuReading) -> CpuReading:
        """What came on top of an ``earlier`` reading of the same meter."""
        started = self.workers_started - earlier.workers_started
        return CpuReading(self.seconds - earlier.seconds, started, self.workers_alive)


class _Usage(NamedTuple):
    seconds: float
    """Its own, and those of its children that it has waited for."""
    forgotten: bool
    """Its parent ignores SIGCHLD: the kernel then adds its time to nobody's when it ends."""


class CpuMeter:
    """Adds up CPU time over the live tree of processes below a ``root``, inside its ``with`` block; Linux only.

    The time of a child that has ended is in its parent's account, but not where the parent ignores SIGCHLD, and Ray's
    raylet does: a worker that ends takes its seconds with it. So the tree is looked at every ``period`` seconds, and
    what such a process had used when it was last seen is kept. The meter's own time is taken off.

    It misses what such a process used in its last ``period`` seconds, processes that lived no longer than that, and
    whatever has no ancestor here: a Ray that was there before, and daemons. ``exclude`` leaves out processes with
    all that they started, such as an S3 server; they must outlive the meter. The ``root`` is this process, or one
    above it.
    """

    def __init__(self, exclude: Iterable[int] = (), period: float = 0.25, root: int | None = None) -> None:
        self._root = psutil.Process(root)
        self._exclude = frozenset(exclude)
        self._period = period
        self._alive: dict[_Id, _Usage] = {}
        self._workers: set[_Id] = set()
        self._forgotten = self._own = 0.0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample_on, name="cpu-meter", daemon=True)

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._sampler.join()

    @property
    def own_seconds(self) -> float:
        """CPU time that the meter itself has used, in this process."""
        return self._own

    def read(self) -> CpuReading:
        """Look at every process now; a few milliseconds."""
        with self._lock:
            self._sample()
            seconds = sum(usage.seconds for usage in self._alive.values()) + self._forgotten - self._own
            return CpuReading(seconds, len(self._workers), len(self._workers & self._alive.keys()))

    def _sample_on(self) -> None:
        while not self._stop.wait(self._period):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        start = time.thread_time()
        alive: dict[_Id, _Usage] = {}
        deaf: dict[int, bool] = {}
        for process in self._processes():
            try:
                with process.oneshot():
                    self._look_at(process, alive, deaf)
            except psutil.NoSuchProcess:
                pass
        gone = self._alive.keys() - alive.keys()
        self._forgotten += sum(self._alive[one].seconds for one in gone if self._alive[one].forgotten)
        self._alive = alive
        self._own += time.thread_time() - start

    def _look_at(self, process: psutil.Process, alive: dict[_Id, _Usage], deaf: dict[int, bool]) -> None:
        times, parent = process.cpu_times(), process.ppid()
        one = process.pid, process.create_time()
        if parent not in deaf:
            deaf[parent] = _ignores_sigchld(parent)
        seconds = times.user + times.system + times.children_user + times.children_system
        alive[one] = _Usage(seconds, deaf[parent] and process != self._root)
        if one not in self._workers and _is_worker(process):
            self._workers.add(one)

    def _processes(self) -> Iterator[psutil.Process]:
        """This process and all below it, but for what is excluded."""
        excluded = set(self._exclude)
        yield self._root
        for process in self._root.children(recursive=True):  # parents before their children
            try:
                if process.pid in excluded or process.ppid() in excluded:
                    excluded.add(process.pid)
                else:
                    yield process
            except psutil.NoSuchProcess:
                pass


def _ignores_sigchld(pid: int) -> bool:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return False
    ignored = next(int(line.split()[1], 16) for line in lines if line.startswith("SigIgn:"))
    return bool(ignored >> (signal.SIGCHLD - 1) & 1)


def _is_worker(process: psutil.Process) -> bool:
    """A worker is a Python script at first and then takes the name of what it runs."""
    words = process.cmdline()
    title = words[0] if words else ""
    named = title.startswith("ray::") and not title.startswith(_AGENTS)
    return named or any(word.endswith("/default_worker.py") for word in words)
