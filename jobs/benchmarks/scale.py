"""How the job scales: with more pairs, with more workers, and with more pixels than the object store holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .data import SQUARE_64, SQUARE_512, PairSet, write_pairs
from .driver import JobRun, Workload, run_in_driver
from .extrapolation import IMAGES_PER_SECOND, extrapolation_section
from .figures import Figure, Ratio
from .record import Section
from .session import RaySession

__all__ = ["scale_sections", "store_section"]

_SIDE = SQUARE_512.sizes[0][0]
_STEADY = 0.4, 0.9
"""Fractions of the commits between which all workers have started and none has run out of work."""


@dataclass(frozen=True)
class Scale:
    """The size of each run."""

    pairs: tuple[int, ...] = (1_000, 10_000, 100_000)
    chunk_rows: int = 64
    workers: tuple[int, ...] = (1, 2, 4)
    chunks_per_worker: int = 50
    worker_chunk_rows: int = 32
    seconds_per_image: float = 0.02
    store_bytes: int = 300_000_000
    store_pairs: int = 3_800
    store_chunk_rows: int = 32
    store_seconds_per_image: float = 0.01


_QUICK = Scale((64, 128), 8, (1, 2), 6, 8, 0.005, 100_000_000, 32, 4, 0.005)


def scale_sections(folder: Path, *, quick: bool = False, images_per_second: float = IMAGES_PER_SECOND) -> list[Section]:
    """Run the job at several sizes, each in a new driver process, and extrapolate to hundreds of GPUs.

    It takes some minutes and 500 MB, and starts its own Ray; call it in a process that is not connected to one.

    Args:
        folder: a new one, for sources and outputs; the caller removes it.
        quick: run tiny sizes in one driver, in half a minute, to check that it works. The figures are of no use.
        images_per_second: of one GPU, for the extrapolation.
    """
    scale = _QUICK if quick else Scale()
    by_pairs, by_workers, store = _run_all(scale, folder, quick)
    files = [path.stat().st_size for side in ("images", "masks") for path in (folder / "store" / side).rglob("*.*")]
    bytes_in = sum(files) / scale.store_pairs
    many = by_pairs[scale.pairs[-1]]
    return [
        _pairs_section(by_pairs, scale),
        _workers_section(by_workers, scale),
        store_section(store, scale),
        extrapolation_section(many, store, _SIDE**2, bytes_in, images_per_second),
    ]


def _run_all(scale: Scale, folder: Path, quick: bool) -> tuple[dict[int, JobRun], dict[int, JobRun], JobRun]:
    """Write all pairs and run all workloads; return the runs by pairs, the runs by workers and the store's."""

    def workload(name: str, chosen: PairSet, count: int, rows: int, workers: int = 1, sleep: float = 0.0) -> Workload:
        write_pairs(folder / name, chosen, count)
        return Workload(folder / name, rows, workers, sleep)

    by_pairs = [workload(f"pairs-{count}", SQUARE_64, count, scale.chunk_rows) for count in scale.pairs]
    store = workload("store", SQUARE_512, scale.store_pairs, scale.store_chunk_rows, 1, scale.store_seconds_per_image)
    rows, seconds = scale.worker_chunk_rows, scale.seconds_per_image
    by_workers = [
        workload(f"workers-{count}", SQUARE_64, count * scale.chunks_per_worker * rows, rows, count, seconds)
        for count in scale.workers
    ]
    runs: list[JobRun] = []
    if not quick:  # each in its own driver, for its memory, after a warm-up run
        with RaySession(4, scale.store_bytes) as ray:
            runs += [run_in_driver(ray.address, [by_pairs[0], one])[-1] for one in (*by_pairs, store)]
    with RaySession(4 * max(scale.workers), scale.store_bytes) as ray:
        runs += run_in_driver(ray.address, [*by_pairs, store, *by_workers] if quick else by_workers)
    count = len(by_pairs)
    pairs, workers = zip(scale.pairs, runs[:count], strict=True), zip(scale.workers, runs[count + 1 :], strict=True)
    return dict(pairs), dict(workers), runs[count]


def _pairs_section(runs: Mapping[int, JobRun], scale: Scale) -> Section:
    text = (
        f"Pairs of {SQUARE_64.name} on a disk, in chunks of {scale.chunk_rows}, with a fake VAE that takes almost no "
        "time. Each size ran in a new driver process after the smallest size, all on one Ray of 4 logical CPUs. Times "
        "are from the first commit to the last, divided by the pairs between; CPU time is of all processes. Ray starts "
        "workers in that time, which matters in a small run. A pair more: the difference to the next smaller size, "
        "divided by the pairs between. Quarters: slopes inside the largest run. The driver's memory is resident and "
        "includes torch and Ray. It is measured before the run, at the first commit (all chunks are planned) and at "
        "the last. Memory per chunk is a slope over the second half of the commits."
    )
    figures = {count: _run_figures(f"{count:,} pairs", run) for count, run in runs.items()}
    slopes = [_slopes(runs, *sizes) for sizes in pairwise(scale.pairs)]
    smallest, largest = scale.pairs[0], scale.pairs[-1]
    # Not the first and the last: chunks queue up before the first commit, and the queue empties at the end.
    second, third = (
        Figure.once(
            f"{largest:,} pairs, wall, {name} quarter", "ms/pair", 1000 / runs[largest].rate(begin, begin + 0.25)
        )
        for name, begin in (("second", 0.25), ("third", 0.5))
    )
    compared = [(third, second), *zip(figures[largest][:2], figures[smallest][:2], strict=True)]
    if len(slopes) > 1:
        compared += zip(slopes[-1], slopes[0], strict=True)
    ratios = tuple(Ratio(f"{above.name} over {below.name}", above, below) for above, below in compared)
    groups = (*figures.values(), *slopes, [second, third])
    return Section("More pairs", text, tuple(figure for group in groups for figure in group), ratios)


