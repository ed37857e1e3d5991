"""What it costs to fetch a pair's two objects, without decoding them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import s3fs

from inpaint_encode import storage

from .data import Pair
from .figures import Measure, cpu_ms

__all__ = ["fetching"]

THREADS = 16


def fetching(pairs: Sequence[Pair]) -> dict[str, Measure]:
    """Measures of both GETs of every pair in a bucket, by the job's reader and by s3fs, in ms CPU/pair.

    Both use `THREADS` threads and count this process alone, not the server. In the same unit, and in turn, as
    `decode.bare_decoding`, so that their ratio to it is a share of D. Half of a sample is one GET's.
    """
    bucket = s3fs.S3FileSystem(skip_instance_cache=True)
    return {
        "storage.read": _measure(pairs, storage.read),
        "s3fs cat_file": _measure(pairs, bucket.cat_file),
    }


def _measure(pairs: Sequence[Pair], get: Callable[[str], object]) -> Measure:
    uris = [uri for pair in pairs for uri in (pair.image, pair.mask)]

    def get_all() -> None:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(get, uris):
                pass

    return lambda: cpu_ms(get_all, len(pairs))
