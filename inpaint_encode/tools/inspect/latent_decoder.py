"""Decodes an output's latents with the VAE that made them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.vae.decode import decoded
from inpaint_encode.vae.recorded import load_expected, recorded_source

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["LatentDecoder"]


class LatentDecoder:
    """Decodes stored latents in float32, on the GPU if there is one.

    Args:
        vae: the loaded VAE.
        facts: metadata of this VAE.
        metadata: of the rows.
    """

    def __init__(self, vae: ModelMixin, facts: VaeMetadata, metadata: RowMetadata) -> None:
        self._vae = vae.to("cuda" if torch.cuda.is_available() else "cpu")
        self._facts, self._form = facts, metadata.vae.latent_form

    @classmethod
    def load(cls, spelled: str, metadata: RowMetadata) -> Self:
        """Load the VAE from a path, URI or hub id, spelled as in `VaeMetadata.vae_source`.

        Raises:
            UsageError: there is no VAE.
            JobFailed: it is not the VAE that made the rows.
            RuntimeError: from torch, for example out of memory.
        """
        return cls(*load_expected(recorded_source(spelled, metadata), metadata.vae), metadata)

    def decode(self, latent: NDArray[Any]) -> NDArray[np.uint8]:
        """Return levels ``[H, W, 3]`` of a latent ``[C, h, w]``.

        Raises:
            RuntimeError: from torch, for example out of memory.
        """
        samples = torch.from_numpy(latent.astype(np.float32))[None]
        pixels = decoded(self._vae, samples, self._facts, self._form)[0]
        levels: NDArray[np.uint8] = (pixels * 255).round().to(torch.uint8).numpy()
        return levels
