"""What an encoder is asked and what it answers: a batch of images of one size, and its rows.

A batch is *launched*, and its result is asked for later: a device then always has the next one waiting when it ends
one, and copies go beside its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "CPU_PIXELS",
    "MOST_IMAGES",
    "Batch",
    "Done",
    "EncodedBatch",
    "LatentEncoder",
    "Launched",
    "OutOfMemory",
    "images_at_once",
    "is_out_of_memory",
]

MOST_IMAGES = 8
"""Images of one size that a forward pass is given, unless ``--batch-size`` says another number."""

CPU_PIXELS = 2**19
"""Pixels of a forward pass on a CPU, where a process that asks for too much is killed and not told.

A VAE of Stable Diffusion's size takes more than 0.7 GB for them in float32. More at once is hardly faster: on one core,
eight of 64 x 64 take 1.1 times less CPU time than each alone, and two of 256 x 256 none.
"""


def images_at_once(height: int, width: int, pixels: float) -> int:
    """How many images of a size to encode at once where ``pixels`` fit into memory: 1 to `MOST_IMAGES`."""
    return max(1, int(min(MOST_IMAGES, pixels / (height * width))))


class OutOfMemory(RuntimeError):
    """Not even one image fits into the device's memory, in the ways that are allowed.

    Args:
        message: says which, and what to do.
        steps: how often memory ran out until this was known.
    """

    def __init__(self, message: str, *, steps: int) -> None:
        super().__init__(message)
        self.steps = steps
        self.not_finite = 0
        """Rows that overflowed before, for which this memory was needed."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, in any of the ways in which torch and its libraries say it."""
    if isinstance(error, OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    ways = ("can't allocate memory", "ALLOC_FAILED", "CUDA out of memory", "CUDA error: out of memory")
    return any(way in str(error) for way in ways)


class Batch(NamedTuple):
    """Images of one size, as a chunk holds them."""

    height: int
    width: int
    pixels: Sequence[NDArray[np.uint8]]
    """Each ``[height * width * 3]``: RGB levels."""
    masks: Sequence[NDArray[np.uint8]]
    """Each ``[ceil(height * width / 8)]``: bits, 1 where the image is repainted; not grown."""
    keys: Sequence[str] = ()
    """The rows' keys, on which a draw from the posterior depends; without draws there may be none."""

    def part(self, indices: Sequence[int]) -> Batch:
        """Some of its images, in the order of ``indices``."""
        pixels, masks = ([of[index] for index in indices] for of in (self.pixels, self.masks))
        return Batch(self.height, self.width, pixels, masks, [self.keys[index] for index in indices if self.keys])


class EncodedBatch(NamedTuple):
    """The batch's rows, on the CPU."""

    samples: NDArray[Any]
    """``[B, C, h, w]`` in the type that is stored; ``[B, 2C, h, w]`` of moments, the means first."""
    finite: NDArray[np.bool_]
    """``[B]``: whether all of a row's values are, as computed."""
    stored: NDArray[np.bool_]
    """``[B]``: whether they are as stored, too; a float16 cannot hold every value."""
    noise_mask: NDArray[np.uint8]
    """``[B, H, W]``, grown."""
    seconds: dict[str, float]
    """What the batch took by stage: ``copy`` to the device, ``encode`` and ``copy_back``."""
    original_samples: NDArray[Any] | None = None
    """As ``samples``, of the images as they are; None if not asked for."""
    latent_mask: NDArray[Any] | None = None
    """``[B, h, w]`` in the type that is stored; None if not asked for."""
    tiled: Sequence[bool] = ()
    """By row: whether it went in tiles; none did if there is nothing here."""
    again: Sequence[int] = ()
    """Rows that were not finite and were encoded once more in float32."""
    oom_steps: int = 0
    """How often memory ran out on the way, and fewer images or tiles were tried."""


class Launched(Protocol):
    """A batch under way."""

    def result(self) -> EncodedBatch:
        """Wait for it; raises RuntimeError if the device could not, out of memory included."""


class Done(NamedTuple):
    """A `Launched` that is there already."""

    batch: EncodedBatch

    def result(self) -> EncodedBatch:
        """Return it."""
        return self.batch


class LatentEncoder(Protocol):
    """What a worker needs of whatever makes latents; safe to use from several threads."""

    precision: str
    """The type that it computes in, but for rows that are encoded again."""

    def images_at_once(self, height: int, width: int) -> int:
        """How many images of a size to put into a batch, if it is left to the encoder."""

    def launch(self, batch: Batch) -> Launched:
        """Begin a batch, or queue it behind others; raises RuntimeError if there is no memory to stage it in."""

    def check(self) -> None:
        """Raise if the device or the model is not usable any more."""
