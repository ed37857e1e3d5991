"""Fake VAEs: for measuring everything around the VAE, or for a VAE whose speed is known."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from inpaint_encode.metadata import VaeMetadata

__all__ = ["FAKE_VAE", "SCALE_FACTOR", "FakeVae"]

SCALE_FACTOR = 8
FAKE_VAE = VaeMetadata(
    vae_class="FakeVae",
    vae_source="none",
    weights_sha256="0" * 64,
    config_sha256="0" * 64,
    vae_scale_factor=SCALE_FACTOR,
    crop_multiple=SCALE_FACTOR,
    latent_channels=4,
)


class FakeVae:
    """Returns every eighth pixel of every eighth row in -1..1 as the latent; channel 4 repeats channel 1.

    With ``seconds_per_image`` it sleeps for each image, which leaves the CPU to others as a GPU does.
    """

    def __init__(self, seconds_per_image: float = 0.0) -> None:
        self._seconds = seconds_per_image

    def encode_uint8(self, pixels: NDArray[np.uint8], mask: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Encode uint8 ``[B, H, W, 3]``, masked where the 0/1 mask ``[B, H, W]`` is 1, to ``[B, 4, H / 8, W / 8]``."""
        time.sleep(self._seconds * len(pixels))
        values = pixels[:, ::SCALE_FACTOR, ::SCALE_FACTOR].astype(np.float32) / 127.5 - 1
        values *= 1 - mask[:, ::SCALE_FACTOR, ::SCALE_FACTOR, None]
        latents: NDArray[Any] = values[..., [0, 1, 2, 0]].transpose(0, 3, 1, 2).astype(np.float16, order="C")
        return latents

    def __call__(self, pixels: Tensor) -> Tensor:
        """Encode masked float32 images ``[B, 3, H, W]`` in -1..1 to ``[B, 4, H / 8, W / 8]``."""
        time.sleep(self._seconds * len(pixels))
        return pixels[:, [0, 1, 2, 0], ::SCALE_FACTOR, ::SCALE_FACTOR]
