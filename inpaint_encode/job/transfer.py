"""A chunk between two stages: one Ray row, so that Ray can neither split a chunk nor merge two."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.core.chunk import DecodedPair, Deferred, Pair, Reject
from inpaint_encode.core.decode import DecodedImage
from inpaint_encode.core.geometry import CropBox, Geometry
from inpaint_encode.schema import GEOMETRY, PAIR_FIELDS, WORK

DECODED = pa.schema(
    [
        *PAIR_FIELDS,
        *GEOMETRY,
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("pixels", pa.large_binary()),
        ("mask", pa.large_binary()),
        ("error", pa.string()),
        ("message", pa.string()),
    ]
)
"""Decoded pairs and rejects: cropped ``pixels`` as uint8 ``[height, width, 3]``, and the ``mask`` as packed bits, not
grown. A row with a mask and without pixels shares those of the last row that has any: a mask of the same image. A row
with neither a mask nor an error is a deferred pair."""

_CHUNK = pa.schema([*WORK, ("counters", pa.map_(pa.string(), pa.float64())), ("fatal", pa.string())])


def pack_chunk(
    work: Mapping[str, Any], counters: Mapping[str, float], fatal: str | None, **tables: pa.Table
) -> pa.Table:
    """Return one Ray row with the chunk's work, counters and failure, and each table as a list; nothing is copied."""
    row = pa.Table.from_pylist([{**work, "counters": list(counters.items()), "fatal": fatal}], _CHUNK)
    columns = dict(zip(_CHUNK.names, row.columns, strict=True))
    for name, table in tables.items():
        arrays = [column.chunk(0) if column.num_chunks == 1 else column.combine_chunks() for column in table.columns]
        structs = pa.StructArray.from_arrays(arrays, names=table.column_names)
        columns[name] = pa.LargeListArray.from_arrays(pa.array([0, table.num_rows], pa.int64()), structs)
    return pa.table(columns)


def unpack_chunk(row: pa.Table, *tables: str) -> tuple[dict[str, Any], dict[str, float], str | None, list[pa.Table]]:
    """Return the work, the counters, the failure and the tables of these names that `pack_chunk` packed."""
    work = {name: row[name][0].as_py() for name in WORK.names}
    found = []
    for name in tables:
        lists = row[name].chunk(0)
        start, end = lists.offsets[0].as_py(), lists.offsets[1].as_py()
        structs = lists.values.slice(start, end - start)
        found.append(pa.Table.from_batches([pa.RecordBatch.from_struct_array(structs)]))
    return work, dict(row["counters"][0].as_py()), row["fatal"][0].as_py(), found


_FREED_BYTES = 2**25 - 2**16
"""Freeing this much once lets glibc keep freed memory of the size of images, instead of asking the system for it with
every image: a tenth of the CPU time of decoding. More than 32 MB has no effect."""


class ReusableBuffer:
    """Memory for the pixels of one chunk after another: fresh pages would cost a third of what decoding costs.

    `lend` hands the memory to Arrow. While a part of that Arrow buffer is alive, the next chunk gets new memory; a weak
    reference to the lent array tells.

    Args:
        kept: bytes to keep between chunks; more is freed if a chunk needs less than a quarter of it.
        size: address space to begin with. The system gives it memory only where a chunk writes, so that a chunk up to
            this size is never copied while it grows.
    """

    def __init__(self, kept: int = 2**29, size: int = 2**31) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)
        self._written = 0
        self._lent: Any = None
        self._kept, self._size = kept, size

    def reserve(self, size: int, used: int) -> NDArray[np.uint8]:
        """Return memory of at least ``size`` bytes that begins with the chunk's ``used`` bytes; 0 begins a chunk."""
        if used == 0 and self._lent is not None and self._lent() is not None:
            self._memory, self._written = np.empty(0, np.uint8), 0
        if self._memory.size < size:
            np.empty(_FREED_BYTES, np.uint8)
            larger = np.empty(max(self._size, size + size // 2), np.uint8)
            larger[:used] = self._memory[:used]
            self._memory, self._written = larger, used
        self._written = max(self._written, size)
        return self._memory

    def lend(self, used: int) -> pa.Buffer:
        """End the chunk and return its first ``used`` bytes as an Arrow buffer, without a copy."""
        lent = self._memory[:used]
        self._lent = weakref.ref(lent)
        if self._written > max(self._kept, 4 * used):
            self._memory, self._written = np.empty(0, np.uint8), 0
        return pa.py_buffer(lent)


def pack_decoded(results: Iterable[DecodedPair | Reject | Deferred], buffer: ReusableBuffer) -> pa.Table:
    """Return the results of pairs as a table of `DECODED`; only one image is in memory besides the table.

    Args:
        results: of `inpaint_encode.core.chunk.fetch_and_decode`.
        buffer: receives the pixels.
    """
    columns: dict[str, list[Any]] = {name: [] for name in DECODED.names if name != "pixels"}
    ends, valid, image = [0], [], None
    buffer.reserve(0, 0)
    for result in results:
        values: dict[str, Any] = result.pair._asdict()
        if isinstance(result, Reject):
            values |= {"error": result.error, "message": result.message}
        elif isinstance(result, DecodedPair):
            (resized_height, resized_width, crop), mask = result.image.geometry, result.mask.tobytes()
            values |= {"source_height": result.image.source_height, "source_width": result.image.source_width}
            values |= {"resized_height": resized_height, "resized_width": resized_width, "mask": mask}
            values |= {"crop_top": crop.top, "crop_left": crop.left, "height": crop.height, "width": crop.width}
        new = isinstance(result, DecodedPair) and result.image is not image
        if isinstance(result, DecodedPair) and new:
            image = result.image
            start, end = ends[-1], ends[-1] + image.pixels.size
            buffer.reserve(end, start)[start:end].reshape(image.pixels.shape)[...] = image.pixels
        ends.append(ends[-1] + (image.pixels.size if image is not None and new else 0))
        valid.append(new)
        for name, column in columns.items():
            column.append(values.get(name))
    buffers = [pa.array(valid, pa.bool_()).buffers()[1], pa.py_buffer(np.array(ends, np.int64)), buffer.lend(ends[-1])]
    pixels = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(valid), buffers)
    arrays = [pixels if one.name == "pixels" else pa.array(columns[one.name], one.type) for one in DECODED]
    return pa.table(arrays, schema=DECODED)


def unpack_decoded(table: pa.Table) -> list[DecodedPair | Reject | Deferred]:
    """Return what `pack_decoded` packed; pixels are views into the table."""
    pixels, masks = table["pixels"].combine_chunks(), table["mask"].combine_chunks()
    found: list[DecodedPair | Reject | Deferred] = []
    image: DecodedImage | None = None
    for index, row in enumerate(table.drop_columns(["pixels", "mask"]).to_pylist()):
        pair = Pair(*(row[name] for name in Pair._fields))
        if row["error"] is not None:
            found.append(Reject(pair, row["error"], row["message"]))
            continue
        if not masks[index].is_valid:
            found.append(Deferred(pair))
            continue
        if pixels[index].is_valid:
            crop = CropBox(row["crop_top"], row["crop_left"], row["height"], row["width"])
            levels = np.frombuffer(pixels[index].as_buffer(), np.uint8).reshape(crop.height, crop.width, 3)
            geometry = Geometry(row["resized_height"], row["resized_width"], crop)
            image = DecodedImage(levels, row["source_height"], row["source_width"], geometry, transposed=False)
        assert image is not None
        found.append(DecodedPair(pair, image, np.frombuffer(masks[index].as_buffer(), np.uint8)))
    return found
