"""Pixels become latents on one VAE, as the contract says; `encode_for_inpaint` is the whole transform on tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from inpaint_encode.errors import UsageError
from inpaint_encode.transform import binarise_mask, crop_box, grow_mask, neutralise, resize_mask, to_vae_range

from .facts import spatial_ratio

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["InpaintLatents", "Posterior", "compute_dtype", "encode_for_inpaint", "posterior", "warm_up"]


class InpaintLatents(NamedTuple):
    """What ComfyUI calls a LATENT made for inpainting."""

    samples: Tensor
    """float32 ``[B, C, h, w]``: the posterior's mean, neither scaled nor shifted."""
    noise_mask: Tensor
    """float32 ``[B, 1, H, W]``: 1 where the sampler may repaint, at the pixel size of the crop."""


def encode_for_inpaint(pixels: Tensor, mask: Tensor, vae: AutoencoderKL, grow_mask_by: int = 6) -> InpaintLatents:
    """Encode images for inpainting: resize and crop the mask and the image, grey out, grow, encode.

    Args:
        pixels: float32 ``[B, H, W, 3]`` in 0..1; channels after the third are dropped.
        mask: float32 ``[B, h, w]`` or ``[1, h, w]`` in 0..1, 1 = repaint; one mask serves every image, and its
            size may differ from the images'.
        vae: a diffusers ``AutoencoderKL``; it runs on the device and in the type that it is in.
        grow_mask_by: side in pixels of the square that dilates ``noise_mask``, 0..64.

    Raises:
        ValueError: the batches do not match, a side is smaller than the VAE's ratio, or the growth is out of range.
    """
    count, height, width = pixels.shape[:3]
    if mask.shape[0] not in (1, count):
        raise ValueError(f"{mask.shape[0]} masks for {count} images; give one mask for each image, or one for all")
    crop = crop_box(height, width, spatial_ratio(vae))
    rows, columns = crop.slices
    binary = binarise_mask(resize_mask(mask, height, width)[:, rows, columns])
    samples = posterior(vae, neutralise(pixels[:, rows, columns, :3], binary)).mean
    noise_mask = grow_mask(binary, grow_mask_by).unsqueeze(1).expand(count, -1, -1, -1)
    return InpaintLatents(samples, noise_mask)


class Posterior(NamedTuple):
    """What a VAE says of a batch, neither scaled nor shifted, in float32."""

    mean: Tensor
    """``[B, C, h, w]``"""
    logvar: Tensor | None
    """``[B, C, h, w]``, or None of a class that answers with the latent itself."""


def posterior(vae: AutoencoderKL, pixels: Tensor) -> Posterior:
    """Encode float32 ``[B, H, W, 3]`` in 0..1.

    ``2p - 1`` is taken in float32 before the cast to the VAE's type, and no autocast may interfere.
    """
    parameter = next(vae.parameters())
    inputs = to_vae_range(pixels.to(parameter.device, torch.float32)).to(parameter.dtype)
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        found = vae.encode(inputs.contiguous()).latent_dist
        return Posterior(found.mean.float(), found.logvar.float())


def warm_up(vae: AutoencoderKL) -> None:
    """Encode one small image and hold the result against the configuration.

    Raises:
        UsageError: the latent's shape is not ``[C, H / ratio, W / ratio]``, or its values are not finite.
    """
    ratio, channels = spatial_ratio(vae), int(vae.config.latent_channels)
    height, width = 4 * ratio, 6 * ratio
    latent = posterior(vae, torch.full((1, height, width, 3), 0.5)).mean
    if tuple(latent.shape) != (1, channels, 4, 6):
        raise UsageError(
            f"the VAE's configuration promises {channels} channels at 1/{ratio} of the size, but an image of "
            f"{height} x {width} became a latent of {list(latent.shape[1:])}; the configuration is not the weights'"
        )
    if not bool(latent.isfinite().all()):
        raise UsageError("the VAE turns a plain grey image into values that are not finite; its weights are broken")


def compute_dtype(setting: str, device: torch.device, config: Any) -> torch.dtype:
    """The type to compute in; ``auto`` is bfloat16 on GPUs of compute capability 8.0 and up, else float32.

    Raises:
        UsageError: float16 is asked for, and the model's ``force_upcast`` says that it overflows in it.
    """
    if setting == "auto":
        capable = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return torch.bfloat16 if capable else torch.float32
    if setting == "float16" and config.get("force_upcast"):
        raise UsageError(
            "this VAE's configuration says force_upcast: it overflows in float16; use --dtype bfloat16 or float32"
        )
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[setting]
