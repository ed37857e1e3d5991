"""What it costs to fetch a pair's two objects, without decoding them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import s3fs

from inpaint_encode.stores import storage

from .data import Pair
from .decode import UNIT, bare_decoding
from .figures import Figure, Measure, Ratio, cpu_ms, in_turn
from .record import Section

__all__ = ["fetch_section"]

THREADS = 16


def fetch_section(remote: Sequence[Pair], local: Sequence[Pair], repeats: int = 5) -> Section:
    """Both GETs of every ``remote`` pair, by the job's reader and by s3fs, beside the decoding of the ``local`` files.

    The two name the same pairs. Both readers use `THREADS` threads; the CPU of this process alone counts.
    """
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    readers = {"storage.read": storage.read, "s3fs cat_file": bucket.cat_file}
    measures = {name: _fetching(remote, get) for name, get in readers.items()}
    unit, *figures = in_turn(UNIT, {"D, Pillow alone": bare_decoding(local), **measures}, repeats).values()
    gets = [
        Figure(f"{figure.name}, one GET", "ms CPU/GET", tuple(sample / 2 for sample in figure.samples))
        for figure in figures
    ]
    ratios = [Ratio(f"{figure.name} over D", figure, unit) for figure in figures]
    text = f"Two GETs a pair, {len(remote)} pairs by {THREADS} threads; the S3 server's own CPU time is not counted."
    return Section("Fetch alone", text, (unit, *figures, *gets), tuple(ratios))


def _fetching(pairs: Sequence[Pair], get: Callable[[str], object]) -> Measure:
    uris = [uri for pair in pairs for uri in (pair.image, pair.mask)]

    def get_all() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(get, uris):
                pass

    return lambda: cpu_ms(get_all, len(pairs))
