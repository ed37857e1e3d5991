"""Latents in the space that a denoiser works in, from latents as they are stored, and back."""

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

__all__ = ["SCALINGS", "Scaling", "by_channel", "check_scalable", "to_scaled", "to_unscaled", "with_family"]


class Scaling(NamedTuple):
    """What the configuration of a model that has an AutoencoderKL says, and which shapes it can be told by."""

    channels: int
    levels: int
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
"""By ``--vae-family``, and of the upscaler, which its shapes tell."""


def to_scaled(samples: Tensor, facts: VaeMetadata) -> Tensor:
    """Scale latents as diffusers' pipelines do before they are denoised.

    ``(samples - latents_mean) / latents_std`` where the model has statistics, then
    ``(samples - shift_factor) * scaling_factor``, each where it has one. Latents that are in that space already
    (AutoencoderTiny's, Flux.2's packed ones) come back as they are.

    Args:
        samples: float ``[B, C, h, w]``, as `inpaint_encode.vae.posterior` gives them.
        facts: of the VAE that made them.

    Raises:
        UsageError: the scaling is not known, see `check_scalable`.
    """
    check_scalable(facts)
    if facts.latent_form != "unscaled":
        return samples
    if facts.latents_mean is not None and facts.latents_std is not None:
        mean, std = (by_channel(values, samples) for values in (facts.latents_mean, facts.latents_std))
        samples = (samples - mean) / std
    if facts.shift_factor is not None:
        samples = samples - facts.shift_factor
    return samples if facts.scaling_factor is None else samples * facts.scaling_factor


def to_unscaled(latents: Tensor, facts: VaeMetadata) -> Tensor:
    """Take back what `to_scaled` does with the same facts, of float ``[B, C, h, w]``.

    Raises:
        UsageError: the scaling is not known, see `check_scalable`.
    """
    check_scalable(facts)
    if facts.latent_form != "unscaled":
        return latents
    if facts.scaling_factor is not None:
        latents = latents / facts.scaling_factor
    if facts.shift_factor is not None:
        latents = latents + facts.shift_factor
    if facts.latents_mean is None or facts.latents_std is None:
        return latents
    mean, std = (by_channel(values, latents) for values in (facts.latents_mean, facts.latents_std))
    return latents * std + mean


def with_family(facts: VaeMetadata, vae_family: str) -> VaeMetadata:
    """Facts with the scaling that a single file has left open, by the model that its VAE is of.

    Args:
        facts: of the VAE.
        vae_family: a name in `SCALINGS`, or "" to leave the facts as they are.

    Raises:
        UsageError: that model's VAE has other shapes, or another scaling than is known.
    """
    if not vae_family:
        return facts
    model = SCALINGS.get(vae_family)
    shape = facts.vae_class, facts.latent_channels, facts.vae_scale_factor
    if model is None or ("AutoencoderKL", model.channels, 2 ** (model.levels - 1)) != shape:
        raise UsageError(
            f"vae_family {vae_family!r}, but {facts.vae_source} is an {facts.vae_class} of {facts.latent_channels} "
            f"channels at 1/{facts.vae_scale_factor}; known are {', '.join(SCALINGS)}"
        )
    if facts.scaling_factor not in (None, model.scaling_factor):
        raise UsageError(
            f"vae_family {vae_family!r}, but the scaling_factor of {facts.vae_source} is {facts.scaling_factor}"
        )
    return replace(facts, scaling_factor=model.scaling_factor, shift_factor=model.shift_factor)


def check_scalable(
    facts: VaeMetadata,
    asked: str = "--scaled",
    remedy: str = "name the model with --vae-family, or give its diffusers folder",
) -> None:
    """Refuse what `to_scaled` cannot do, before a job begins or a row is read.

    Args:
        facts: of the VAE.
        asked: what needs the scaling; it begins the sentence.
        remedy: what to do where it is not known; it ends the sentence.

    Raises:
        UsageError: nothing tells by what to scale, or the model's statistics are those of another form.
    """
    if facts.latent_form != "unscaled":
        return
    if facts.latents_std is not None and len(facts.latents_std) != facts.latent_channels:
        raise UsageError(
            f"{asked} of {facts.vae_class} is its packed latent, which --flux2-latents packed stores, and not this one"
        )
    if facts.scaling_factor is None and facts.latents_std is None:
        raise UsageError(
            f"{asked} needs the scaling of {facts.vae_source}, which is not known: its configuration has none, or it "
            f"is a single file whose names and shapes are those of several models; {remedy}"
        )


def by_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """``[1, C, 1, 1]`` on the device and in the type of ``like``; what is new to a device waits for it, once."""
    return _by_channel(tuple(values), like.device, like.dtype)


@lru_cache(maxsize=32)
def _by_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1)
