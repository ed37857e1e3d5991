"""Encode images to the posterior of a VAE, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from inpaint_encode.errors import UsageError

from .properties import crop_multiple, latent_channels, patch_statistics, vae_scale_factor
from .registry import pixel_patch_size, vae_class_of
from .scaling import per_channel

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["Posterior", "compute_dtype", "posterior", "to_vae_range", "warm_up"]


class Posterior(NamedTuple):
    """A VAE's output for a batch, in float32 and in the VAE's `latent_form`."""

    mean: Tensor
    """``[B, C, h, w]``"""
    logvar: Tensor | None
    """``[B, C, h, w]``; None for a class that returns the latent without a posterior."""


def posterior(vae: ModelMixin, pixels: Tensor) -> Posterior:
    """Encode images; each is encoded as if it were alone.

    Images are brought to -1..1 in float32 before the cast to the VAE's type, and autocast is off.

    Args:
        vae: a model of a class in `inpaint_encode.vae.registry.VAE_CLASSES`; it runs on its device and in its type.
        pixels: float32 ``[B, H, W, 3]`` in 0..1, sides a multiple of `crop_multiple`.

    Raises:
        UsageError: the class is not supported.
    """
    vae_class, parameter = vae_class_of(vae), next(vae.parameters())
    inputs = to_vae_range(pixels.to(parameter.device, torch.float32))
    if vae_class.in_channels == 4:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    if vae_class.video:
        inputs = inputs.unsqueeze(2)
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        output = getattr(vae.encode(inputs.to(parameter.dtype).contiguous()), vae_class.output_attr)
        values = [output.mean, output.logvar] if vae_class.output_attr == "latent_dist" else [output]
        mean, *logvar = [(value.squeeze(2) if vae_class.video else value).float() for value in values]
        if vae_class.latent_form(vae.config) == "packed":
            patch = vae_class.latent_patch_size(vae.config)
            mean, logvar = pixel_unshuffle(mean, patch), [pixel_unshuffle(value, patch) for value in logvar]
            shift, scale = (per_channel(statistic, mean) for statistic in patch_statistics(vae))
            mean, logvar = (mean - shift) / scale, [value - 2 * scale.log() for value in logvar]
    return Posterior(mean, logvar[0] if logvar else None)


def to_vae_range(pixels: Tensor) -> Tensor:
    """``2p - 1`` in float32, channels first: ``[B, H, W, 3]`` in 0..1 becomes ``[B, 3, H, W]`` in -1..1."""
    return (2.0 * pixels - 1.0).movedim(-1, -3)


def warm_up(vae: ModelMixin) -> None:
    """Encode two small images and check the result against the configuration.

    Raises:
        UsageError: the first layer takes other channels than the class's images have, the latents' shape is not the
            configuration's, or their values are not finite.
    """
    config, vae_class = vae.config, vae_class_of(vae)
    in_channels = int(config.get("in_channels", config.get("input_channels", 3)))
    expected_channels = vae_class.in_channels * pixel_patch_size(config) ** 2
    if in_channels != expected_channels:
        raise UsageError(
            f"--vae: the VAE expects {in_channels} input channels, but images for its class {type(vae).__name__} have "
            f"{expected_channels}; give another VAE"
        )
    ratio, channels, multiple = vae_scale_factor(vae), latent_channels(vae), crop_multiple(vae)
    height, width = 2 * multiple, 3 * multiple
    latent = posterior(vae, torch.full((2, height, width, 3), 0.5)).mean
    if tuple(latent.shape) != (2, channels, height // ratio, width // ratio):
        raise UsageError(
            f"--vae: the configuration says {channels} channels at 1/{ratio} of the size, but 2 images of "
            f"{width} x {height} pixels gave latents of shape {list(latent.shape)}; give weights with their own "
            "configuration"
        )
    if not bool(latent.isfinite().all()):
        raise UsageError("--vae encodes a plain gray image to values that are not finite; give undamaged weights")


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """Return the type to compute in, for a value of ``--dtype``.

    ``auto`` is bfloat16 on GPUs of compute capability 8.0 and up, else float32; it is never float16.
    """
    if setting == "auto":
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if capable else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[setting]
