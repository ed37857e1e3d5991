"""What happens to the job as it grows: more pairs, more workers, more pixels than the object store holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import NamedTuple

from .data import ONE_SIZE, SMALL, BenchSet, write_pairs
from .driver import Course, Load, drive
from .extrapolation import IMAGES_PER_SECOND, Costs, paper_section
from .figures import Figure, Ratio
from .record import Section
from .session import RaySession

__all__ = ["scale_record"]

_SIDE = ONE_SIZE.sizes[0][0]
_STEADY = 0.4, 0.9
"""Of the receipts: all workers are up before, and none has run out of work after."""


@dataclass(frozen=True)
class _Scale:
    """How much of everything."""

    pairs: tuple[int, ...]
    chunk_rows: int
    workers: tuple[int, ...]
    chunks_per_worker: int
    worker_chunk_rows: int
    seconds_per_image: float
    store_bytes: int
    store_pairs: int
    store_chunk_rows: int
    store_seconds_per_image: float


_FULL = _Scale(
    pairs=(1_000, 10_000, 100_000),
    chunk_rows=64,
    workers=(1, 2, 4),
    chunks_per_worker=50,
    worker_chunk_rows=32,
    seconds_per_image=0.02,
    store_bytes=300_000_000,
    store_pairs=3_800,
    store_chunk_rows=32,
    store_seconds_per_image=0.01,
)
_QUICK = _Scale(
    pairs=(64, 128),
    chunk_rows=8,
    workers=(1, 2),
    chunks_per_worker=6,
    worker_chunk_rows=8,
    seconds_per_image=0.005,
    store_bytes=100_000_000,
    store_pairs=32,
    store_chunk_rows=4,
    store_seconds_per_image=0.005,
)


class _Courses(NamedTuple):
    growth: Mapping[int, Course]
    """By pairs."""
    workers: Mapping[int, Course]
    """By workers."""
    store: Course


def scale_record(folder: Path, *, quick: bool = False, images_per_second: float = IMAGES_PER_SECOND) -> list[Section]:
    """Run the job at several sizes, each in a driver process of its own, and reckon what hundreds of GPUs would need.

    It takes some minutes and 500 MB below ``folder``, and Rays that it starts and ends itself; call it while this
    process has joined none. If ``quick``, all is tiny and runs in one driver, so that the memory of the larger size is
    not its own: enough to see that it works, too little to learn anything from.

    Args:
        folder: a new one, for sources and outputs; the caller removes it.
        quick: whether to be done in half a minute.
        images_per_second: of one GPU, for the reckoning.
    """
    scale = _QUICK if quick else _FULL
    courses = (_together if quick else _apart)(scale, folder)
    costs = Costs.of(courses.growth[scale.pairs[-1]], courses.store, _bytes_per_pair(folder / "store"), _SIDE)
    return [
        _growth_section(courses.growth, scale),
        _workers_section(courses.workers, scale),
        _store_section(courses.store, scale),
        paper_section(costs, images_per_second),
    ]


def _apart(scale: _Scale, folder: Path) -> _Courses:
    growth, workers, store = _loads(scale, folder)
    warm_up = growth[scale.pairs[0]]
    with RaySession(4, scale.store_bytes) as ray:
        growing = {count: drive(ray.address, [warm_up, load])[-1] for count, load in growth.items()}
        storing = drive(ray.address, [warm_up, store])[-1]
    with RaySession(4 * max(scale.workers), scale.store_bytes) as ray:
        working = drive(ray.address, list(workers.values()))
    return _Courses(growing, dict(zip(workers, working, strict=True)), storing)


def _together(scale: _Scale, folder: Path) -> _Courses:
    growth, workers, store = _loads(scale, folder)
    with RaySession(4 * max(scale.workers), scale.store_bytes) as ray:
        *courses, last = drive(ray.address, [*growth.values(), *workers.values(), store])
    growing, working = courses[: len(growth)], courses[len(growth) :]
    return _Courses(dict(zip(growth, growing, strict=True)), dict(zip(workers, working, strict=True)), last)


def _loads(scale: _Scale, folder: Path) -> tuple[dict[int, Load], dict[int, Load], Load]:
    """Write all pairs; for each section, say what is to be done with them."""
    growth = {count: _load(folder / f"pairs-{count}", SMALL, count, scale.chunk_rows) for count in scale.pairs}
    waiting = partial(_load, chunk_rows=scale.worker_chunk_rows, seconds_per_image=scale.seconds_per_image)
    each = scale.chunks_per_worker * scale.worker_chunk_rows
    workers = {n: waiting(folder / f"workers-{n}", SMALL, n * each, workers=n) for n in scale.workers}
    seconds = scale.store_seconds_per_image
    store = _load(folder / "store", ONE_SIZE, scale.store_pairs, scale.store_chunk_rows, seconds_per_image=seconds)
    return growth, workers, store


def _load(
    folder: Path, chosen: BenchSet, count: int, chunk_rows: int, *, workers: int = 1, seconds_per_image: float = 0.0
) -> Load:
    write_pairs(folder, chosen, count)
    return Load(folder, chunk_rows, workers, seconds_per_image)


def _bytes_per_pair(folder: Path) -> float:
    sizes = {side: [path.stat().st_size for path in (folder / side).rglob("*.*")] for side in ("images", "masks")}
    return sum(map(sum, sizes.values())) / len(sizes["images"])


def _growth_section(courses: Mapping[int, Course], scale: _Scale) -> Section:
    text = (
        f"Pairs of {SMALL.name} on a disk, in chunks of {scale.chunk_rows}, with a stand-in for the VAE that takes "
        "next to no time. Each size in a new driver process that had run the smallest size before, all on one Ray of "
        "4 logical CPUs. Time is from the first receipt to the last, over the pairs between, CPU that of every "
        "process. Ray starts workers meanwhile, which weighs on a small run; a pair more is what one size took beyond "
        "the next smaller one, over the pairs between them. Quarters are slopes inside the largest run. The driver's "
        "memory is resident, torch and Ray included: before the run, when the first chunk is done, all being planned, "
        "and when the last one is; its growth is a slope over the receipts' second half, its peak that of its life."
    )
    figures = {count: _growth_figures(count, course) for count, course in courses.items()}
    slopes = [_slopes(courses, *sizes) for sizes in pairwise(scale.pairs)]
    quarters = _quarters(scale.pairs[-1], courses[scale.pairs[-1]])
    compared = [(last, first) for last, first in zip(slopes[-1], slopes[0], strict=True) if last is not first]
    compared += zip(figures[scale.pairs[-1]][:2], figures[scale.pairs[0]][:2], strict=True)
    compared.append((quarters[1], quarters[0]))
    ratios = tuple(Ratio(f"{above.name} over {below.name}", above, below) for above, below in compared)
    return Section("Growing the work", text, (*chain(*figures.values(), *slopes), *quarters), ratios)


def _slopes(courses: Mapping[int, Course], few: int, many: int) -> list[Figure]:
    small, large = courses[few], courses[many]
    more = large.pairs - small.pairs
    name = f"a pair more, {few:,} to {many:,}"
    return [
        _once(f"{name}, wall", "ms/pair", 1000 * (large.seconds - small.seconds) / more),
        _once(f"{name}, CPU", "ms CPU/pair", 1000 * (large.used.seconds - small.used.seconds) / more),
    ]


def _quarters(count: int, course: Course) -> list[Figure]:
    """The middle two: chunks pile up before the first receipt, and the pile is cleared at the end."""
    parts = {"second quarter": (0.25, 0.5), "third quarter": (0.5, 0.75)}
    return [_once(f"{count:,} pairs, wall, {name}", "ms/pair", 1000 / course.rate(*of)) for name, of in parts.items()]


def _growth_figures(count: int, course: Course) -> list[Figure]:
    """The first two are compared from size to size."""
    first, last = course.receipts[0].driver_bytes, course.receipts[-1].driver_bytes
    values: dict[str, tuple[str, float]] = {
        "CPU of the driver": ("ms CPU/chunk", course.driver_ms_per_chunk),
        "driver's peak": ("MB", course.resident_peak / 1e6),
        "driver before": ("MB", course.resident_before / 1e6),
        "driver at the first receipt": ("MB", first / 1e6),
        "driver at the last": ("MB", last / 1e6),
        "driver's growth, second half": ("kB/chunk", course.bytes_per_chunk / 1e3),
        "wall": ("ms/pair", course.wall_ms_per_pair),
        "CPU": ("ms CPU/pair", course.cpu_ms_per_pair),
        "Ray workers started meanwhile": ("processes", course.used.workers_started),
    }
    return [_once(f"{count:,} pairs, {name}", unit, value) for name, (unit, value) in values.items()]


def _workers_section(courses: Mapping[int, Course], scale: _Scale) -> Section:
    begin, end = _STEADY
    text = (
        f"Workers whose VAE sleeps {1000 * scale.seconds_per_image:.0f} ms for each image, one after the other, on "
        f"pairs of {SMALL.name}, {scale.chunks_per_worker} chunks of {scale.worker_chunk_rows} for each worker. A rate "
        f"is the slope of pairs over time through the receipts from {begin:.0%} to {end:.0%} of the run; no rate can "
        "exceed the pace of the sleep. Ray was told of more CPUs than there are, since sleep needs none."
    )
    rates = {n: _once(_counted(n), "pairs/s", course.rate(*_STEADY)) for n, course in courses.items()}
    first = scale.workers[0]
    ratios = [
        Ratio(f"{_counted(n)} over the pace of the sleep", rate, _once("pace", "pairs/s", n / scale.seconds_per_image))
        for n, rate in rates.items()
    ]
    ratios += [
        Ratio(f"{_counted(n)} over linear", rate, _once("linear", "pairs/s", rates[first].median * n / first))
        for n, rate in rates.items()
        if n > first
    ]
    return Section("Many workers", text, tuple(rates.values()), tuple(ratios))


def _counted(workers: int) -> str:
    return f"{workers} worker{'s' if workers > 1 else ''}"


def _store_section(course: Course, scale: _Scale) -> Section:
    size = _once("object store", "MB", scale.store_bytes / 1e6)
    through = _once("pixels and masks that went through it", "MB", scale.store_pairs * _SIDE**2 * (3 + 1 / 8) / 1e6)
    peak = _once("in the store at most", "MB", course.store.used_bytes / 1e6)
    figures = (
        size,
        through,
        peak,
        _once("spilled to the disk", "MB", course.store.spilled_bytes / 1e6),
        _once("wall", "ms/pair", course.wall_ms_per_pair),
        _once("CPU", "ms CPU/pair", course.cpu_ms_per_pair),
    )
    text = (
        f"{scale.store_pairs:,} pairs of {ONE_SIZE.name} on a disk, in chunks of {scale.store_chunk_rows}, one worker "
        f"whose VAE sleeps {1000 * scale.store_seconds_per_image:.0f} ms for each image, so that decoding is ahead of "
        "it. What the store held and spilled is Ray's own account, looked at ten times a second."
    )
    ratios = Ratio("pixels over the store", through, size), Ratio("peak over the store", peak, size)
    return Section("More pixels than the object store holds", text, figures, ratios)


def _once(name: str, unit: str, value: float) -> Figure:
    return Figure(name, unit, (float(value),))
