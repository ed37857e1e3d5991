import pytest
import torch

from inpaint_encode.core.transform import grow_mask
from jobs.benchmarks.dilation import dilation_section
from jobs.benchmarks.peers.steps import dilate


@pytest.mark.parametrize("side", [0, 1, 2, 5, 6, 16, 64])
def test_convolution_and_doubling_agree(side):
    mask = (torch.rand(1, 90, 101, generator=torch.Generator().manual_seed(side)) > 0.995).float()
    assert torch.equal(dilate(mask, side), grow_mask(mask.to(torch.uint8), side))


def test_a_quick_run_omits_expensive_convolutions():
    section = dilation_section(full=False, repeats=1)
    names = [figure.name for figure in section.figures]
    assert len([name for name in names if name.startswith("doubling")]) == 6
    cheap = ["512 x 512, square 6", "512 x 512, square 16", "1024 x 1024, square 6"]
    assert [name for name in names if name.startswith("convolution")] == [f"convolution, {size}" for size in cheap]
    assert [ratio.name for ratio in section.ratios] == [f"convolution over doubling, {size}" for size in cheap]
