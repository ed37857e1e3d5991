"""Scaling by factor, by statistics and by the family of a single file."""

import pytest
import torch

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.properties import vae_metadata
from inpaint_encode.vae.scaling import apply_vae_family, per_channel, to_scaled, to_unscaled
from tests.metadata import VAE, row_metadata
from tests.vaes import small_vae


def test_statistics_scale_each_channel_and_are_copied_to_a_device_once():
    wan = vae_metadata(small_vae("Wan 2.2"), VaeSource(vae="x"))
    assert per_channel(wan.latents_std, torch.ones(1)) is per_channel(wan.latents_std, torch.zeros(1))
    assert torch.allclose(to_scaled(torch.ones(1, 48, 2, 2), wan), torch.tensor((1 - 0.1) / 2.0))


def test_latents_that_are_scaled_already_stay_as_they_are():
    tiny = vae_metadata(small_vae("AutoencoderTiny"), VaeSource(vae="x"))
    assert tiny.latent_form == "scaled"
    latents = torch.ones(1, 4, 2, 2)
    assert to_scaled(latents, tiny) is latents
    assert to_unscaled(latents, tiny) is latents


def test_a_family_completes_the_metadata_of_a_single_file():
    unknown = row_metadata(scaling_factor=None).vae
    with pytest.raises(UsageError, match="--scaled needs the scaling of a/vae, which is unknown"):
        to_scaled(torch.ones(1, 4, 2, 2), unknown)
    sdxl = apply_vae_family(unknown, "sdxl")
    assert (sdxl.scaling_factor, sdxl.shift_factor) == (0.13025, None)
    assert apply_vae_family(unknown, "") is unknown


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        ("sd3", "an AutoencoderKL with 4 latent channels and downscale factor 8; known families are sd1, "),
        ("sd5", "known families are sd1, "),
        ("sdxl", "a/vae, whose scaling_factor is 0.18215"),
    ],
)
def test_a_family_that_does_not_fit_is_refused(family, sentence):
    with pytest.raises(UsageError, match=f"vae_family '{family}' does not fit .*{sentence}"):
        apply_vae_family(VAE, family)
