"""The keys of all planned pairs, by hash: tells in which units a key may be planned already.

Only hashes are kept, 12 bytes a key: 1.2 GB for 100 million keys. Two keys may have one hash, so the caller compares
the keys themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_FANOUT = 16
"""Runs of about the same size that are merged into one."""

_LARGEST_RUN = 2**24
"""Hashes from which a run is not merged any more, which bounds the memory of a merge."""


def hash_keys(keys: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return the first 64 bits of BLAKE2b of each key."""
    digests = [
        hashlib.blake2b(key, digest_size=8).digest()
        for chunk in keys.chunks
        for key in chunk.cast(pa.large_binary()).to_pylist()
    ]
    return np.frombuffer(b"".join(digests), np.uint64)


class KnownKeys:
    """Hashes of keys and the numbers of their units, in sorted runs that are merged as they grow (an LSM tree)."""

    def __init__(self) -> None:
        self._levels: list[list[tuple[NDArray[np.uint64], NDArray[np.uint32]]]] = [[]]

    def add(self, hashes: NDArray[np.uint64], unit: int) -> None:
        """Add the hashes of a unit's keys, each once: a list may repeat one key in all of its rows."""
        hashes = np.unique(hashes)
        if not len(hashes):
            return
        self._levels[0].append((hashes, np.full(len(hashes), unit, np.uint32)))
        level = 0
        while len(self._levels[level]) >= _FANOUT and len(self._levels[level][0][0]) * _FANOUT <= _LARGEST_RUN:
            merged = np.concatenate([run for run, _ in self._levels[level]])
            units = np.concatenate([units for _, units in self._levels[level]])
            order = np.argsort(merged, kind="stable")
            self._levels[level] = []
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append((merged[order], units[order]))

    def find(self, hashes: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Return the positions in ``hashes`` that are known and the units that may have them; a position may repeat."""
        order = np.argsort(hashes, kind="stable")
        found = list(self._find_sorted(hashes[order]))
        if not found:
            return np.empty(0, np.int64), np.empty(0, np.uint32)
        positions, units = (np.concatenate(columns) for columns in zip(*found, strict=True))
        return order[positions], units

    def _find_sorted(self, hashes: NDArray[np.uint64]) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint32]]]:
        for level in self._levels:
            for run, units in level:
                start = np.searchsorted(run, hashes, "left")
                known = np.flatnonzero(run[np.minimum(start, len(run) - 1)] == hashes)
                if not len(known):
                    continue
                start = start[known]
                counts = np.searchsorted(run, hashes[known], "right") - start
                within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
                yield np.repeat(known, counts), units[np.repeat(start, counts) + within]
