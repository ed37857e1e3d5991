"""Tensor columns as arrays, whether masks are stored as tensors or packed."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from inpaint_encode import open_latents
from inpaint_encode.reader.columns import RowBatch
from tests.outputs import write_output

from .conftest import FILES, check_row


@pytest.mark.parametrize("masks", ["tensor", "packed"])
def test_masks_are_unpacked_and_types_are_kept(tmp_path, masks):
    written = write_output(str(tmp_path), FILES, mask_encoding=masks, samples_dtype="float16")
    for row, expected in zip(open_latents(str(tmp_path)), written, strict=True):
        check_row(row, expected)
        assert (row["samples"].dtype, row["noise_mask"].dtype) == (torch.float16, torch.uint8)


def test_other_tools_can_unpack_masks(tmp_path):
    written = write_output(str(tmp_path), FILES[:1], mask_encoding="packed")
    values = pq.read_table(tmp_path)["noise_mask"].to_pylist()
    for value, expected in zip(values, written, strict=True):
        bits, shape = np.frombuffer(value["bits"], np.uint8), value["shape"]
        assert np.array_equal(np.unpackbits(bits, count=math.prod(shape)).reshape(shape), expected["noise_mask"])


def test_arrays_are_read_only_views_of_the_batch(tmp_path):
    written = write_output(str(tmp_path), FILES[:1])
    (path,) = tmp_path.glob("*.parquet")
    (batch,) = pq.read_table(path).combine_chunks().to_batches()
    rows = RowBatch(batch.slice(5, 4))
    assert [row["key"] for row in rows] == [row["key"] for row in written[5:9]]
    assert np.array_equal(rows[1]["samples"], written[6]["samples"])
    assert np.shares_memory(rows[1]["samples"], rows[1]["samples"])
    with pytest.raises(ValueError, match="read-only"):
        rows[1]["samples"][:] = 0