def _run_figures(name: str, run: JobRun) -> list[Figure]:
    """Return a run's figures; the first two are compared from size to size."""
    values = (
        ("CPU of the driver", "ms CPU/chunk", run.driver_ms_per_chunk),
        ("driver memory, peak", "MB", run.resident_peak / 1e6),
        ("driver memory, before", "MB", run.resident_before / 1e6),
        ("driver memory, first commit", "MB", run.commits[0].driver_bytes / 1e6),
        ("driver memory, last commit", "MB", run.commits[-1].driver_bytes / 1e6),
        ("driver memory per chunk, second half", "kB/chunk", run.driver_bytes_per_chunk / 1e3),
        ("wall", "ms/pair", run.wall_ms_per_pair),
        ("CPU", "ms CPU/pair", run.cpu_ms_per_pair),
        ("Ray workers started", "processes", run.used.workers_started),
    )
    return [Figure.once(f"{name}, {what}", unit, value) for what, unit, value in values]


def _slopes(runs: Mapping[int, JobRun], few: int, many: int) -> list[Figure]:
    small, large = runs[few], runs[many]
    more = large.pairs - small.pairs
    name = f"a pair more, {few:,} to {many:,}"
    return [
        Figure.once(f"{name}, wall", "ms/pair", 1000 * (large.seconds - small.seconds) / more),
        Figure.once(f"{name}, CPU", "ms CPU/pair", 1000 * (large.used.seconds - small.used.seconds) / more),
    ]


def _workers_section(runs: Mapping[int, JobRun], scale: Scale) -> Section:
    begin, end = _STEADY
    text = (
        f"Workers whose fake VAE sleeps {1000 * scale.seconds_per_image:.0f} ms for each image, on pairs of "
        f"{SQUARE_64.name}, {scale.chunks_per_worker} chunks of {scale.worker_chunk_rows} for each worker. A rate is "
        f"the slope of pairs over time between {begin:.0%} and {end:.0%} of the commits; the sleep limits it. Ray has "
        "more logical CPUs than the machine, because sleep needs none."
    )
    names = {count: f"{count} worker{'s' if count > 1 else ''}" for count in runs}
    rates = {count: Figure.once(names[count], "pairs/s", run.rate(*_STEADY)) for count, run in runs.items()}
    first = scale.workers[0]
    ratios: list[Ratio] = []
    for count, rate in rates.items():
        limit = Figure.once("limit", "pairs/s", count / scale.seconds_per_image)
        ratios.append(Ratio(f"{names[count]} over the limit of the sleep", rate, limit))
        if count > first:
            linear = Figure.once("linear", "pairs/s", rates[first].median * count / first)
            ratios.append(Ratio(f"{names[count]} over linear", rate, linear))
    return Section("More workers", text, tuple(rates.values()), tuple(ratios))


def store_section(run: JobRun, scale: Scale) -> Section:
    """Return the use of the object store by a run whose pixels exceed it."""
    text = (
        f"{scale.store_pairs:,} pairs of {SQUARE_512.name} on a disk, in chunks of {scale.store_chunk_rows}, one "
        f"worker whose fake VAE sleeps {1000 * scale.store_seconds_per_image:.0f} ms for each image, so that decoding "
        "is faster. "
    )
    size = Figure.once("object store", "MB", scale.store_bytes / 1e6)
    pixels = Figure.once("pixels and masks", "MB", scale.store_pairs * _SIDE**2 * (3 + 1 / 8) / 1e6)
    figures = [size, pixels]
    ratios = [Ratio("pixels over the store", pixels, size)]
    if run.store is None:
        text += "This version of Ray does not report the use of its object store."
    else:
        text += "Ray reports the store's use and what it spilled; sampled ten times a second."
        peak = Figure.once("peak use of the store", "MB", run.store.peak_bytes / 1e6)
        figures += [peak, Figure.once("spilled to disk", "MB", run.store.spilled_bytes / 1e6)]
        ratios.append(Ratio("peak over the store", peak, size))
    figures.append(Figure.once("wall", "ms/pair", run.wall_ms_per_pair))
    figures.append(Figure.once("CPU", "ms CPU/pair", run.cpu_ms_per_pair))
    return Section("More pixels than the object store holds", text, tuple(figures), tuple(ratios))
