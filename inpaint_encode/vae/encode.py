"""Encode images to the posterior of a VAE, in float32: whole, or in overlapping tiles."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from inpaint_encode.errors import UsageError

from . import registry

if TYPE_CHECKING:
    from diffusers import ModelMixin

_OVERLAP = 4
"""Neighboring tiles overlap by at least about 1 / _OVERLAP of a tile."""


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
    vae_class, parameter = registry.vae_class_of(vae), next(vae.parameters())
    inputs = to_vae_range(pixels.to(parameter.device, torch.float32))
    if vae_class.in_channels == 4:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
    if vae_class.video:
        inputs = inputs.unsqueeze(2)
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        output = getattr(vae.encode(inputs.to(parameter.dtype).contiguous()), vae_class.output_attr)
        values = [output.mean, output.logvar] if vae_class.output_attr == "latent_dist" else [output]
        mean, *logvar = [(value.squeeze(2) if vae_class.video else value).float() for value in values]
        if vae_class.packs_patches and registry.latent_form(vae) == "packed":
            patch = registry.latent_patch_size(vae)
            mean, logvar = pixel_unshuffle(mean, patch), [pixel_unshuffle(value, patch) for value in logvar]
            shift, scale = (per_channel(statistic, mean) for statistic in registry.patch_statistics(vae))
            mean, logvar = (mean - shift) / scale, [value - 2 * scale.log() for value in logvar]
    return Posterior(mean, logvar[0] if logvar else None)


def to_vae_range(pixels: Tensor) -> Tensor:
    """``2p - 1`` in float32, channels first: ``[B, H, W, 3]`` in 0..1 becomes ``[B, 3, H, W]`` in -1..1."""
    return (2.0 * pixels - 1.0).movedim(-1, -3)


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """Return ``[1, C, 1, 1]`` on the device and in the type of ``like``; cached, since a new one waits for the GPU."""
    return _per_channel(tuple(values), like.device, like.dtype)


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1)


def tile_starts(length: int, tile: int, multiple: int) -> list[int]:
    """Return where tiles begin along a side: multiples of ``multiple``, evenly spaced; the last tile ends at the end.

    Args:
        length: pixels of the side, a multiple of ``multiple``.
        tile: pixels of a tile's side, a multiple of ``multiple``.
        multiple: pixels that starts are rounded to.
    """
    if length <= tile:
        return [0]
    stride = max(multiple, tile - tile // _OVERLAP)
    count = 1 + -(-(length - tile) // stride)
    return [round((length - tile) / multiple * index / (count - 1)) * multiple for index in range(count)]


@torch.inference_mode()
def tiled_posterior(vae: ModelMixin, pixels: Tensor, tile: int, multiple: int) -> Posterior:
    """Encode images in overlapping square tiles and blend these, for images that do not fit in memory.

    The result is close to that of the whole image, but not equal: attention and group norms see one tile only.
    Means and log-variances are weighted means over the tiles. A tile's weights fall toward its own edges.

    Args:
        vae: as for `posterior`.
        pixels: float32 ``[B, H, W, 3]`` in 0..1, sides a multiple of ``multiple``.
        tile: side of a tile in pixels, rounded down to a multiple; a shorter side of the image is one tile.
        multiple: the VAE's crop multiple in pixels.
    """
    height, width = pixels.shape[1:3]
    side = max(multiple, tile // multiple * multiple)
    sums: list[Tensor] = []
    weights = torch.empty(0)
    for top in tile_starts(height, side, multiple):
        for left in tile_starts(width, side, multiple):
            part = pixels[:, top : top + side, left : left + side]
            values = [value for value in posterior(vae, part) if value is not None]
            rows, columns = values[0].shape[-2:]
            ratio = part.shape[1] // rows
            if not sums:
                size = height // ratio, width // ratio
                sums = [value.new_zeros((*value.shape[:2], *size)) for value in values]
                weights = values[0].new_zeros(size)
            weight = _ramp(rows, weights)[:, None] * _ramp(columns, weights)
            where = slice(top // ratio, top // ratio + rows), slice(left // ratio, left // ratio + columns)
            for total, value in zip(sums, values, strict=True):
                total[(..., *where)] += weight * value
            weights[where] += weight
    mean, *logvar = (total / weights for total in sums)
    return Posterior(mean, logvar[0] if logvar else None)


def _ramp(length: int, like: Tensor) -> Tensor:
    """``[length]``: rises from both ends to 1 at a quarter, since a tile's edge has the least context."""
    distance = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(distance, length - distance).div(max(1, length // _OVERLAP)).clamp(max=1.0)


def warm_up(vae: ModelMixin) -> None:
    """Encode two small images and check the result against the configuration.

    Raises:
        UsageError: the first layer takes other channels than the class's images have, the latents' shape is not the
            configuration's, or their values are not finite.
    """
    in_channels = int(vae.config.get("in_channels", vae.config.get("input_channels", 3)))
    expected_channels = registry.vae_class_of(vae).in_channels * registry.pixel_patch_size(vae) ** 2
    if in_channels != expected_channels:
        raise UsageError(
            f"--vae: the VAE expects {in_channels} input channels, but images for its class {type(vae).__name__} have "
            f"{expected_channels}; give another VAE"
        )
    ratio, channels, multiple = (
        registry.vae_scale_factor(vae),
        registry.latent_channels(vae),
        registry.crop_multiple(vae),
    )
    height, width = 2 * multiple, 3 * multiple
    latent = posterior(vae, torch.full((2, height, width, 3), 0.5)).mean
    if tuple(latent.shape) != (2, channels, height // ratio, width // ratio):
        raise UsageError(
            f"--vae: the configuration says {channels} channels at 1/{ratio} of the size, but 2 images of "
            f"{width} x {height} pixels gave latents of shape {list(latent.shape)}; use the config.json that "
            "belongs to these weights"
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
