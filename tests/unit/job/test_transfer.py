"""Chunks between two stages: they come back as they were, without a copy, and memory is reused only when it is free."""

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.core.chunk import DecodedPair, Deferred, Pair, Reject
from inpaint_encode.core.decode import DecodedImage
from inpaint_encode.core.geometry import CropBox, Geometry
from inpaint_encode.job.transfer import (
    ReusableBuffer,
    pack_chunk,
    pack_decoded,
    unpack_chunk,
    unpack_decoded,
)

WORK = {"chunk": "000000-00003", "revision": 0, "hash": "5ec2e7", "part": "p", "keep": False}


def decoded(key: str, level: int, height: int = 8, width: int = 16) -> DecodedPair:
    pixels = np.full((height + 1, width, 3), level, np.uint8)[1:]
    geometry = Geometry(height + 1, width, CropBox(1, 0, height, width))
    image = DecodedImage(pixels, height + 1, width, geometry, transposed=False)
    return DecodedPair(Pair(key, f"{key}.jpg", f"{key}.png"), image, np.packbits(np.eye(height, width, dtype=np.uint8)))


def address(table: pa.Table) -> int:
    return table["pixels"].chunk(0).buffers()[2].address


class TestDecodedPairs:
    def test_pairs_and_rejects_come_back_in_order(self):
        first, other = decoded("a", 1), decoded("b", 2, 16, 8)
        second = DecodedPair(first.pair._replace(key="a/1", mask_index=1), first.image, first.mask[::-1])
        reject = Reject(Pair("c", "c.jpg", "c.png"), "image.truncated", "cut")
        deferred = Deferred(Pair("d", "d.jpg", "d.png", 2, "1", "2"))
        table = pack_decoded(iter([reject, first, second, other, deferred]), ReusableBuffer())
        assert [value.is_valid for value in table["pixels"]] == [False, True, False, True, False]
        *found, last = unpack_decoded(table)
        assert (found[0], last) == (reject, deferred)
        assert found[1].image is found[2].image
        for before, after in zip([first, second, other], found[1:], strict=True):
            assert before.pair == after.pair
            assert np.array_equal(before.image.pixels, after.image.pixels)
            assert before.image.geometry == after.image.geometry
            assert np.array_equal(before.mask, after.mask)

    def test_no_pairs(self):
        assert unpack_decoded(pack_decoded([], ReusableBuffer())) == []


class TestChunks:
    def test_a_packed_chunk_comes_back_without_a_copy(self):
        table = pack_decoded([decoded(str(level), level) for level in range(4)], ReusableBuffer())
        rows = pa.table({"n": pa.array([1.5], pa.float16())})
        row = pack_chunk(WORK, {"fetch_s": 1.0}, None, decoded=table, rows=rows, none=rows.slice(0, 0))
        assert row.num_rows == 1
        work, counters, fatal, (back, other, none) = unpack_chunk(row, "decoded", "rows", "none")
        assert (work, counters, fatal) == (WORK, {"fetch_s": 1.0}, None)
        assert back.equals(table)
        assert address(back) == address(table)
        assert other.equals(rows)
        assert (none.num_rows, none.schema) == (0, rows.schema)

    def test_a_failure_travels_along(self):
        assert unpack_chunk(pack_chunk(WORK, {}, "the disk is full"))[2] == "the disk is full"


class TestReusableBuffer:
    def test_memory_is_reused_only_when_arrow_has_freed_it(self):
        buffer = ReusableBuffer()
        first = pack_decoded([decoded("a", 1)], buffer)
        held = first["pixels"].chunk(0).buffers()[2]
        second = pack_decoded([decoded("b", 2)], buffer)
        assert address(first) != address(second)
        assert unpack_decoded(first)[0].image.pixels.max() == 1
        assert unpack_decoded(second)[0].image.pixels.min() == 2
        del first
        where = address(second)
        del second
        assert address(pack_decoded([decoded("c", 3)], buffer)) == where
        assert set(held.to_pybytes()) == {1}

    @pytest.mark.parametrize("part", [lambda table: table["pixels"][0], lambda table: table.slice(0, 1)])
    def test_a_slice_or_a_value_keeps_the_memory(self, part):
        buffer = ReusableBuffer()
        held = part(pack_decoded([decoded("a", 7)], buffer))
        pack_decoded([decoded("b", 8)], buffer)
        value = held if isinstance(held, pa.LargeBinaryScalar) else held["pixels"][0]
        assert set(value.as_py()) == {7}

    def test_memory_that_one_chunk_needed_is_freed_after_a_small_one(self):
        buffer = ReusableBuffer(kept=1_000, size=500)
        for needed, kept in ((100_000, 150_000), (50_000, 150_000), (10, 0), (600, 900), (10, 900)):
            buffer.reserve(needed, 0)
            buffer.lend(needed)
            assert buffer._memory.size == kept

    def test_a_chunk_that_grows_within_the_address_space_is_not_copied(self):
        buffer = ReusableBuffer(kept=1_000, size=10_000)
        first = buffer.reserve(100, 0)
        assert buffer.reserve(10_000, 100) is first
        assert buffer.reserve(10_001, 10_000) is not first
