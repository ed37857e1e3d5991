"""What takes the VAE's place where everything around the VAE is measured, or where its pace is to be a known one."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inpaint_encode.metadata import VaeMetadata

__all__ = ["CHANNELS", "FAKE_VAE", "RATIO", "NullVae", "WaitingVae"]

RATIO = 8
CHANNELS = 4
FAKE_VAE = VaeMetadata(
    vae_class="StandIn",
    vae_source="none",
    weights_sha256="0" * 64,
    config_sha256="0" * 64,
    vae_scale_factor=RATIO,
    crop_multiple=RATIO,
    latent_channels=CHANNELS,
)


class NullVae:
    """Makes latents of a real size out of pixels, at nearly no cost: what is measured is everything around the VAE.

    A latent is every eighth pixel of every eighth row in -1..1, and its first channel once more.
    """

    def encode_levels(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Encode uint8 ``[B, H, W, 3]``, grey where the 0/1 mask ``[B, H, W]`` is 1, to ``[B, 4, H / 8, W / 8]``."""
        values = pixels[:, ::RATIO, ::RATIO].astype(np.float32) / 127.5 - 1
        values *= 1 - mask[:, ::RATIO, ::RATIO, None]
        latents: NDArray[Any] = values[..., [0, 1, 2, 0]].transpose(0, 3, 1, 2).astype(np.float16, order="C")
        return latents

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode float32 ``[B, 3, H, W]`` in -1..1, greyed before, to ``[B, 4, H / 8, W / 8]``."""
        return pixels[:, [0, 1, 2, 0], ::RATIO, ::RATIO]


class WaitingVae(NullVae):
    """A `NullVae` that sleeps for each image: a VAE of a known pace that leaves the CPU to others, as a GPU does."""

    def __init__(self, seconds_per_image: float) -> None:
        self._seconds = seconds_per_image

    def encode_levels(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.float16]:
        """See `NullVae.encode_levels`."""
        time.sleep(self._seconds * len(pixels))
        return super().encode_levels(pixels, mask)

    def __call__(self, pixels: Tensor) -> Tensor:
        """See `NullVae`."""
        time.sleep(self._seconds * len(pixels))
        return super().__call__(pixels)
