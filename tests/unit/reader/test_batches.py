"""Batches of rows with equal shapes."""

import pytest
import torch

from inpaint_encode import open_latents
from inpaint_encode.reader.batches import ShapeBuckets, collate


def test_rows_of_different_shapes_cannot_be_stacked(on_disk):
    with pytest.raises(ValueError, match="same shape"):
        collate(open_latents(on_disk[0]).__getitems__([0, 1]))


def test_types_that_numpy_does_not_have_are_stacked():
    rows = [{"x": torch.full((2,), number, dtype=torch.bfloat16), "y": None} for number in range(3)]
    batch = collate(rows)
    assert batch["x"].dtype == torch.bfloat16
    assert batch["x"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert batch["y"] == [None] * 3


def test_a_bucket_is_returned_when_it_is_full():
    rows = [{"x": torch.zeros(size)} for size in (1, 2, 1, 3, 2)]
    buckets = ShapeBuckets(2)
    full = [buckets.add(position, row) for position, row in enumerate(rows)]
    assert full == [None, None, [rows[0], rows[2]], None, [rows[1], rows[4]]]
    assert buckets.positions == [3]
    assert list(buckets.drain()) == [[rows[3]]]
    assert buckets.positions == []
