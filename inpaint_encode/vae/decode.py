"""Stored latents as pixels again, by the decoder of the VAE that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from inpaint_encode.metadata import LatentForm, VaeMetadata

from .properties import patch_statistics
from .registry import family_of
from .scaling import by_channel, to_unscaled

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["decoded"]


def decoded(vae: ModelMixin, samples: Tensor, facts: VaeMetadata, form: LatentForm) -> Tensor:
    """Decode latents as rows have them: float32 ``[B, H, W, 3]`` in 0..1 on the CPU, what is outside of that clipped.

    Args:
        vae: of any class in `inpaint_encode.vae.FAMILIES`; it runs on the device and in the type that it is in.
        samples: float ``[B, C, h, w]``, means or draws; of moments the first half of the channels.
        facts: of the VAE.
        form: what the rows' metadata say under ``latent_form``: of rows that were stored with ``--scaled`` it is not
            the VAE's own.
    """
    family, parameter = family_of(vae), next(vae.parameters())
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        latents = _as_encoded(vae, samples.to(parameter.device, torch.float32), facts, form).to(parameter.dtype)
        answer = vae.decode(latents.unsqueeze(2) if family.video else latents).sample
        pixels = (answer[:, :, 0] if family.video else answer)[:, :3].float()
        levels: Tensor = ((pixels + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()
    return levels


def _as_encoded(vae: ModelMixin, samples: Tensor, facts: VaeMetadata, form: LatentForm) -> Tensor:
    """What the decoder takes."""
    if form == "packed":
        mean, std = (by_channel(one, samples) for one in patch_statistics(vae))
        return pixel_shuffle(samples * std + mean, family_of(vae).patch(vae.config))
    if form == "scaled" and facts.latent_form == "unscaled":
        return to_unscaled(samples, facts)
    return samples
