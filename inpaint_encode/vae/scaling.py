"""Latents in the space that a denoiser works in, from latents as they are stored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from inpaint_encode.errors import UsageError

from .facts import VaeFacts

__all__ = ["by_channel", "from_scaled", "refuse_unscalable", "to_scaled"]


def to_scaled(samples: Tensor, facts: VaeFacts) -> Tensor:
    """Scale latents as diffusers' pipelines do before they are denoised.

    ``(samples - latents_mean) / latents_std`` where the model has statistics, then
    ``(samples - shift_factor) * scaling_factor``, each where it has one. Latents that are in that space already
    (AutoencoderTiny's, Flux.2's packed ones) come back as they are.

    Args:
        samples: float ``[B, C, h, w]``, as `inpaint_encode.vae.posterior` gives them.
        facts: of the VAE that made them.

    Raises:
        UsageError: the scaling is not known, see `refuse_unscalable`.
    """
    refuse_unscalable(facts)
    if facts.latent_form != "unscaled":
        return samples
    if facts.latents_mean is not None and facts.latents_std is not None:
        mean, std = (by_channel(values, samples) for values in (facts.latents_mean, facts.latents_std))
        samples = (samples - mean) / std
    if facts.shift_factor is not None:
        samples = samples - facts.shift_factor
    return samples if facts.scaling_factor is None else samples * facts.scaling_factor


def from_scaled(samples: Tensor, facts: VaeFacts) -> Tensor:
    """Undo `to_scaled`, to rounding; same shape, and the same errors."""
    refuse_unscalable(facts)
    if facts.latent_form != "unscaled":
        return samples
    if facts.scaling_factor is not None:
        samples = samples / facts.scaling_factor
    if facts.shift_factor is not None:
        samples = samples + facts.shift_factor
    if facts.latents_mean is None or facts.latents_std is None:
        return samples
    mean, std = (by_channel(values, samples) for values in (facts.latents_mean, facts.latents_std))
    return samples * std + mean


def refuse_unscalable(facts: VaeFacts) -> None:
    """Refuse what `to_scaled` cannot do, before a job begins.

    Raises:
        UsageError: nothing tells by what to scale, or the model's statistics are those of another form.
    """
    if facts.latent_form != "unscaled":
        return
    if facts.latents_std is not None and len(facts.latents_std) != facts.latent_channels:
        raise UsageError(
            f"--scaled of {facts.vae_class} is its packed latent, which --flux2-latents packed stores; leave one out"
        )
    if facts.scaling_factor is None and facts.latents_std is None:
        raise UsageError(
            f"--scaled needs the scaling of {facts.vae_source}, which is not known: its configuration has none, or it "
            "is a single file whose names and shapes are those of several models; name the model with --vae-family, or "
            "give its diffusers folder"
        )


def by_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """``[1, C, 1, 1]`` on the device and in the type of ``like``; what is new to a device waits for it, once."""
    return _by_channel(tuple(values), like.device, like.dtype)


@lru_cache(maxsize=32)
def _by_channel(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, device=device, dtype=dtype).view(1, -1, 1, 1)
