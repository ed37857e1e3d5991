"""What an encoder is asked and what it answers: a batch of images of one size, and its rows.

A batch is *launched*, and its result is asked for later: a device then always has the next one waiting when it ends
one, and copies go beside its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Batch", "EncodedBatch", "LatentEncoder", "Launched"]


class Batch(NamedTuple):
    """Images of one size, as a chunk holds them."""

    height: int
    width: int
    pixels: Sequence[NDArray[np.uint8]]
    """Each ``[height * width * 3]``: RGB levels."""
    masks: Sequence[NDArray[np.uint8]]
    """Each ``[ceil(height * width / 8)]``: bits, 1 where the image is repainted; not grown."""


class EncodedBatch(NamedTuple):
    """The batch's rows, on the CPU."""

    samples: NDArray[Any]
    """``[B, C, h, w]`` in the type that is stored."""
    finite: NDArray[np.bool_]
    """``[B]``: whether all of a row's samples are, as stored; a float16 cannot hold every value."""
    noise_mask: NDArray[np.uint8]
    """``[B, H, W]``, grown."""
    seconds: dict[str, float]
    """What the batch took by stage: ``copy`` to the device, ``encode`` and ``copy_back``."""


class Launched(Protocol):
    """A batch under way."""

    def result(self) -> EncodedBatch:
        """Wait for it; raises RuntimeError if the device could not, out of memory included."""


class LatentEncoder(Protocol):
    """What a worker needs of whatever makes latents; safe to use from several threads."""

    precision: str
    """The type that it computes in."""

    def launch(self, batch: Batch) -> Launched:
        """Begin a batch, or queue it behind others; raises RuntimeError if there is no memory to stage it in."""

    def check(self) -> None:
        """Raise if the device or the model is not usable any more."""
