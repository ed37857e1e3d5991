import numpy as np
import pytest
import torch

from inpaint_encode import open_latents
from jobs.benchmarks.reading import NpzFolder, read_with_pyarrow, reading_section, write_rows


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows"), 5)


def test_all_readers_return_the_same_rows(stored):
    from_npz = list(NpzFolder(stored.npz))
    for encoding, output in stored.outputs.items():
        ours, plain = list(open_latents(output)), list(read_with_pyarrow(stored.files(encoding)))
        assert [row["key"] for row in ours] == [f"0000/{number:07}" for number in range(5)]
        for row, arrays, npz in zip(ours, plain, from_npz, strict=True):
            assert row.keys() == arrays.keys()
            for name, tensor in npz.items():
                assert torch.equal(row[name], tensor)
                assert np.array_equal(arrays[name], tensor.numpy())


def test_open_latents_is_compared_with_both_others(stored):
    section = reading_section("a disk", stored, repeats=1)
    assert {figure.unit for figure in section.figures} == {"rows/s"}
    assert [(ratio.numerator.name, ratio.denominator.name) for ratio in section.ratios] == [
        (f"open_latents, {encoding} masks", other)
        for encoding in ("tensor", "packed")
        for other in (f"pyarrow, {encoding} masks", "DataLoader over .npz")
    ]
