"""The VAE that an output was made by, for pictures of its latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from diffusers.utils.logging import set_verbosity_error
from numpy.typing import NDArray

from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.vae.decode import decoded
from inpaint_encode.vae.recorded import load_expected, recorded_source

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["LatentDecoder"]


class LatentDecoder:
    """Decodes latents as an output has them, in float32, on a GPU where there is one."""

    def __init__(self, vae: ModelMixin, facts: VaeMetadata, metadata: RowMetadata) -> None:
        self._vae = vae.to("cuda" if torch.cuda.is_available() else "cpu")
        self._facts, self._form = facts, metadata.vae.latent_form

    @classmethod
    def load(cls, spelled: str, metadata: RowMetadata) -> Self:
        """Load the VAE from ``spelled``, a path, URI or hub id as `VaeMetadata.vae_source` has it.

        Raises:
            UsageError: there is none.
            JobFailed: it is another than the one that made the rows.
            RuntimeError: torch's, of a device without memory enough among them.
        """
        set_verbosity_error()  # a cast that is meant needs no warning
        vae, facts = load_expected(recorded_source(spelled, metadata), metadata.vae)
        return cls(vae, facts, metadata)

    def decode(self, latent: NDArray[Any]) -> NDArray[np.uint8]:
        """Make levels ``[H, W, 3]`` of a latent ``[C, h, w]``.

        Raises:
            RuntimeError: torch's, of a device without memory enough among them.
        """
        samples = torch.from_numpy(latent.astype(np.float32))[None]
        pixels = decoded(self._vae, samples, self._facts, self._form)[0]
        levels: NDArray[np.uint8] = (pixels * 255).round().to(torch.uint8).numpy()
        return levels
