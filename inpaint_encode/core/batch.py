"""The interface of an encoder: it takes batches of images of one size and returns their latents and grown masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

MAX_BATCH_SIZE = 8
"""Images of one size in a forward pass, unless ``--batch-size`` is a number."""

CPU_BATCH_PIXELS = 2**19
"""Pixels of a forward pass on a CPU, where the kernel kills a process that allocates too much.

A VAE of Stable Diffusion's size takes 0.7 GB for them in float32. Larger batches are hardly faster: on one core, eight
images of 64 x 64 take 1.1 times less CPU time than each alone, and two of 256 x 256 the same.
"""


class OutOfMemory(RuntimeError):
    """One image does not fit into the device's memory.

    Args:
        message: a sentence with a remedy.
        steps: how often memory ran out before this was certain.
    """

    def __init__(self, message: str, *, steps: int) -> None:
        super().__init__(message)
        self.steps = steps
        self.not_finite = 0
        """Rows of the batch that had overflowed before and needed this memory to be encoded in float32."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` is an out-of-memory error of torch or one of its libraries."""
    if isinstance(error, OutOfMemory) or type(error).__name__ == "OutOfMemoryError":
        return True
    phrases = ("can't allocate memory", "ALLOC_FAILED", "CUDA out of memory", "CUDA error: out of memory")
    return any(phrase in str(error) for phrase in phrases)


class Batch(NamedTuple):
    """Images of one size."""

    height: int
    width: int
    pixels: Sequence[NDArray[np.uint8]]
    """Each ``[height * width * 3]``: RGB levels."""
    masks: Sequence[NDArray[np.uint8]]
    """Each ``[ceil(height * width / 8)]``: packed bits, 1 where the image is repainted; not grown."""
    keys: Sequence[str] = ()
    """The rows' keys, which seed a draw from the posterior; may be empty without draws."""

    def part(self, indices: Sequence[int]) -> Batch:
        """Return the images at ``indices``, in that order."""
        pixels, masks = ([of[index] for index in indices] for of in (self.pixels, self.masks))
        return Batch(self.height, self.width, pixels, masks, [self.keys[index] for index in indices if self.keys])


class EncodedBatch(NamedTuple):
    """The results of a batch, on the CPU."""

    samples: NDArray[Any]
    """``[B, C, h, w]`` in the stored type; ``[B, 2C, h, w]`` of moments, the means first."""
    finite: NDArray[np.bool_]
    """``[B]``: whether all values of a row are finite as computed."""
    fits_stored_dtype: NDArray[np.bool_]
    """``[B]``: whether all values of a row are finite in the stored type."""
    noise_mask: NDArray[np.uint8]
    """``[B, H, W]``, grown."""
    seconds: dict[str, float]
    """By stage: ``copy`` to the device, ``encode`` and ``copy_back``."""
    original_samples: NDArray[Any] | None = None
    """As ``samples``, of the images that are not masked; None if not asked for."""
    latent_mask: NDArray[Any] | None = None
    """``[B, h, w]`` in the stored type; None if not asked for."""
    tiled: Sequence[bool] = ()
    """By row: whether it was encoded in tiles; empty if none was."""
    in_float32: Sequence[int] = ()
    """Rows that overflowed in the compute dtype and were encoded in float32."""
    oom_steps: int = 0
    """How often memory ran out, each time followed by a smaller batch or by tiles."""


class EncodeFuture(Protocol):
    """A batch that is being encoded."""

    def result(self) -> EncodedBatch:
        """Wait for the results.

        Raises:
            RuntimeError: the device or the model failed, out of memory included.
        """


class LatentEncoder(Protocol):
    """What a worker needs of an encoder; methods may be called from several threads."""

    precision: str
    """Compute dtype, except for rows that overflowed."""

    def batch_size(self, height: int, width: int) -> int:
        """Return how many images of a size to put into a batch with ``--batch-size auto``."""

    def launch(self, batch: Batch, *, tile: bool | None = None) -> EncodeFuture:
        """Start encoding a batch, after those that were launched before.

        Args:
            batch: images of one size.
            tile: whether to encode in tiles; None: as the rows' metadata say.

        Raises:
            RuntimeError: no memory to stage the batch.
        """

    def check(self) -> None:
        """Raise if the device or the model is not usable any more."""
