"""What hundreds of GPUs would need, by arithmetic on what was measured on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from inpaint_encode.settings import Chunks

from .driver import Course
from .figures import Figure, number
from .record import Section

__all__ = ["IMAGES_PER_SECOND", "Costs", "paper_section"]

IMAGES_PER_SECOND = 400.0
"""Of one GPU at 512 x 512, where nobody says what was measured: an assumption for a large one."""

GPUS = (8, 64, 512)
GETS_PER_PREFIX = 5_500
PUTS_PER_PREFIX = 3_500
"""Requests a second that S3 promises for each prefix."""
_GETS_PER_CHUNK = 2
"""Its part of the plan, where the worker has not just read it, and the lease."""
_PUTS_PER_CHUNK = 1
"""Its rows; a chunk with rejects has one more."""


class Costs(NamedTuple):
    """What was measured of one pair or one chunk."""

    cpu_ms: float
    """Of all processes but for the VAE's work, for a pair."""
    bytes_in: float
    """Of a pair's two files."""
    bytes_out: float
    """Of a row in its Parquet file."""
    bytes_between: float
    """Of a pair's pixels and mask between fetching and encoding."""
    gets: float
    """Objects fetched for a pair."""
    driver_ms: float
    """The driver's CPU time for a chunk."""

    @classmethod
    def of(cls, many: Course, large: Course, bytes_in: float, side: int) -> Costs:
        """Take the driver's part from a course of ``many`` chunks, the rest from one of ``side`` x ``side`` pixels."""
        report = large.report
        return cls(
            cpu_ms=large.cpu_ms_per_pair,
            bytes_in=bytes_in,
            bytes_out=report["data_bytes"] / report["encoded"],
            bytes_between=side**2 * (3 + 1 / 8),
            gets=report["this_run"]["counters"]["objects_fetched"] / report["encoded"],
            driver_ms=many.driver_ms_per_chunk,
        )


def paper_section(costs: Costs, images_per_second: float, chunk_rows: int = Chunks().chunk_rows) -> Section:
    """Multiply ``costs`` by `GPUS` that encode ``images_per_second`` each, in chunks of ``chunk_rows``."""
    needs = [figure for gpus in GPUS for figure in _needs(costs, gpus, images_per_second, chunk_rows)]
    limits = _limits(costs, images_per_second, chunk_rows)
    return Section("On paper", _text(costs, images_per_second, chunk_rows), (*needs, *limits), measured=False)


def _needs(costs: Costs, gpus: int, rate: float, chunk_rows: int) -> Iterator[Figure]:
    images, chunks = gpus * rate, gpus * rate / chunk_rows
    for name, unit, value in (
        ("images", "1/s", images),
        ("CPU for all but the VAE", "cores", images * costs.cpu_ms / 1000),
        ("from the store", "Gbit/s", images * costs.bytes_in * 8e-9),
        ("to the store", "Gbit/s", images * costs.bytes_out * 8e-9),
        ("between nodes, if all is fetched elsewhere", "Gbit/s", images * costs.bytes_between * 8e-9),
        ("GET", "1/s", images * costs.gets + chunks * _GETS_PER_CHUNK),
        ("PUT", "1/s", chunks * _PUTS_PER_CHUNK),
        ("the driver's work", "cores", chunks * costs.driver_ms / 1000),
    ):
        yield Figure(f"{gpus} GPUs, {name}", unit, (value,))


def _limits(costs: Costs, rate: float, chunk_rows: int) -> Iterator[Figure]:
    """What breaks first comes first."""
    gets = costs.gets + _GETS_PER_CHUNK / chunk_rows
    limits = {
        f"one prefix gives its {GETS_PER_PREFIX:,} GET/s": GETS_PER_PREFIX / (rate * gets),
        f"one prefix takes its {PUTS_PER_PREFIX:,} PUT/s": PUTS_PER_PREFIX * chunk_rows / (rate * _PUTS_PER_CHUNK),
        "the driver has one core's work": 1000 * chunk_rows / (rate * costs.driver_ms),
    }
    for name, value in sorted(limits.items(), key=lambda limit: limit[1]):
        yield Figure(f"GPUs until {name}", "GPUs", (value,))


def _text(costs: Costs, rate: float, chunk_rows: int) -> str:
    return (
        f"Arithmetic, not a run. Given: {number(rate)} images/s on each GPU, at 512 x 512, in chunks of {chunk_rows}. "
        f"Measured above: {number(costs.cpu_ms)} ms of CPU a pair for all but the VAE, "
        f"{number(costs.bytes_in / 1e3)} kB in its two files, {number(costs.bytes_out / 1e3)} kB in its row, "
        f"{number(costs.gets)} objects fetched for it, {number(costs.driver_ms)} ms of the driver's CPU a chunk. Its "
        "pixels are three bytes each and a bit of mask. "
        f"By design: {_GETS_PER_CHUNK} GETs a chunk for the plan and the lease, {_PUTS_PER_CHUNK} PUT for the rows. "
        "Images/s times these give cores, network and GETs; images/s over a chunk's rows are chunks/s, which times the "
        "driver's time a chunk are its cores. The driver hears of chunks in one thread, so one core is its limit; "
        "whether its time a chunk stays the same with hundreds of workers was not measured. A bucket whose keys are "
        "spread over more prefixes gives more requests. The CPU time is of files on a disk, without S3's TLS, and of a "
        "run in small chunks that waited for its VAE, so that Ray's part weighs more than it would at these rates."
    )
