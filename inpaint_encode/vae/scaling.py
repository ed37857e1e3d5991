"""Convert latents between the VAE's own space and the scaled space that a denoiser works in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import VaeMetadata

__all__ = ["SCALINGS", "Scaling", "apply_vae_family", "check_scalable", "per_channel", "to_scaled", "to_unscaled"]


class Scaling(NamedTuple):
    """The scaling of a model with an AutoencoderKL, and the shapes that identify its VAE."""

    channels: int
    levels: int
    """Levels of the encoder."""
    scaling_factor: float
    shift_factor: float | None


SCALINGS: Mapping[str, Scaling] = MappingProxyType(
    {
        "sd1": Scaling(4, 4, 0.18215, None),
        "sdxl": Scaling(4, 4, 0.13025, None),
        "sd3": Scaling(16, 4, 1.5305, 0.0609),
        "flux1": Scaling(16, 4, 0.3611, 0.1159),
        "x4-upscaler": Scaling(4, 3, 0.08333, None),
    }
)
"""By value of ``--vae-family``; the upscaler's shapes are unique, so that it needs no option."""


def to_scaled(latents: Tensor, metadata: VaeMetadata) -> Tensor:
    """Scale latents as diffusers' pipelines do for the denoiser.

    ``(latents - latents_mean) / latents_std`` where the model has statistics, then
    ``(latents - shift_factor) * scaling_factor``, each where it has one. Latents that are already scaled
    (AutoencoderTiny's, Flux.2's packed ones) are returned unchanged.

    Args:
        latents: float ``[B, C, h, w]``, as `inpaint_encode.vae.encode.posterior` returns them.
        metadata: of the VAE that made them.

    Raises:
        UsageError: the scaling is unknown, see `check_scalable`.
    """
    check_scalable(metadata)
    if metadata.latent_form != "unscaled":
        return latents
    if metadata.latents_mean is not None and metadata.latents_std is not None:
        mean, std = (per_channel(values, latents) for values in (metadata.latents_mean, metadata.latents_std))
        latents = (latents - mean) / std
    if metadata.shift_factor is not None:
        latents = latents - metadata.shift_factor
    return latents if metadata.scaling_factor is None else latents * metadata.scaling_factor


def to_unscaled(latents: Tensor, metadata: VaeMetadata) -> Tensor:
    """Undo `to_scaled`; both take and return float ``[B, C, h, w]``.

    Raises:
        UsageError: the scaling is unknown, see `check_scalable`.
    """
    check_scalable(metadata)
    if metadata.latent_form != "unscaled":
        return latents
    if metadata.scaling_factor is not None:
        latents = latents / metadata.scaling_factor
    if metadata.shift_factor is not None:
        latents = latents + metadata.shift_factor
    if metadata.latents_mean is None or metadata.latents_std is None:
        return latents
    mean, std = (per_channel(values, latents) for values in (metadata.latents_mean, metadata.latents_std))
    return latents * std + mean


def apply_vae_family(metadata: VaeMetadata, vae_family: str) -> VaeMetadata:
    """Return the metadata with the scaling of the named model, for a single file that does not state its scaling.

    Args:
        metadata: of the VAE.
        vae_family: a key of `SCALINGS`; "" returns the metadata unchanged.

    Raises:
        UsageError: that model's VAE has other shapes, or the metadata has another scaling.
    """
    if not vae_family:
        return metadata
    model = SCALINGS.get(vae_family)
    shape = metadata.vae_class, metadata.latent_channels, metadata.vae_scale_factor
    if model is None or ("AutoencoderKL", model.channels, 2 ** (model.levels - 1)) != shape:
        raise UsageError(
            f"vae_family {vae_family!r} does not fit {metadata.vae_source}, an {metadata.vae_class} with "
            f"{metadata.latent_channels} latent channels and downscale factor {metadata.vae_scale_factor}; known "
            f"families are {', '.join(SCALINGS)}"
        )
    if metadata.scaling_factor not in (None, model.scaling_factor):
        raise UsageError(
            f"vae_family {vae_family!r} does not fit {metadata.vae_source}, whose scaling_factor is "
            f"{metadata.scaling_factor}"
        )
    return replace(metadata, scaling_factor=model.scaling_factor, shift_factor=model.shift_factor)


def check_scalable(
    metadata: VaeMetadata,
    subject: str = "--scaled",
    remedy: str = "name the model with --vae-family, or give its diffusers folder",
) -> None:
    """Check that `to_scaled` can scale a VAE's latents.

    Args:
        metadata: of the VAE.
        subject: what needs the scaling; begins the error's sentence.
        remedy: what to do if the scaling is unknown; ends the error's sentence.

    Raises:
        UsageError: the scaling is unknown, or the model's statistics are for packed latents and these are plain.
    """
    if metadata.latent_form != "unscaled":
        return
    if metadata.latents_std is not None and len(metadata.latents_std) != metadata.latent_channels:
        raise UsageError(
            f"{subject} needs packed Flux.2 latents, but the output stores plain ones; "
            "encode with --flux2-latents packed"
        )
    if metadata.scaling_factor is None and metadata.latents_std is None:
        raise UsageError(
            f"{subject} needs the scaling of {metadata.vae_source}, which is unknown: its configuration has none, or "
            f"it is a single file whose names and shapes fit several models; {remedy}"
        )


def per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """Return ``[1, C, 1, 1]`` on the device and in the type of ``like``; cached, since a new one waits for the GPU."""
    return _per_channel(tuple(values), like.device, like.dtype)


@lru_cache(maxsize=32)
def _per_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1)
