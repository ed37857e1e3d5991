"""The contents of all planned pairs, by digest: tells which lines of a source that is read again are unchanged.

Only digests are kept, 17 bytes a pair, so no unit is read for a line that has not changed, whatever the order of the
lines. A digest has 128 bits and covers the key: two pairs do not have the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.schema import EXTRA_COLUMNS

COMPARED = ("image_uri", "mask_uri", "image_version", "mask_version")
"""Columns that, with the extra columns, say whether a pair is still the planned one."""

_BUCKETS = 256
_NULL, _VALUE = "0", "1"


def contents_digests(keys: pa.ChunkedArray, pairs: pa.Table) -> NDArray[np.uint64]:
    """Return a digest of each pair's key and contents: two words of 64 bits in one row.

    Args:
        keys: of the pairs, as the source has them.
        pairs: `inpaint_encode.schema.SOURCE_PAIRS` or `inpaint_encode.schema.PAIRS`.
    """
    columns = [keys, *(pairs[name] for name in COMPARED)]
    if EXTRA_COLUMNS in pairs.column_names:
        columns += [_as_strings(column) for column in pairs.select([EXTRA_COLUMNS]).flatten().columns]
    lengths = [pc.binary_length(column).cast(pa.string()) for column in columns]  # as values may contain a NUL
    joined = pc.binary_join_element_wise(*columns, *lengths, "\0")
    digests = [
        hashlib.blake2b(value, digest_size=16).digest()
        for chunk in joined.chunks
        for value in chunk.cast(pa.large_binary()).to_pylist()
    ]
    return np.frombuffer(b"".join(digests), np.uint64).reshape(-1, 2)


def _as_strings(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the values as strings that are not null; equal values, also NaN, give equal strings.

    Which way a type goes does not depend on its values.
    """
    kind = column.type
    if pa.types.is_nested(kind) or pa.types.is_fixed_size_binary(kind):
        strings = pa.chunked_array([pa.array(map(repr, column.to_pylist()), pa.string())])
    else:
        strings = column.cast(pa.string())
    return pc.if_else(column.is_null(), _NULL, pc.binary_join_element_wise(_VALUE, strings, ""))


class KnownPairs:
    """Digests of planned pairs, and which of them a reading of the source has had so far."""

    def __init__(self) -> None:
        self._added: list[list[tuple[NDArray[np.uint64], NDArray[np.bool_]]]] = [[] for _ in range(_BUCKETS)]
        self._buckets: dict[int, _Bucket] = {}

    def add(self, digests: NDArray[np.uint64], met: NDArray[np.bool_]) -> None:
        """Add pairs, before any other call, and whether each one has been met."""
        for bucket, rows in _by_bucket(digests):
            self._added[bucket].append((digests[rows], met[rows]))

    def meet(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Note that the source has these pairs, all different; return which of them are planned and were not met."""
        new = np.zeros(len(digests), np.bool_)
        for bucket, rows, at in self._find(digests):
            new[rows] = ~bucket.met[at]
            bucket.met[at] = True
        return new

    def contains(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which pairs are planned."""
        planned = np.zeros(len(digests), np.bool_)
        for _, rows, _ in self._find(digests):
            planned[rows] = True
        return planned

    def met(self, digests: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Return which pairs are planned and were met."""
        met = np.zeros(len(digests), np.bool_)
        for bucket, rows, at in self._find(digests):
            met[rows] = bucket.met[at]
        return met

    def _find(self, digests: NDArray[np.uint64]) -> Iterator[tuple[_Bucket, NDArray[np.int64], NDArray[np.int64]]]:
        """Yield each bucket, the rows of ``digests`` that it has, and their rows in the bucket."""
        for number, rows in _by_bucket(digests):
            bucket = self._bucket(number)
            at, found = bucket.find(digests[rows])
            yield bucket, rows[found], at

    def _bucket(self, number: int) -> _Bucket:
        if number not in self._buckets:
            self._buckets[number] = _Bucket(self._added[number])
            self._added[number] = []
        return self._buckets[number]


class _Bucket:
    """Digests with the same first byte, sorted by their first words."""

    def __init__(self, added: list[tuple[NDArray[np.uint64], NDArray[np.bool_]]]) -> None:
        digests = np.concatenate([np.empty((0, 2), np.uint64), *(digests for digests, _ in added)])
        met = np.concatenate([np.empty(0, np.bool_), *(met for _, met in added)])
        order = np.argsort(digests[:, 0], kind="stable")
        self._first, self._second, self.met = digests[order, 0], digests[order, 1], met[order]

    def find(self, digests: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the rows of the digests that are there, and which ones are."""
        if not len(self._first):
            return np.empty(0, np.int64), np.zeros(len(digests), np.bool_)
        at = np.searchsorted(self._first, digests[:, 0]).clip(max=len(self._first) - 1)
        found = (self._first[at] == digests[:, 0]) & (self._second[at] == digests[:, 1])
        return at[found], found


def _by_bucket(digests: NDArray[np.uint64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield the numbers of the buckets, and the rows of each."""
    buckets = digests[:, 0] >> np.uint64(56)
    order = np.argsort(buckets, kind="stable")
    numbers, starts = np.unique(buckets[order], return_index=True)
    for number, start, end in zip(numbers.tolist(), starts, [*starts[1:], len(order)], strict=False):
        yield number, order[start:end]
