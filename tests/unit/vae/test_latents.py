"""Stored latents of every VAE class and form: scaling, and decoding to what diffusers' own pipelines give."""

import pytest
import torch

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import posterior
from inpaint_encode.vae.latents import apply_vae_family, decode_latents, per_channel, to_scaled, to_unscaled
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata
from tests.metadata import VAE, row_metadata
from tests.vaes import SMALL, as_image, saved, small_vae


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


@pytest.fixture(scope="module")
def pixels():
    return torch.rand((2, 32, 64, 3), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SMALL)
def test_a_latent_is_decoded_as_its_pipeline_does_it(name, pixels):
    vae = small_vae(name)
    metadata = vae_metadata(vae, VaeSource(vae="x"))
    latents = posterior(vae, pixels).mean
    found = torch.cat([decode_latents(vae, one[None], metadata, metadata.latent_form) for one in latents])
    sides = (16, 32) if name == "AsymmetricAutoencoderKL" else (32, 64)  # whose small decoder has a level less
    assert (found.shape, found.dtype) == ((2, *sides, 3), torch.float32)
    for image, latent in zip(found, latents, strict=True):
        assert torch.allclose(image, as_image(vae, latent), rtol=0, atol=1e-6)
    assert torch.allclose(
        decode_latents(vae, latents, metadata, metadata.latent_form), found, atol=1e-3
    )  # a batch rounds otherwise
    assert not torch.allclose(found[0], found[1])


@pytest.mark.parametrize("name", ["SD 3", "AutoencoderTiny", "Wan 2.2", "AutoencoderKLFlux2"])
def test_scaled_rows_are_unscaled_first(name, pixels):
    vae = small_vae(name)
    metadata = vae_metadata(vae, VaeSource(vae="x"))
    latents = posterior(vae, pixels[:1]).mean
    scaled = to_scaled(latents, metadata)
    assert torch.allclose(to_unscaled(scaled, metadata), latents, rtol=1e-5, atol=1e-6)
    form = "scaled" if metadata.latent_form == "unscaled" else metadata.latent_form
    assert torch.allclose(
        decode_latents(vae, scaled, metadata, form),
        decode_latents(vae, latents, metadata, metadata.latent_form),
        atol=1e-5,
    )


def test_plain_latents_of_flux2_need_no_unpacking(pixels, tmp_path):
    source = VaeSource(vae=saved("AutoencoderKLFlux2", tmp_path), flux2_latents="plain")
    vae = load_vae(source)
    latents = posterior(vae, pixels[:1]).mean
    assert latents.shape[1] == 32
    with torch.no_grad():
        own = vae.decode(latents).sample[0].movedim(0, -1) / 2 + 0.5
    assert torch.allclose(
        decode_latents(vae, latents, vae_metadata(vae, source), "unscaled")[0], own.clamp(0, 1), atol=1e-5
    )
