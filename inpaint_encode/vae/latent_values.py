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
from inpaint_encode.settings import RowSettings

from .encode import Posterior, posterior
from .facts import VaeFacts
from .scaling import refuse_unscalable, to_scaled

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["StoredValues", "refuse_unfit", "standard_normal"]


class StoredValues:
    """What a job's rows store of a posterior.

    Raises:
        ValueError: rows are scaled, and there are no facts, which say how.
    """

    def __init__(self, settings: RowSettings, facts: VaeFacts | None) -> None:
        if settings.scaled and facts is None:
            raise ValueError("scaled rows need the VAE's facts, which say how")
        self._settings, self._facts = settings, facts
        self._dtype = {"float16": torch.float16, "float32": torch.float32}[settings.samples_dtype]

    def noise(self, keys: Sequence[str], like: Tensor) -> Tensor | None:
        """Draw for every row, if rows are draws, on the CPU while a GPU is at work."""
        if self._settings.posterior != "sample":
            return None
        seed, shape = self._settings.posterior_seed, tuple(like.shape[1:])
        drawn = torch.from_numpy(np.stack([standard_normal(seed, key, shape) for key in keys]))
        return drawn.pin_memory().to(like.device, non_blocking=True) if like.is_cuda else drawn

    def of(self, found: Posterior, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return values in the stored type, and for each row whether they are finite as computed, and as stored."""
        values = found.mean
        if self._settings.posterior != "mean":
            assert found.logvar is not None, "refused before the job"
            if noise is None:
                values = torch.cat([values, found.logvar], dim=1)
            else:
                values = values + torch.exp(0.5 * found.logvar) * noise
        if self._settings.scaled:
            assert self._facts is not None
            values = to_scaled(values, self._facts)
        stored = values.to(self._dtype)
        return stored, values.isfinite().flatten(1).all(dim=1), stored.isfinite().flatten(1).all(dim=1)


def refuse_unfit(settings: RowSettings, vae: ModelMixin, facts: VaeFacts) -> None:
    """Refuse settings that this VAE cannot serve.

    Raises:
        UsageError: it has no posterior to draw from, or its scaling is not known.
    """
    side = 2 * facts.crop_multiple
    if settings.posterior != "mean" and posterior(vae, torch.full((1, side, side, 3), 0.5)).logvar is None:
        raise UsageError(
            f"--posterior {settings.posterior}: an {facts.vae_class} gives latents and no posterior; use mean"
        )
    if settings.scaled:
        refuse_unscalable(facts)


def standard_normal(seed: int, key: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Draw from the normal distribution by ``seed`` and ``key`` alone: the same on any machine, in any batch."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(shape, np.float32)
