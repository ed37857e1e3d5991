"""Graphs for the batch shapes that come often, built by the real compiler, on the CPU."""

import shutil

import pytest
import torch
from torch import nn

from inpaint_encode.core.compiled import CompiledEncoder
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.load import load_vae
from tests.metadata import metadata_for

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU by g++")


class Branching(nn.Module):
    """Gives one result eagerly and another when it is compiled."""

    def forward(self, inputs):
        return inputs * (2.0 if torch.compiler.is_compiling() else 1.0)


@pytest.fixture
def encoder():
    """What an encoder is made of, as little of it as compiles in seconds."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.SiLU(), nn.Conv2d(8, 4, 3, stride=2))


@needs_compiler
@torch.inference_mode()
def test_a_shape_that_comes_often_gets_a_graph_and_keeps_its_latents(encoder):
    graphed = CompiledEncoder(encoder, after=2)
    inputs = torch.rand(2, 3, 32, 48)
    for _ in range(3):
        assert torch.allclose(graphed(inputs), encoder(inputs), atol=1e-5)
    assert graphed.compiled_shapes == [(2, 3, 32, 48)]


@torch.inference_mode()
def test_a_rare_shape_gets_none(encoder):
    graphed = CompiledEncoder(encoder, after=2)
    for side in (16, 24, 32):
        graphed(torch.rand(1, 3, side, side))
    assert graphed.compiled_shapes == []


@needs_compiler
@torch.inference_mode()
def test_a_graph_that_does_not_agree_is_never_used():
    graphed, inputs = CompiledEncoder(Branching(), after=1), torch.ones(1, 3, 8, 8)
    assert all(torch.equal(graphed(inputs), inputs) for _ in range(3))
    assert graphed.compiled_shapes == []


@torch.inference_mode()
def test_a_compiler_that_fails_leaves_the_plain_encoder(encoder, monkeypatch):
    graphed, inputs = CompiledEncoder(encoder, after=1), torch.rand(1, 3, 16, 16)
    monkeypatch.setattr(graphed, "_compiled", lambda _: (_ for _ in ()).throw(RuntimeError("no compiler here")))
    assert torch.equal(graphed(inputs), encoder(inputs))
    assert torch.equal(graphed(inputs), encoder(inputs))
    assert graphed.compiled_shapes == []


@torch.inference_mode()
def test_a_batch_that_overflows_decides_nothing(encoder, monkeypatch):
    graphed, inputs = CompiledEncoder(encoder, after=1), torch.rand(1, 3, 16, 16)
    monkeypatch.setattr(graphed, "_compiled", encoder.forward)
    graphed(inputs * torch.nan)
    assert graphed.compiled_shapes == []
    graphed(inputs)
    assert graphed.compiled_shapes == [(1, 3, 16, 16)]


@torch.inference_mode()
def test_there_are_not_more_graphs_than_allowed(encoder):
    graphed = CompiledEncoder(encoder, after=1, most=0)
    graphed(torch.rand(1, 3, 16, 16))
    assert graphed.compiled_shapes == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_launches_give_what_the_plain_vae_gives(vae_folder, dtype):
    import numpy as np

    from inpaint_encode.core.batch import Batch
    from inpaint_encode.core.encoder import BatchEncoder
    from inpaint_encode.tools.verify.reencode import RELATIVE_TOLERANCES

    rng = np.random.default_rng(0)
    pixels, mask = rng.integers(0, 256, (4, 64 * 96 * 3), np.uint8), rng.integers(0, 2, (64, 96), np.uint8)
    batch = Batch(64, 96, list(pixels), [np.packbits(mask)] * 4)
    vae = load_vae(VaeSource(vae=vae_folder))
    metadata = metadata_for(vae, compute_dtype=dtype, samples_dtype="float32")
    on = {
        device: BatchEncoder(load_vae(VaeSource(vae=vae_folder)), metadata, torch.device(device), compiled=True)
        for device in ("cpu", "cuda")
    }
    expected, *launched = [on["cpu"].launch(batch), *(on["cuda"].launch(batch) for _ in range(40))]
    for found in (one.result() for one in launched):
        assert np.array_equal(found.noise_mask, expected.result().noise_mask)
        largest = np.abs(expected.result().samples).max()
        assert np.abs(found.samples - expected.result().samples).max() <= max(
            1e-4, RELATIVE_TOLERANCES[dtype] * largest
        )
