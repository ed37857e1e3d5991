"""The sorted pair list cut into chunks: the units of work, each of which becomes one file.

A plan is kept in the output in small parts of a few chunks each, so that no worker needs more of it than a part.
It grows by *generations*: the first holds all pairs; pairs that the source gains later become a generation of new
chunks; pairs that changed, vanished or are tried again become a generation that states their chunks anew. The
newest generation that names a chunk is the chunk's.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from . import storage
from .rows import PAIRS

__all__ = ["added", "changed", "cut", "newest", "parts", "read_chunk", "revise", "with_keys"]

CHUNKS_PER_PART = 32


def cut(pairs: pa.Table, chunk_rows: int, chunk_bytes: int, first_chunk: int = 0) -> pa.Table:
    """Number the pairs' chunks from ``first_chunk`` on; return a `rows.PAIRS` table.

    A chunk ends after ``chunk_rows`` pairs, or before the pair that takes its image files over ``chunk_bytes``.
    """
    ends = np.cumsum(pairs["image_bytes"].to_numpy())
    starts = [0]
    while starts[-1] < len(ends):
        start = starts[-1]
        budget = chunk_bytes + (ends[start - 1] if start else 0)
        by_bytes = int(np.searchsorted(ends, budget, side="right"))
        starts.append(max(start + 1, min(by_bytes, start + chunk_rows, len(ends))))
    sizes = np.diff(starts)
    chunks = np.repeat(np.arange(first_chunk, first_chunk + len(sizes)), sizes)
    planned = pairs.append_column("chunk", pa.array(chunks, pa.int64()))
    return _with(planned, "encode", pa.repeat(True, pairs.num_rows)).select(PAIRS.names).cast(PAIRS)


def parts(plan: pa.Table) -> Iterator[pa.Table]:
    """Yield one generation's table in pieces of `CHUNKS_PER_PART` chunks."""
    order = np.unique(plan["chunk"].to_numpy(), return_inverse=True)[1]
    bounds = [0, *(np.flatnonzero(np.diff(order // CHUNKS_PER_PART)) + 1), plan.num_rows]
    for start, end in pairwise(bounds):
        yield plan.slice(start, end - start)


def newest(pairs: pa.Table) -> pa.Table:
    """Of a table with ``chunk`` and ``generation``, return the rows of each chunk's newest generation."""
    if pc.min_max(pairs["generation"])["min"] == pc.min_max(pairs["generation"])["max"]:
        return pairs
    last = pairs.select(["chunk", "generation"]).group_by("chunk").aggregate([("generation", "max")])
    newest_of = last["generation_max"].take(pc.index_in(pairs["chunk"], value_set=last["chunk"]))
    return pairs.filter(pc.equal(pairs["generation"], newest_of))


def added(planned: pa.Table, found: pa.Table) -> pa.Table:
    """Return the found pairs whose keys are not planned yet, sorted by key."""
    return found.filter(pc.invert(pc.is_in(found["key"], value_set=planned["key"]))).sort_by("key")


def changed(planned: pa.Table, found: pa.Table) -> pa.Table:
    """Return the found pairs that are planned with other versions."""
    where = pc.index_in(found["key"], value_set=planned["key"])
    differs = [pc.not_equal(found[name], planned[name].take(where)) for name in ("image_version", "mask_version")]
    return found.filter(pc.fill_null(pc.or_(*differs), False))


def with_keys(again: pa.Table, current: pa.Table, keys: pa.Array) -> pa.Table:
    """Add planned pairs of ``keys`` to the ``again`` of `revise`, as the plan knows them."""
    more = current.filter(
        pc.and_(pc.is_in(current["key"], keys), pc.invert(pc.is_in(current["key"], again["key"].combine_chunks())))
    )
    return pa.concat_tables([again, more.select(again.column_names)])


def revise(current: pa.Table, again: pa.Table, dropped: pa.Array, undecided: pa.Array) -> pa.Table:
    """State anew the chunks that are touched: ``again`` is encoded, ``dropped`` leaves, every other row is kept.

    Args:
        current: `newest` of the plan.
        again: ``key`` and, as far as they have changed, URIs and versions.
        dropped: keys.
        undecided: chunks that an interrupted run left at an older generation; what they were to encode, they still are.
    """
    touched = pa.concat_arrays([again["key"].combine_chunks(), dropped.cast(pa.string())])
    chunks = pc.unique(current.filter(pc.is_in(current["key"], touched))["chunk"])
    stated = current.filter(pc.is_in(current["chunk"], chunks))
    unfinished = pc.and_(stated["encode"], pc.is_in(stated["chunk"], undecided))
    named = pc.is_in(stated["key"], value_set=again["key"].combine_chunks())
    stated = _with(stated, "encode", pc.or_(named, unfinished))
    stated = _with(stated, "key", pc.if_else(pc.is_in(stated["key"], dropped), None, stated["key"]))
    for name in set(again.column_names) - {"key"}:
        stated = _with(stated, name, _replaced(stated, again, name))
    return (
        _one_null_at_most(stated)
        .select(PAIRS.names)
        .cast(PAIRS)
        .sort_by([("chunk", "ascending"), ("key", "ascending")])
    )


def read_chunk(part_uri: str, chunk: int) -> pa.Table:
    """Return the `rows.PAIRS` of one chunk; the part that it is in is kept for the next call."""
    part = _read_part(part_uri)
    return part.filter(pc.and_(pc.equal(part["chunk"], chunk), pc.is_valid(part["key"])))


@lru_cache(maxsize=2)
def _read_part(uri: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(uri).data), schema=PAIRS)


def _with(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _replaced(stated: pa.Table, again: pa.Table, name: str) -> pa.ChunkedArray:
    where = pc.index_in(stated["key"], again["key"].combine_chunks())
    return pc.coalesce(again[name].combine_chunks().take(where.combine_chunks()), stated[name].combine_chunks())


def _one_null_at_most(stated: pa.Table) -> pa.Table:
    """A dropped pair needs no row of its own, unless its chunk would have none left."""
    left = pc.unique(stated.filter(pc.is_valid(stated["key"]))["chunk"])
    whole = pc.or_(pc.is_valid(stated["key"]), pc.invert(pc.is_in(stated["chunk"], left)))
    return stated.filter(whole)
