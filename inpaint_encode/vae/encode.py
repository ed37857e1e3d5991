"""Images become the posterior of one VAE, in float32."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from inpaint_encode.errors import UsageError

from .properties import crop_multiple, latent_channels, latent_form, patch_statistics, vae_scale_factor
from .registry import Family, family_of
from .scaling import by_channel

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["Posterior", "compute_dtype", "posterior", "to_vae_range", "warm_up"]


class Posterior(NamedTuple):
    """What a VAE says of a batch, in float32 and in the VAE's own `latent_form`."""

    mean: Tensor
    """``[B, C, h, w]``"""
    logvar: Tensor | None
    """``[B, C, h, w]``, or None of a class that answers with the latent itself."""


def posterior(vae: ModelMixin, pixels: Tensor) -> Posterior:
    """Encode float32 ``[B, H, W, 3]`` in 0..1, sides a multiple of `crop_multiple`; each image is encoded alone.

    ``2p - 1`` is taken in float32 before the cast to the VAE's type, and no autocast may interfere.
    """
    family, parameter = family_of(vae), next(vae.parameters())
    inputs = _inputs(family, to_vae_range(pixels.to(parameter.device, torch.float32))).to(parameter.dtype)
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        answer = getattr(vae.encode(inputs.contiguous()), family.answer)
        values = [answer.mean, answer.logvar] if family.answer == "latent_dist" else [answer]
        values = [(value.squeeze(2) if family.video else value).float() for value in values]
        if latent_form(vae) == "packed":
            values = _packed(vae, values)
    return Posterior(values[0], values[1] if len(values) > 1 else None)


def to_vae_range(pixels: Tensor) -> Tensor:
    """``2p - 1`` in float32, channels first: ``[B, H, W, 3]`` in 0..1 becomes ``[B, 3, H, W]`` in -1..1."""
    return (2.0 * pixels - 1.0).movedim(-1, -3)


def _inputs(family: Family, pixels: Tensor) -> Tensor:
    """``[B, 3, H, W]`` in -1..1 as the class takes it: with an opaque fourth channel, as clips of one frame."""
    if family.colours == 4:
        pixels = torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1)
    return pixels.unsqueeze(2) if family.video else pixels


def _packed(vae: ModelMixin, values: list[Tensor]) -> list[Tensor]:
    """Mean and log-variance of Flux.2's latents: 2x2 values become channels, then each channel is normalised."""
    mean, std = (by_channel(one, values[0]) for one in patch_statistics(vae))
    side = family_of(vae).patch(vae.config)
    means, logvars = (pixel_unshuffle(value, side) for value in values)
    return [(means - mean) / std, logvars - 2 * std.log()]


def warm_up(vae: ModelMixin) -> None:
    """Encode two small images and hold the result against the configuration.

    Raises:
        UsageError: the model takes other than RGB (or RGBA where its class does), the latents' shape is not
            ``[2, C, H / ratio, W / ratio]``, or their values are not finite.
    """
    takes, given = family_of(vae).inputs(vae.config)
    if takes != given:
        name = type(vae).__name__
        raise UsageError(f"--vae takes {takes} channels, and an image has {given} for its class, {name}; give another")
    ratio, channels, multiple = vae_scale_factor(vae), latent_channels(vae), crop_multiple(vae)
    height, width = 2 * multiple, 3 * multiple
    expected = (2, channels, height // ratio, width // ratio)
    latent = posterior(vae, torch.full((2, height, width, 3), 0.5)).mean
    if tuple(latent.shape) != expected:
        raise UsageError(
            f"--vae: the configuration promises {channels} channels at 1/{ratio} of the size, but 2 images of "
            f"{height} x {width} became latents of {list(latent.shape)}; give weights with their own configuration"
        )
    if not bool(latent.isfinite().all()):
        raise UsageError("--vae turns a plain grey image into values that are not finite: give weights that are whole")


def compute_dtype(setting: str, device: torch.device) -> torch.dtype:
    """The type to compute in; ``auto`` is bfloat16 on GPUs of compute capability 8.0 and up, else float32.

    float16 is never chosen, but taken at its word: what overflows in it is encoded again in float32.
    """
    if setting == "auto":
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if capable else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[setting]
