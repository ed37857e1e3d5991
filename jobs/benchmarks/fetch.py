"""The cost of fetching a pair's two objects, without decoding them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import s3fs

from inpaint_encode.stores import storage

from .data import Pair
from .decode import UNIT, measure_decoding
from .figures import Measure, Ratio, cpu_ms, in_turn
from .record import Section

__all__ = ["fetch_section"]

THREADS = 16


def fetch_section(remote: Sequence[Pair], local: Sequence[Pair], repeats: int = 5) -> Section:
    """Measure both GETs of every ``remote`` pair, by the job's reader and by s3fs, and decoding of the ``local`` files.

    Args:
        remote: pairs in a bucket.
        local: the same pairs on a disk.
        repeats: samples of each figure.
    """
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    measures = {
        "D, Pillow alone": measure_decoding(local),
        "storage.read": _measure(remote, storage.read),
        "s3fs cat_file": _measure(remote, bucket.cat_file),
    }
    unit, *figures = in_turn(UNIT, measures, repeats).values()
    ratios = tuple(Ratio(f"{figure.name} over D", figure, unit) for figure in figures)
    text = (
        f"Two GETs per pair, {len(remote)} pairs, {THREADS} threads. CPU time of this process, without the S3 server."
    )
    return Section("Fetch alone", text, (unit, *figures), ratios)


def _measure(pairs: Sequence[Pair], get: Callable[[str], object]) -> Measure:
    uris = [uri for pair in pairs for uri in (pair.image, pair.mask)]

    def get_all() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(get, uris):
                pass

    return lambda: cpu_ms(get_all, len(pairs))
