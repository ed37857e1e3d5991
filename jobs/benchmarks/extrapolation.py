"""What hundreds of GPUs would need, calculated from measurements on one machine."""

from __future__ import annotations

from inpaint_encode.settings import Chunks

from .driver import JobRun
from .figures import Figure
from .figures import format_number as number
from .record import Section

__all__ = ["IMAGES_PER_SECOND", "extrapolation_section"]

IMAGES_PER_SECOND = 400.0
"""Of one large GPU at 512 x 512: an assumption."""

GPUS = (8, 64, 512)
GETS_PER_PREFIX, PUTS_PER_PREFIX = 5_500, 3_500
"""Requests a second that S3 guarantees for each prefix."""
_GETS_PER_CHUNK = 2
"""The chunk's part of the plan, and the lease. There is one PUT, for the rows; a chunk with rejects has one more."""


def extrapolation_section(
    many: JobRun, large: JobRun, pixels: int, bytes_in: float, rate: float, chunk_rows: int = Chunks().chunk_rows
) -> Section:
    """Multiply measured costs by `GPUS`.

    Args:
        many: a run of many chunks, for the driver's cost.
        large: a run of large images, for all other costs.
        pixels: of one image of ``large``.
        bytes_in: of the two files of a pair of ``large``.
        rate: images a second of one GPU.
        chunk_rows: rows of a chunk.
    """
    report = large.report
    cpu_ms, driver_ms = large.cpu_ms_per_pair, many.driver_ms_per_chunk
    bytes_out = report["data_bytes"] / report["encoded"]
    gets = report["this_run"]["counters"]["objects_fetched"] / report["encoded"]
    figures: list[Figure] = []
    for gpus in GPUS:
        images, chunks = gpus * rate, gpus * rate / chunk_rows
        for name, unit, value in (
            ("images", "1/s", images),
            ("CPU without the VAE", "cores", images * cpu_ms / 1000),
            ("from the store", "Gbit/s", images * bytes_in * 8e-9),
            ("to the store", "Gbit/s", images * bytes_out * 8e-9),
            ("between nodes, if all is fetched elsewhere", "Gbit/s", images * pixels * (3 + 1 / 8) * 8e-9),
            ("GET", "1/s", images * gets + chunks * _GETS_PER_CHUNK),
            ("PUT", "1/s", chunks),
            ("CPU of the driver", "cores", chunks * driver_ms / 1000),
        ):
            figures.append(Figure.once(f"{gpus} GPUs, {name}", unit, value))
    limits = {
        f"one prefix reaches {GETS_PER_PREFIX:,} GET/s": GETS_PER_PREFIX
        / (rate * (gets + _GETS_PER_CHUNK / chunk_rows)),
        f"one prefix reaches {PUTS_PER_PREFIX:,} PUT/s": PUTS_PER_PREFIX * chunk_rows / rate,
        "the driver uses one core": 1000 * chunk_rows / (rate * driver_ms),
    }
    for name, value in sorted(limits.items(), key=lambda limit: limit[1]):
        figures.append(Figure.once(f"GPUs until {name}", "GPUs", value))
    text = (
        f"Calculated, not run. Assumed: {number(rate)} images/s on each GPU, at 512 x 512, in chunks of {chunk_rows}. "
        f"Measured above: {number(cpu_ms)} ms of CPU per pair without the VAE, {number(bytes_in / 1e3)} kB in its two "
        f"files, {number(bytes_out / 1e3)} kB in its row, {number(gets)} objects fetched per pair, {number(driver_ms)} "
        "ms of the driver's CPU per chunk. A pixel has three bytes and one bit of mask. "
        f"By design: {_GETS_PER_CHUNK} GETs per chunk for the plan and the lease, 1 PUT for the rows. "
        "The driver processes chunks in one thread, so one core is its limit. Its time per chunk was not measured with "
        "hundreds of workers. Keys that are spread over several prefixes allow more requests. The CPU time is of files "
        "on a disk, without TLS. It is of a run in small chunks that waited for its VAE, where Ray's share of the cost "
        "is larger than at these rates."
    )
    return Section("Extrapolation", text, tuple(figures), measured=False)
