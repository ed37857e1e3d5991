"""What is stored of a posterior: its mean, a draw or its moments, scaled for a denoiser or not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

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

__all__ = ["LatentValues", "check_supported", "standard_normal"]


class LatentValues:
    """Turns a posterior into the latents that rows store.

    Args:
        metadata: of the rows.
        vae: of the loaded VAE, whose ``latent_form`` is the encoder's own.
    """

    def __init__(self, metadata: RowMetadata, vae: VaeMetadata) -> None:
        self._metadata, self._vae = metadata, vae
        self._dtype = {"float16": torch.float16, "float32": torch.float32}[metadata.samples_dtype]

    def noise(self, keys: Sequence[str], like: Tensor) -> Tensor | None:
        """Draw for every row, if rows are draws, on the CPU while a GPU is at work."""
        if self._metadata.posterior != "sample":
            return None
        seed, shape = self._metadata.posterior_seed, tuple(like.shape[1:])
        drawn = torch.from_numpy(np.stack([standard_normal(seed, key, shape) for key in keys]))
        return drawn.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else drawn

    def of(self, found: Posterior, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return values in the stored type, and for each row whether they are finite as computed, and as stored."""
        values = found.mean
        if self._metadata.posterior != "mean":
            assert found.logvar is not None, "refused before the job"
            if noise is None:
                values = torch.cat([values, found.logvar], dim=1)
            else:
                values = values + torch.exp(0.5 * found.logvar) * noise
        if self._metadata.scaled:
            values = to_scaled(values, self._vae)
        stored = values.to(self._dtype)
        return stored, values.isfinite().flatten(1).all(dim=1), stored.isfinite().flatten(1).all(dim=1)


def check_supported(metadata: RowMetadata, vae: ModelMixin, facts: VaeMetadata) -> None:
    """Check that the VAE can give what the rows store.

    Raises:
        UsageError: it has no posterior to draw from, or its scaling is not known.
    """
    side = 2 * facts.crop_multiple
    if metadata.posterior != "mean" and posterior(vae, torch.full((1, side, side, 3), 0.5)).logvar is None:
        raise UsageError(
            f"--posterior {metadata.posterior}: {facts.vae_class} returns latents without a posterior; use mean"
        )
    if metadata.scaled:
        check_scalable(facts)


def standard_normal(seed: int, key: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Draw from the normal distribution by ``seed`` and ``key`` alone: the same on any machine, in any batch."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(shape, np.float32)
