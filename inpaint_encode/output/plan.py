"""The plan of a job: its pairs, cut into chunks. A chunk is a unit of work and becomes one data file.

The output has the plan in parts of a few chunks, so that a worker reads only one part. The plan grows by generations.
The first has all pairs; later ones have new pairs in new chunks, or chunks with pairs that changed, vanished or are
retried. If several generations contain a chunk, the newest wins.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, reduce
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.schema import EXTRA_COLUMNS, PAIRS, with_extra_columns
from inpaint_encode.stores import storage

CHUNKS_PER_PART = 32
"""Chunks in one file of the plan."""

_ROWS_PER_SLICE = 10_000


def split_into_chunks(pairs: pa.Table, chunk_rows: int, chunk_bytes: int, first_chunk: int = 0) -> pa.Table:
    """Number the pairs' chunks from ``first_chunk`` on; return a `schema.PAIRS` table.

    A chunk has at most ``chunk_rows`` pairs, and its image files have at most ``chunk_bytes`` bytes together; an image
    counts once for all its masks. A chunk ends between two images, except inside an image with more than ``chunk_rows``
    masks. A single image may exceed ``chunk_bytes``.
    """
    images = _image_starts(pairs)
    sizes = np.zeros(pairs.num_rows, np.int64)
    sizes[images[:-1]] = pairs["image_bytes"].to_numpy()[images[:-1]]
    ends = np.cumsum(sizes)
    starts = [0]
    while starts[-1] < len(ends):
        start = starts[-1]
        budget = chunk_bytes + (ends[start - 1] if start else 0)
        full = min(int(np.searchsorted(ends, budget, side="right")), start + chunk_rows)
        last, following = _starts_around(images, start, full)
        starts.append(last if last > start else min(following, start + chunk_rows))
    counts = np.diff(starts)
    chunks = np.repeat(np.arange(first_chunk, first_chunk + len(counts)), counts)
    planned = pairs.append_column("chunk", pa.array(chunks, pa.int64()))
    return _as_pairs(_with_column(planned, "encode", pa.repeat(True, pairs.num_rows)), pairs)


def _image_starts(pairs: pa.Table) -> NDArray[np.int64]:
    """Return the index of each image's first pair, and last the number of pairs."""
    uris = pairs["image_uri"].combine_chunks()
    if not len(uris):
        return np.zeros(1, np.int64)
    others = pc.not_equal(uris.slice(1), uris.slice(0, len(uris) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate([[0], 1 + np.flatnonzero(others), [len(uris)]]).astype(np.int64)


def _starts_around(images: NDArray[np.int64], start: int, full: int) -> tuple[int, int]:
    """Return the last image start that is at most ``full``, and the first that is after ``start``."""
    return int(images[np.searchsorted(images, full, "right") - 1]), int(images[np.searchsorted(images, start, "right")])


def _as_pairs(table: pa.Table, like: pa.Table) -> pa.Table:
    """Return the table in `schema.PAIRS`, with the extra columns of ``like``."""
    schema = with_extra_columns(PAIRS, like.schema)
    return table.select(schema.names).cast(schema)


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
    newest_generation = last["generation_max"].take(pc.index_in(pairs["chunk"], value_set=last["chunk"]))
    return pairs.filter(pc.equal(pairs["generation"], newest_generation))


def added(planned: pa.Table, found: pa.Table) -> pa.Table:
    """Return the found pairs whose keys are not planned yet; pairs of one image are neighbors.

    Pairs from prefixes are sorted by image, ``mask_index`` and key; pairs of a manifest stay in its order.
    """
    fresh = found.filter(pc.invert(pc.is_in(found["key"], value_set=planned["key"]))) if planned.num_rows else found
    if "image_uri" in found.column_names:
        return fresh  # in the order of the manifest
    order = [name for name in ("image", "mask_index", "key") if name in fresh.column_names]
    return fresh.take(pc.sort_indices(fresh.select(order), [(name, "ascending") for name in order]))


def changed(planned: pa.Table, found: pa.Table) -> pa.Table:
    """Return the found pairs whose versions, URIs (of a manifest) or extra columns differ from the plan's."""
    where = pc.index_in(found["key"], value_set=planned["key"])
    both = found.filter(pc.is_valid(where))
    before = planned.take(where.drop_null())
    names = ["image_version", "mask_version", *({"image_uri", "mask_uri"} & set(found.column_names))]
    differs = [pc.not_equal(both[name], before[name]) for name in names]
    if EXTRA_COLUMNS in found.column_names:
        columns = zip(
            both.select([EXTRA_COLUMNS]).flatten().columns,
            before.select([EXTRA_COLUMNS]).flatten().columns,
            strict=True,
        )
        differs += [_values_differ(now, then) for now, then in columns]
    return both.filter(reduce(pc.or_, differs))


def _values_differ(now: pa.ChunkedArray, then: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return where values differ; two nulls are equal, and so are two NaNs."""
    if pa.types.is_nested(now.type):  # Arrow cannot compare these; slices limit the number of Python objects
        parts = [
            (now.slice(at, _ROWS_PER_SLICE), then.slice(at, _ROWS_PER_SLICE))
            for at in range(0, len(now), _ROWS_PER_SLICE)
        ]
        pieces = [[repr(a) != repr(b) for a, b in zip(n.to_pylist(), t.to_pylist(), strict=True)] for n, t in parts]
        return pa.chunked_array([pa.array(piece, pa.bool_()) for piece in pieces], pa.bool_())
    if pa.types.is_null(now.type):
        return pa.chunked_array([pa.repeat(False, len(now))])
    differs = pc.not_equal(now, then)
    if pa.types.is_floating(now.type):
        differs = pc.and_not(differs, pc.and_(pc.is_nan(now), pc.is_nan(then)))
    return pc.fill_null(differs, pc.xor(pc.is_null(now), pc.is_null(then)))


def with_keys(revised: pa.Table, current: pa.Table, keys: pa.Array) -> pa.Table:
    """Add the planned pairs with these ``keys`` to ``revised``, the argument of `revise`."""
    more = current.filter(
        pc.and_(pc.is_in(current["key"], keys), pc.invert(pc.is_in(current["key"], revised["key"].combine_chunks())))
    )
    return pa.concat_tables([revised, more.select(revised.column_names)])


def revise(current: pa.Table, revised: pa.Table, dropped: pa.Array, undecided: pa.Array) -> pa.Table:
    """Return a new generation of the chunks with revised or dropped pairs; their other pairs keep their rows.

    Args:
        current: `newest` of the plan.
        revised: pairs to encode; ``key`` and the columns that changed: URIs, versions, extra columns.
        dropped: keys to remove from the plan.
        undecided: chunks that are not committed at their newest generation; their pairs are still to be encoded.
    """
    touched = pa.concat_arrays([revised["key"].combine_chunks(), dropped.cast(pa.string())])
    chunks = pc.unique(current.filter(pc.is_in(current["key"], touched))["chunk"])
    stated = current.filter(pc.is_in(current["chunk"], chunks))
    unfinished = pc.and_(stated["encode"], pc.is_in(stated["chunk"], undecided))
    named = pc.is_in(stated["key"], value_set=revised["key"].combine_chunks())
    stated = _with_column(stated, "encode", pc.or_(named, unfinished))
    stated = _with_column(stated, "key", pc.if_else(pc.is_in(stated["key"], dropped), None, stated["key"]))
    for name in set(revised.column_names) - {"key"}:
        stated = _with_column(stated, name, _replaced_values(stated, revised, name))
    return _sorted_by_chunk(_as_pairs(_without_spare_nulls(stated), current))


def _sorted_by_chunk(stated: pa.Table) -> pa.Table:
    """Sort by chunk; Arrow's sort is stable, so that pairs of one image stay neighbors."""
    return stated.take(pc.sort_indices(stated.select(["chunk"]), [("chunk", "ascending")]))


def read_chunk(part_uri: str, chunk: int) -> pa.Table:
    """Return the `schema.PAIRS` of one chunk; the plan file is cached for the next call."""
    part = _read_part(part_uri)
    return part.filter(pc.and_(pc.equal(part["chunk"], chunk), pc.is_valid(part["key"])))


def other_images(part_uri: str, chunk: int) -> list[str]:
    """Return the images of the plan file's other chunks, and this chunk's images that are not to be encoded."""
    part = _read_part(part_uri)
    others = pc.or_(pc.not_equal(part["chunk"], chunk), pc.invert(part["encode"]))
    uris: list[str] = part.filter(pc.and_(others, pc.is_valid(part["key"])))["image_uri"].to_pylist()
    return uris


@lru_cache(maxsize=2)
def _read_part(uri: str) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(uri).data))


def _with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name in table.column_names:
        return table.set_column(table.column_names.index(name), name, column)
    return table.append_column(name, column)


def _replaced_values(stated: pa.Table, revised: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column of ``stated``, with the values of ``revised`` where it has the key."""
    where = pc.index_in(stated["key"], revised["key"].combine_chunks()).combine_chunks()
    old = pa.array(np.arange(stated.num_rows), pa.int64())
    taken = pc.coalesce(pc.add(where.cast(pa.int64()), stated.num_rows), old)
    return pa.chunked_array(stated[name].chunks + revised[name].chunks, stated[name].type).take(taken)


def _without_spare_nulls(stated: pa.Table) -> pa.Table:
    """Remove the null keys of dropped pairs; a chunk that has no other pair keeps them."""
    left = pc.unique(stated.filter(pc.is_valid(stated["key"]))["chunk"])
    kept = pc.or_(pc.is_valid(stated["key"]), pc.invert(pc.is_in(stated["chunk"], left)))
    return stated.filter(kept)
