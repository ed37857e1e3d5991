import pytest
import torch

from inpaint_encode import load_vae
from inpaint_encode.settings import VaeSource
from jobs.benchmarks.repeatable import repeatable_section


def test_differences_and_the_cost_of_repeatable_rows(vae_folder):
    section = repeatable_section("cpu", 64, repeats=1, vae=load_vae(VaeSource(vae=vae_folder)))
    float32, bfloat16, together, alone = section.figures
    assert len(float32.samples) == 8
    assert 0 <= max(float32.samples) < 100
    assert 0 <= max(bfloat16.samples) < 100_000
    assert section.ratios[0].figure.median == pytest.approx(together.median / alone.median)
    assert not torch.are_deterministic_algorithms_enabled()
