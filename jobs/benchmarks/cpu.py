"""CPU time of a process and of all processes that it started, for example Ray's workers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import psutil

__all__ = ["CpuMeter", "CpuReading"]

_AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
_Id = tuple[int, float]
"""A process id and its start time: the system reuses ids."""


class CpuReading(NamedTuple):
    """The counts of a `CpuMeter` at a moment, or the difference of two readings."""

    seconds: float
    """User and system time."""
    workers_started: int
    """Ray worker processes, each counted once."""

    def since(self, earlier: CpuReading) -> CpuReading:
        """Return the difference to an ``earlier`` reading of the same meter."""
        return CpuReading(self.seconds - earlier.seconds, self.workers_started - earlier.workers_started)


class _Usage(NamedTuple):
    seconds: float
    """CPU time of the process and of its children that have ended."""
    lost_at_end: bool
    """Whether the parent ignores SIGCHLD: the kernel then does not add the time to the parent's when the process
    ends."""


class CpuMeter:
    """Sums the CPU time of the process tree below a ``root``, inside its ``with`` block; Linux only.

    The kernel adds the time of an ended child to its parent's, except where the parent ignores SIGCHLD. Ray's raylet
    ignores it. So the meter samples the tree every ``period`` seconds and keeps the last sample of such a child. The
    meter's own time does not count.

    Not counted: the time of such a child after its last sample, children that live shorter than ``period``, and
    processes without an ancestor in the tree, for example daemons and a Ray that ran before.

    Args:
        exclude: processes to leave out, with their children; they must live longer than the meter.
        period: seconds between samples.
        root: process id; by default this process.
    """

    def __init__(self, exclude: Iterable[int] = (), period: float = 0.25, root: int | None = None) -> None:
        self._root = psutil.Process(root)
        self._exclude = frozenset(exclude)
        self._period = period
        self._alive: dict[_Id, _Usage] = {}
        self._workers: set[_Id] = set()
        self._lost = 0.0
        self.own_seconds = 0.0
        """CPU time of the meter itself, in this process."""
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._sampler = threading.Thread(target=self._sample_until_stopped, name="cpu-meter", daemon=True)

    def __enter__(self) -> Self:
        self._sampler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._sampler.join()

    def read(self) -> CpuReading:
        """Sample all processes now; takes a few milliseconds."""
        with self._lock:
            self._sample()
            seconds = sum(usage.seconds for usage in self._alive.values()) + self._lost - self.own_seconds
            return CpuReading(seconds, len(self._workers))

    def _sample_until_stopped(self) -> None:
        while not self._stop.wait(self._period):
            with self._lock:
                self._sample()

    def _sample(self) -> None:
        start = time.thread_time()
        alive: dict[_Id, _Usage] = {}
        ignoring: dict[int, bool] = {}
        for process in self._processes():
            try:
                with process.oneshot():
                    times, parent, identity = process.cpu_times(), process.ppid(), (process.pid, process.create_time())
                    if parent not in ignoring:
                        ignoring[parent] = _ignores_sigchld(parent)
                    seconds = times.user + times.system + times.children_user + times.children_system
                    alive[identity] = _Usage(seconds, ignoring[parent] and process != self._root)
                    if identity not in self._workers and _is_worker(process):
                        self._workers.add(identity)
            except psutil.NoSuchProcess:
                pass
        ended = [usage for identity, usage in self._alive.items() if identity not in alive]
        self._lost += sum(usage.seconds for usage in ended if usage.lost_at_end)
        self._alive = alive
        self.own_seconds += time.thread_time() - start

    def _processes(self) -> Iterator[psutil.Process]:
        """Yield the root and all processes below it, without the excluded ones."""
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
    """A Ray worker starts as a Python script, and then its title is the name of its task or actor."""
    words = process.cmdline()
    title = words[0] if words else ""
    titled = title.startswith("ray::") and not title.startswith(_AGENTS)
    return titled or any(word.endswith("/default_worker.py") for word in words)
