"""A chunk between two stages: one Ray row, so that Ray can neither split a chunk nor merge two."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.schema import GEOMETRY, SOURCE, WORK

__all__ = ["DECODED", "ENCODED", "Room", "fold", "table_of", "unfold"]

_ABOUT = pa.schema([*WORK, ("counters", pa.map_(pa.string(), pa.float64())), ("fatal", pa.string())])

_SIZE = [pa.field("height", pa.int32()), pa.field("width", pa.int32())]

_ERROR = [pa.field("error", pa.string()), pa.field("message", pa.string())]

DECODED = pa.schema([*SOURCE, *GEOMETRY, *_SIZE, ("pixels", pa.large_binary()), ("mask", pa.large_binary()), *_ERROR])
"""Cropped ``pixels`` as uint8 ``[height, width, 3]`` and the ungrown ``mask`` as packed bits. A row without pixels and
without an error has those of the last row that has any: another mask of the same image."""

ENCODED = pa.schema(
    [
        *SOURCE,
        *GEOMETRY,
        *_SIZE,
        ("samples", pa.large_binary()),
        ("samples_shape", pa.list_(pa.int64())),
        ("original_samples", pa.large_binary()),
        ("noise_mask", pa.large_binary()),
        ("latent_mask", pa.large_binary()),
        ("mask_coverage", pa.float32()),
        ("precision", pa.string()),
        ("tiled", pa.bool_()),
        *_ERROR,
    ]
)
"""``samples``, ``original_samples`` of the same shape and ``latent_mask`` of one channel as raw values of the stored
type, the grown ``noise_mask`` as packed bits."""


def table_of(
    rows: Iterable[Mapping[str, Any]], schema: pa.Schema, rooms: Mapping[str, Room] = MappingProxyType({})
) -> pa.Table:
    """`pa.Table.from_pylist`, with arrays of any shape and type for large_binary columns, each copied at once.

    So a generator of rows holds one row's arrays at a time.

    Args:
        rows: what is missing in one is null.
        schema: of the table.
        rooms: where columns' bytes go, by their names; by default fresh memory.
    """
    blobs = {f.name: _Blobs(rooms.get(f.name) or Room()) for f in schema if pa.types.is_large_binary(f.type)}
    plain: dict[str, list[Any]] = {name: [] for name in schema.names if name not in blobs}
    for row in rows:
        for name, blob in blobs.items():
            blob.append(row.get(name))
        for name, values in plain.items():
            values.append(row.get(name))
    columns = [blobs[f.name].array() if f.name in blobs else pa.array(plain[f.name], f.type) for f in schema]
    return pa.table(columns, schema=schema)


class Room:
    """Memory for one column of one table after another, used again as soon as no one holds the last table's any more.

    It stays as large as it once had to be: fresh pages for a chunk's pixels cost a third of what decoding them does.
    But what is over ``kept`` bytes and over four times of a table's is given back.
    """

    def __init__(self, kept: int = 2**29) -> None:
        self._data = np.empty(0, np.uint8)
        self._kept = kept

    def take(self, size: int) -> NDArray[np.uint8]:
        """Return a buffer of at least ``size`` bytes that nothing else refers to."""
        holders = sys.getrefcount(self._data) - 2  # but for this object and the call itself; views count
        if holders or self._data.size < size:
            self._data = np.empty(size, np.uint8)
        return self._data

    def settle(self, used: int) -> None:
        """Hear that a table is whole, and how many bytes it took; what is too large lives as long as that table."""
        if self._data.size > max(self._kept, 4 * used):
            self._data = np.empty(0, np.uint8)


class _Blobs:
    """A large_binary column under construction."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._data = room.take(0)
        self._ends = [0]
        self._valid: list[bool] = []

    def append(self, value: NDArray[Any] | None) -> None:
        start = self._ends[-1]
        end = start + (0 if value is None else value.nbytes)
        if end > self._data.size:
            larger = self._room.take(end + end // 2)
            larger[:start] = self._data[:start]
            self._data = larger
        if value is not None:
            self._data[start:end].view(value.dtype).reshape(value.shape)[...] = value
        self._ends.append(end)
        self._valid.append(value is not None)

    def array(self) -> pa.Array:
        _, valid = pa.array(self._valid, pa.bool_()).buffers()
        offsets, data = np.array(self._ends, np.int64), self._data[: self._ends[-1]]
        self._room.settle(self._ends[-1])
        buffers = [valid, pa.py_buffer(offsets), pa.py_buffer(data)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(self._valid), buffers)


def fold(
    table: pa.Table, work: Mapping[str, Any], counters: Sequence[tuple[str, float]], fatal: str | None
) -> pa.Table:
    """One Ray row: ``work`` and what is said of the chunk, and each column of ``table`` as a list, without a copy."""
    whole = table.combine_chunks()
    offsets = pa.array([0, whole.num_rows], pa.int64())
    columns = {name: pa.LargeListArray.from_arrays(offsets, _contiguous(whole[name])) for name in whole.column_names}
    about = pa.Table.from_pylist([{**work, "counters": counters, "fatal": fatal}], _ABOUT)
    return pa.table({**dict(zip(_ABOUT.names, about.columns, strict=True)), **columns})


def unfold(row: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table of ``schema`` that `fold` put into ``row``."""
    return pa.table([_only_list(row[name]) for name in schema.names], schema=schema)


def _only_list(column: pa.ChunkedArray) -> pa.Array:
    """The items of a column's one list; `flatten` would copy them."""
    (lists,) = column.chunks
    start, end = lists.offsets[0].as_py(), lists.offsets[1].as_py()
    return lists.values.slice(start, end - start)


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)
