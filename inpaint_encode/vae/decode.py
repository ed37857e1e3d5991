"""Decode stored latents to pixels, with the VAE that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from inpaint_encode.metadata import LatentForm, VaeMetadata

from .properties import patch_statistics
from .registry import vae_class_of
from .scaling import per_channel, to_unscaled

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["decode_latents"]


def decode_latents(vae: ModelMixin, latents: Tensor, metadata: VaeMetadata, form: LatentForm) -> Tensor:
    """Decode latents to float32 ``[B, H, W, 3]`` on the CPU, clipped to 0..1.

    Args:
        vae: a model of a class in `inpaint_encode.vae.registry.VAE_CLASSES`; it runs on its device and in its type.
        latents: float ``[B, C, h, w]``, means or draws; of moments, the first half of the channels.
        metadata: of the loaded VAE.
        form: ``latent_form`` of the rows; with ``--scaled`` it differs from the VAE's own.

    Raises:
        UsageError: the latents are scaled by an unknown factor.
    """
    vae_class, parameter = vae_class_of(vae), next(vae.parameters())
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        latents = latents.to(parameter.device, torch.float32)
        if form == "packed":
            mean, std = (per_channel(statistic, latents) for statistic in patch_statistics(vae))
            latents = pixel_shuffle(latents * std + mean, vae_class.latent_patch_size(vae.config))
        elif form == "scaled" and metadata.latent_form == "unscaled":
            latents = to_unscaled(latents, metadata)
        latents = latents.to(parameter.dtype)
        images = vae.decode(latents.unsqueeze(2) if vae_class.video else latents).sample
        rgb = (images[:, :, 0] if vae_class.video else images)[:, :3].float()
        pixels: Tensor = ((rgb + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()
    return pixels
