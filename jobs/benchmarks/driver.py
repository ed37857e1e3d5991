"""The job in a driver process of its own, with all that is looked at from inside: receipts, memory, CPU, the store."""

from __future__ import annotations

import multiprocessing
import os
import re
import statistics
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import ray
from ray._private import internal_api

from inpaint_encode.job.cluster import joined
from inpaint_encode.job.progress import Silent
from inpaint_encode.settings import Source

from .cpu import CpuMeter, CpuReading
from .our_job import run_product, stand_in_backend

__all__ = ["Course", "Load", "Receipt", "Store", "drive"]


@dataclass(frozen=True)
class Load:
    """One run of the job with a stand-in for the VAE."""

    folder: Path
    """With ``images`` and ``masks`` in it; ``out`` is made there."""
    chunk_rows: int
    workers: int = 1
    seconds_per_image: float = 0.0


class Receipt(NamedTuple):
    """When the driver heard of one more chunk."""

    at_s: float
    pairs: int
    """Decided until then."""
    driver_cpu_s: float
    """What the driver had used until then, of all its threads but those that measure."""
    driver_bytes: int
    """What the driver had resident then."""


class Store(NamedTuple):
    """Ray's object store, by its own account."""

    used_bytes: int
    """At most, as sampled every 0.1 s."""
    spilled_bytes: int


@dataclass(frozen=True)
class Course:
    """What one run did."""

    receipts: tuple[Receipt, ...]
    used: CpuReading
    """Of all processes, from the first receipt to the last."""
    resident_before: int
    """Of the driver, in bytes, before it listed anything."""
    resident_peak: int
    """Of the driver, in bytes, since it was started."""
    store: Store
    report: dict[str, Any]

    @property
    def wall_ms_per_pair(self) -> float:
        """From the first receipt to the last."""
        return 1000 * self.seconds / self.pairs

    @property
    def cpu_ms_per_pair(self) -> float:
        """Of all processes, from the first receipt to the last."""
        return 1000 * self.used.seconds / self.pairs

    @property
    def driver_ms_per_chunk(self) -> float:
        """The driver's CPU time from the first receipt to the last."""
        first, last = self.receipts[0], self.receipts[-1]
        return 1000 * (last.driver_cpu_s - first.driver_cpu_s) / (len(self.receipts) - 1)

    @property
    def bytes_per_chunk(self) -> float:
        """What a chunk more adds to the driver's memory: the slope over the second half of the receipts."""
        half = self.receipts[len(self.receipts) // 2 :]
        return statistics.linear_regression(range(len(half)), [one.driver_bytes for one in half]).slope

    @property
    def seconds(self) -> float:
        """From the first receipt to the last."""
        return self.receipts[-1].at_s - self.receipts[0].at_s

    @property
    def pairs(self) -> int:
        """Decided after the first receipt."""
        return self.receipts[-1].pairs - self.receipts[0].pairs

    def rate(self, begin: float, end: float) -> float:
        """Pairs a second between two fractions of the receipts: the slope of a line through all of them."""
        first, last = (int(part * len(self.receipts)) for part in (begin, end))
        part = self.receipts[first : max(last, first + 2)]
        return statistics.linear_regression([one.at_s for one in part], [one.pairs for one in part]).slope


def drive(address: str, loads: Sequence[Load]) -> list[Course]:
    """Run the ``loads`` one after the other, in one new process that joins the Ray at ``address``."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_drive, address, loads).result()


def _drive(address: str, loads: Sequence[Load]) -> list[Course]:
    with joined(address), CpuMeter(root=os.getppid()) as meter:
        return [_course(load, meter) for load in loads]


def _course(load: Load, meter: CpuMeter) -> Course:
    before = _resident("VmRSS")
    with _StoreWatch() as store:
        watch = _Receipts(meter, store)
        report = run_product(
            Source(images=f"{load.folder}/images", masks=f"{load.folder}/masks"),
            load.folder / "out",
            backend_of=partial(stand_in_backend, seconds_per_image=load.seconds_per_image),
            display=watch,
            chunk_rows=load.chunk_rows,
            min_workers=load.workers,
            max_workers=load.workers,
            gpus_per_worker="0",
        )
    return Course(
        receipts=tuple(watch.receipts),
        used=watch.used,
        resident_before=before,
        resident_peak=_resident("VmHWM"),
        store=store.seen,
        report=report,
    )


def _resident(what: str) -> int:
    found = re.search(rf"{what}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return 1024 * int(found[1])


class _Receipts(Silent):
    """A display that notes every receipt, and what all processes use from the first to the last."""

    used: CpuReading

    def __init__(self, meter: CpuMeter, store: _StoreWatch) -> None:
        super().__init__()
        self.receipts: list[Receipt] = []
        self._meter, self._store = meter, store

    def start(self, total: int, done: int) -> None:
        """Remember when it will be over."""
        self._total = total

    def update(self, done: int, rejected: int, rate: float) -> None:
        """Note one receipt."""
        measuring = self._meter.own_seconds + self._store.own_seconds
        now = time.perf_counter()
        self.receipts.append(Receipt(now, done, time.process_time() - measuring, _resident("VmRSS")))
        if len(self.receipts) == 1:
            self._first = self._meter.read()
        if done == self._total:
            self.used = self._meter.read().since(self._first)


class _StoreWatch:
    """Looks at the object stores of all nodes, inside its ``with`` block."""

    def __init__(self) -> None:
        self._state = internal_api.get_state_from_address(ray.get_runtime_context().gcs_address)
        self._spilled_before, self._peak = self._look().spilled_bytes, 0
        self.own_seconds = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="store-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.seen = Store(self._peak, self._look().spilled_bytes - self._spilled_before)

    def _look_on(self) -> None:
        while not self._stop.wait(0.1):
            self._peak = max(self._peak, self._look().used_bytes)
            self.own_seconds = time.thread_time()

    def _look(self) -> Store:
        stats = internal_api.get_memory_info_reply(self._state).store_stats
        return Store(stats.object_store_bytes_used, stats.spilled_bytes_total)
