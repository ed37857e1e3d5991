"""Encoding with every VAE class gives what diffusers gives; a warm-up refuses unusable models; tiles are close."""

import copy
from itertools import pairwise

import diffusers
import pytest
import torch
from torch import nn

from inpaint_encode import load_vae
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import posterior, tile_starts, tiled_posterior, warm_up
from inpaint_encode.vae.registry import crop_multiple, vae_metadata
from tests.vaes import SMALL, encoded, small_vae


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """More threads would compete with other processes for the same cores."""
    torch.set_num_threads(1)


def close(found, expected) -> bool:
    """1e-5, of the value where it is above 1: some random weights give large ones."""
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(3, 64, 96, 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", SMALL)
def test_a_batch_gives_what_diffusers_gives_for_each_image(name, pixels):
    """A wrong layout of a batch makes a video VAE merge images into one clip."""
    vae = small_vae(name)
    warm_up(vae)
    found = posterior(vae, pixels)
    alone = torch.stack([encoded(name, vae, one) for one in pixels])
    assert found.mean.shape == alone.shape
    assert close(found.mean, alone)
    assert not torch.allclose(found.mean[0], found.mean[1])
    assert (found.logvar is None) == (type(vae).__name__ in ("AutoencoderTiny", "AutoencoderDC"))
    half = posterior(copy.deepcopy(vae).to(torch.bfloat16), pixels).mean
    assert (half - alone).abs().max() <= 0.2 * alone.abs().max()  # random weights amplify roundings
    metadata = vae_metadata(vae, VaeSource(vae="x"))
    assert (metadata.vae_scale_factor, metadata.crop_multiple, metadata.latent_channels) == SMALL[name][2:]
    assert found.mean.shape[1:] == (
        metadata.latent_channels,
        64 // metadata.vae_scale_factor,
        96 // metadata.vae_scale_factor,
    )


def test_wan_and_qwen_image_encode_alike(pixels):
    """Their original layouts are the same, so that a single file of Qwen-Image is loaded as Wan."""
    wan, qwen = small_vae("Wan 2.1"), small_vae("AutoencoderKLQwenImage")
    qwen.load_state_dict(wan.state_dict())
    assert close(posterior(qwen, pixels).mean, posterior(wan, pixels).mean)
    assert (qwen.config.latents_mean, qwen.config.latents_std) == (wan.config.latents_mean, wan.config.latents_std)


def test_warm_up_refuses_a_wrong_configuration(vae_folder):
    vae = load_vae(vae_folder)
    vae.register_to_config(block_out_channels=(8, 8, 8))
    with pytest.raises(
        UsageError,
        match=r"--vae: the configuration says 4 channels at 1/4 of the size, but 2 images of 12 x 8 pixels gave",
    ):
        warm_up(vae)


def test_warm_up_refuses_other_inputs_than_rgb():
    vae = diffusers.AutoencoderKL(in_channels=4, block_out_channels=(32,))
    with pytest.raises(
        UsageError, match="the VAE expects 4 input channels, but images for its class AutoencoderKL have 3"
    ):
        warm_up(vae)


def test_warm_up_refuses_weights_that_are_not_finite(vae_folder):
    vae = load_vae(vae_folder)
    vae.encoder.conv_in.bias[0] = torch.nan
    with pytest.raises(UsageError, match="--vae encodes a plain gray image to values that are not finite"):
        warm_up(vae)


def test_an_unsupported_class_is_refused():
    with pytest.raises(UsageError, match="the VAE is of class VQModel, which is not supported"):
        posterior(diffusers.VQModel(block_out_channels=(32,)), torch.zeros(1, 8, 8, 3))


@pytest.mark.parametrize(("length", "tile", "multiple"), [(520, 512, 8), (1024, 512, 8), (4000, 512, 16), (96, 64, 32)])
def test_tiles_cover_a_side_evenly_and_overlap_by_a_quarter(length, tile, multiple):
    starts = tile_starts(length, tile, multiple)
    assert (starts[0], starts[-1] + tile) == (0, length)
    assert all(start % multiple == 0 for start in starts)
    steps = [after - before for before, after in pairwise(starts)]
    assert max(steps) - min(steps) <= multiple
    assert max(steps) <= tile - tile // 4 + multiple // 2


def test_one_tile_covers_a_shorter_side():
    assert tile_starts(504, 512, 8) == [0]


class Cells(nn.Module):
    """An encoder whose latent values depend on their own 8 x 8 pixels only."""

    def forward(self, pixels):
        means = nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([means, means.flip(1), means[:, :2]], dim=1)


@pytest.mark.parametrize("size", [(72, 200), (64, 64), (128, 40), (104, 96)])
def test_tiles_of_a_local_encoder_give_the_same_as_the_whole_image(vae_folder, size):
    vae = load_vae(vae_folder)
    vae.encoder = Cells()
    pixels = torch.rand(2, *size, 3)
    whole, tiled = posterior(vae, pixels), tiled_posterior(vae, pixels, 64, 8)
    for expected, found in zip(whole, tiled, strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["Wan 2.1", "AutoencoderKLFlux2", "AutoencoderDC"])
def test_every_kind_of_output_can_be_tiled(name):
    vae = small_vae(name)
    multiple = crop_multiple(vae)
    pixels = torch.rand(2, 3 * multiple, 5 * multiple, 3)
    whole, tiled = posterior(vae, pixels), tiled_posterior(vae, pixels, 3 * multiple + 1, multiple)
    assert (tiled.logvar is None) == (name == "AutoencoderDC")
    for expected, found in zip(whole, tiled, strict=True):
        if expected is not None:
            assert found.shape == expected.shape
            assert bool(found.isfinite().all())


def test_tiles_blend_without_a_seam(vae_folder):
    """Where two tiles differ by a constant, the blend changes gradually."""

    class Numbered(nn.Module):
        given = 0

        def forward(self, pixels):
            self.given += 1
            return torch.full((len(pixels), 8, pixels.shape[2] // 8, pixels.shape[3] // 8), float(self.given))

    vae = load_vae(vae_folder)
    vae.encoder, vae.quant_conv = Numbered(), None
    row = tiled_posterior(vae, torch.rand(1, 64, 112, 3), 64, 8).mean[0, 0, 0]
    assert row[0] == 1
    assert row[-1] == 2
    steps = row.diff()
    assert bool((steps >= 0).all())
    assert float(steps.max()) < 1
