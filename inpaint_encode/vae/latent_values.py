"""The values that rows store of a posterior: its mean, a draw or its moments, optionally scaled for a denoiser."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata, VaeMetadata

from .encode import Posterior, posterior
from .scaling import check_scalable, to_scaled

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["LatentValues", "check_supported", "latent_values", "standard_normal"]


class LatentValues(NamedTuple):
    """A batch of latents as rows store them."""

    values: Tensor
    """``[B, C, h, w]`` in ``samples_dtype``; moments have twice the channels."""
    finite: Tensor
    """bool ``[B]``: all values are finite before the cast to ``samples_dtype``."""
    fits_stored_dtype: Tensor
    """bool ``[B]``: all values are finite after the cast."""


def latent_values(
    posteriors: Sequence[Posterior], keys: Sequence[str], metadata: RowMetadata, vae: VaeMetadata
) -> list[LatentValues]:
    """Return what rows store of each posterior. With ``posterior="sample"``, all use the same draw for a key.

    Args:
        posteriors: of the same batch, float32 ``[B, C, h, w]``.
        keys: the rows' keys, which seed the draws.
        metadata: of the rows.
        vae: of the loaded VAE, with the ``latent_form`` of its encoder.
    """
    noise, first = None, posteriors[0].mean
    if metadata.posterior == "sample":  # drawn on the CPU, while a GPU works
        drawn = [standard_normal(metadata.posterior_seed, key, first.shape[1:]) for key in keys]
        noise = torch.from_numpy(np.stack(drawn))
        noise = noise.pin_memory().to(first.device, non_blocking=True) if first.is_cuda else noise
    results = []
    for mean, logvar in posteriors:
        values = mean
        if metadata.posterior != "mean":
            assert logvar is not None, "check_supported refuses such a VAE before the job"
            values = torch.cat([mean, logvar], 1) if noise is None else mean + torch.exp(0.5 * logvar) * noise
        if metadata.scaled:
            values = to_scaled(values, vae)
        stored = values.to({"float16": torch.float16, "float32": torch.float32}[metadata.samples_dtype])
        results.append(LatentValues(stored, *(one.isfinite().flatten(1).all(dim=1) for one in (values, stored))))
    return results


def check_supported(metadata: RowMetadata, vae: ModelMixin, vae_metadata: VaeMetadata) -> None:
    """Check that the VAE can produce the values that the rows store.

    Raises:
        UsageError: the VAE has no posterior to draw from, or its scaling is unknown.
    """
    side = 2 * vae_metadata.crop_multiple
    if metadata.posterior != "mean" and posterior(vae, torch.full((1, side, side, 3), 0.5)).logvar is None:
        raise UsageError(
            f"--posterior {metadata.posterior}: {vae_metadata.vae_class} has no posterior; use --posterior mean"
        )
    if metadata.scaled:
        check_scalable(vae_metadata)


def standard_normal(seed: int, key: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Draw from the standard normal distribution; ``seed`` and ``key`` alone decide the values, on any machine."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(shape, np.float32)
