"""Latents in the space that a denoiser works in, from latents as they are stored."""

from __future__ import annotations

from torch import Tensor

from inpaint_encode.errors import UsageError

from .facts import VaeFacts

__all__ = ["refuse_unscalable", "to_scaled"]


def to_scaled(samples: Tensor, facts: VaeFacts) -> Tensor:
    """Stand-in until the families' own is merged."""
    samples = samples if facts.shift_factor is None else samples - facts.shift_factor
    return samples if facts.scaling_factor is None else samples * facts.scaling_factor


def refuse_unscalable(facts: VaeFacts) -> None:
    """See `to_scaled`."""
    if facts.scaling_factor is None:
        raise UsageError("--scaled needs the scaling")
