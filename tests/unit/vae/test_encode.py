"""Encoding with every VAE class gives what diffusers gives; a warm-up refuses unusable models."""

import copy

import diffusers
import pytest
import torch

from inpaint_encode import load_vae
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import posterior, warm_up
from inpaint_encode.vae.properties import vae_metadata
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
