"""The plan of a unit: its pairs, cut into chunks. A chunk is a unit of work and becomes one data file.

A unit is a bounded piece of the source. Its plan is in parts of a few chunks, so that a worker reads only one part.
Later revisions of a unit contain its chunks with pairs that changed, vanished or are retried. If several revisions
contain a chunk, the newest wins. `plan_log` writes parts and says which are valid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.errors import JobFailed
from inpaint_encode.parquet_file import read_table
from inpaint_encode.schema import PAIRS, with_extra_columns
from inpaint_encode.stores import storage

CHUNKS_PER_PART = 32
"""Chunks in one file of the plan."""


class PlannedChunk(NamedTuple):
    """A chunk at its newest revision."""

    revision: int
    hash: str
    part: str
    """URI of its part."""
    pairs: int
    footer_hash: str = ""
    """See `plan_log.MarkedChunk`."""

    def has_hash(self, found: str) -> bool:
        """Return whether a data file with this hash in its footer has the planned pairs."""
        return found in (self.hash, self.footer_hash or self.hash)


class ChunkSummary(NamedTuple):
    """One chunk in a table of `schema.PAIRS`."""

    number: int
    pairs: int
    hash: str
    """Of `chunk_hash`."""


def chunk_name(unit: int, number: int) -> str:
    """Return the name of a chunk, which is part of the names of its files."""
    return f"{unit:06d}-{number:05d}"


def split_chunk_name(name: str) -> tuple[int, int]:
    """Return the unit and the number of a chunk."""
    unit, _, number = name.partition("-")
    return int(unit), int(number)


def split_into_chunks(pairs: pa.Table, chunk_rows: int, chunk_bytes: int) -> pa.Table:
    """Number the chunks of a unit's pairs from 0; return a `schema.PAIRS` table.

    A chunk has at most ``chunk_rows`` pairs, and its image files have at most ``chunk_bytes`` bytes together; an image
    counts once for all its masks. A chunk ends between two images, except inside an image with more than ``chunk_rows``
    masks. A single image may exceed ``chunk_bytes``.

    Args:
        pairs: `schema.SOURCE_PAIRS`, pairs of one image are neighbors; a column ``error`` is kept.
        chunk_rows: see `inpaint_encode.settings.Chunks`.
        chunk_bytes: the same.
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
    chunks = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    planned = pairs.append_column("chunk", pa.array(chunks))
    if "error" not in planned.column_names:
        planned = planned.append_column("error", pa.nulls(pairs.num_rows, pa.string()))
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
    """Yield the table of a revision in pieces of `CHUNKS_PER_PART` chunks."""
    order = np.unique(plan["chunk"].to_numpy(), return_inverse=True)[1]
    bounds = [0, *(np.flatnonzero(np.diff(order // CHUNKS_PER_PART)) + 1), plan.num_rows]
    for start, end in pairwise(bounds):
        yield plan.slice(start, end - start)


def summarize(plan: pa.Table) -> list[ChunkSummary]:
    """Return the chunks of a table of `schema.PAIRS`, in order."""
    numbers = plan["chunk"].to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
    found = []
    for start, end in pairwise(bounds if len(numbers) else ()):
        chunk = plan.slice(start, end - start)
        pairs = chunk.num_rows - chunk["key"].null_count
        found.append(ChunkSummary(int(numbers[start]), pairs, chunk_hash(chunk)))
    return found


def chunk_hash(chunk: pa.Table) -> str:
    """Return the hash of a chunk's planned pairs: 32 hexadecimal digits of SHA-256.

    It covers keys, URIs, versions, extra columns and what to encode, but not the lines of the source.

    Args:
        chunk: `schema.PAIRS` of one chunk; rows with a null key are ignored.
    """
    rows = chunk.filter(pc.is_valid(chunk["key"])).combine_chunks()
    digest = hashlib.sha256()
    for name in rows.column_names:
        if name in ("chunk", "line"):
            continue
        digest.update(f"{name} {rows.num_rows}\n".encode())
        column = rows[name].chunk(0) if rows.num_rows else rows[name].combine_chunks()
        if pa.types.is_string(column.type):
            values = column.cast(pa.large_binary())
            digest.update(pc.fill_null(pc.binary_length(values), -1).to_numpy(zero_copy_only=False).tobytes())
            digest.update(b"".join(values.drop_null().to_pylist()))
        else:
            digest.update(repr(column.to_pylist()).encode())
    return digest.hexdigest()[:32]


def revise(current: pa.Table, revised: pa.Table, dropped: pa.Array, undecided: pa.Array) -> pa.Table:
    """Return a new revision of the chunks with revised or dropped pairs; their other pairs keep their rows.

    Args:
        current: the newest rows of the unit's chunks.
        revised: pairs to encode; ``key`` and the columns that may have changed: URIs, versions, extra columns.
        dropped: keys to remove from the plan.
        undecided: chunks that are not committed at their newest revision; their pairs are still to be encoded.
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
    return sorted_by_chunk(_as_pairs(_without_spare_nulls(stated), current))


def sorted_by_chunk(stated: pa.Table) -> pa.Table:
    """Sort pairs by chunk; Arrow's sort is stable, so that pairs of one image stay neighbors."""
    return stated.take(pc.sort_indices(stated.select(["chunk"]), [("chunk", "ascending")]))


def read_chunk(part_uri: str, chunk: str, expected_hash: str = "") -> pa.Table:
    """Return the `schema.PAIRS` of the chunk with this name; the plan file is cached for the next call.

    Args:
        part_uri: the plan file.
        chunk: name of the chunk.
        expected_hash: the chunk's hash; empty: any.

    Raises:
        JobFailed: the file has other pairs than were planned, so it is damaged.
    """
    part = _read_part(part_uri)
    number = split_chunk_name(chunk)[1]
    pairs = part.filter(pc.and_(pc.equal(part["chunk"], number), pc.is_valid(part["key"])))
    if expected_hash and chunk_hash(pairs) != expected_hash:
        raise JobFailed(f"{part_uri} has other pairs for chunk {chunk} than its marker says")
    return pairs


def other_images(part_uri: str, chunk: str) -> list[str]:
    """Return the images of the plan file's other chunks, and this chunk's images that are not to be encoded."""
    part = _read_part(part_uri)
    others = pc.or_(pc.not_equal(part["chunk"], split_chunk_name(chunk)[1]), pc.invert(part["encode"]))
    uris: list[str] = part.filter(pc.and_(others, pc.is_valid(part["key"])))["image_uri"].to_pylist()
    return uris


@lru_cache(maxsize=2)
def _read_part(uri: str) -> pa.Table:
    return read_table(storage.read(uri).data)


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
