"""Properties of Flux.2 in both of its forms; `test_encode` checks those of every VAE class."""

import pytest
import torch
from torch.nn.functional import pixel_shuffle

from inpaint_encode import encode_for_inpaint, load_vae
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import posterior
from inpaint_encode.vae.latents import check_scalable, to_scaled
from inpaint_encode.vae.properties import vae_metadata
from tests.vaes import saved


def test_packed_and_plain_latents_of_flux2_have_the_same_values(tmp_path):
    """The statistics stay exact when the model is cast to half precision."""
    folder = saved("AutoencoderKLFlux2", tmp_path)
    source = VaeSource(vae=folder)
    packing_vae, plain_vae = (load_vae(folder, flux2_latents=form) for form in ("packed", "plain"))
    pixels = torch.rand(2, 32, 48, 3)
    plain, packed = posterior(plain_vae, pixels), posterior(packing_vae, pixels)
    of_plain, of_packed = vae_metadata(plain_vae, source), vae_metadata(packing_vae, source)
    assert (of_plain.vae_scale_factor, of_plain.crop_multiple, of_plain.latent_channels) == (8, 16, 32)
    assert (of_packed.vae_scale_factor, of_packed.crop_multiple, of_packed.latent_channels) == (16, 16, 128)
    assert (of_plain.latent_form, of_packed.latent_form) == ("unscaled", "packed")
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (of_plain.latents_mean, of_plain.latents_std))
    assert torch.allclose(pixel_shuffle(packed.mean * std + mean, 2), plain.mean, atol=1e-5)
    assert torch.allclose(pixel_shuffle(packed.logvar + 2 * std.log(), 2), plain.logvar, atol=1e-5)
    with pytest.raises(UsageError, match=r"--scaled needs packed Flux.2 latents, .* --flux2-latents packed"):
        check_scalable(of_plain)
    assert of_packed.latents_std == of_plain.latents_std
    assert to_scaled(packed.mean, of_packed) is packed.mean
    half = vae_metadata(packing_vae.to(torch.float16), source)
    assert (half.latents_mean, half.latents_std) == (of_plain.latents_mean, of_plain.latents_std)
    shape = encode_for_inpaint(torch.rand(1, 40, 40, 3), torch.zeros(1, 40, 40), plain_vae).samples.shape
    assert shape == (1, 32, 4, 4)
