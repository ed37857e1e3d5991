"""An image in pieces that overlap, for one that no memory holds whole: near what the whole gives, and not equal to it.

Attention and group norms see a tile and not the image. Tiles are of one size, and the last ends where the image ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .encode import Posterior, posterior

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["needs_tiles", "tile_starts", "tiled_posterior"]

_OVERLAP = 4
"""A tile shares at least about one part in so many with its neighbour."""


def needs_tiles(height: int, width: int, tile: int) -> bool:
    """Whether an image of this size, in pixels, is more than one tile of side ``tile``."""
    return max(height, width) > tile


def tile_starts(length: int, tile: int, multiple: int) -> list[int]:
    """Where tiles begin along a side of ``length`` pixels: multiples of ``multiple``, as evenly as they allow.

    All of ``length``, ``tile`` and the starts are multiples of ``multiple``; one tile serves a side that it covers.
    """
    if length <= tile:
        return [0]
    stride = max(multiple, tile - tile // _OVERLAP)
    count = 1 + -(-(length - tile) // stride)
    return [round((length - tile) / multiple * index / (count - 1)) * multiple for index in range(count)]


@torch.inference_mode()
def tiled_posterior(vae: ModelMixin, pixels: Tensor, tile: int, multiple: int) -> Posterior:
    """Encode float32 ``[B, H, W, 3]`` in 0..1 in squares of side ``tile``, which are blended where they overlap.

    A value is the mean of its tiles', each weighed by the distance from the tile's own edge, means and log-variances
    alike, in float32.

    Args:
        vae: as for `posterior`.
        pixels: sides are multiples of ``multiple``.
        tile: side of a tile in pixels; it is rounded down to a multiple, and a shorter side of the image is one tile.
        multiple: what the VAE can cut images at, in pixels.
    """
    height, width = pixels.shape[1:3]
    side = max(multiple, tile // multiple * multiple)
    blend = _Blend(height, width)
    for top in tile_starts(height, side, multiple):
        for left in tile_starts(width, side, multiple):
            part = pixels[:, top : top + side, left : left + side]
            blend.add(posterior(vae, part), top, left, part.shape[1])
    return blend.result()


class _Blend:
    """The weighed sum of what has been added so far, and the weights'."""

    def __init__(self, height: int, width: int) -> None:
        self._size = height, width
        self._sums: list[Tensor] = []
        self._weights = torch.empty(0)

    def add(self, found: Posterior, top: int, left: int, height: int) -> None:
        """Add a tile of ``height`` pixels that begins at ``top`` and ``left``, in pixels."""
        values = [value for value in found if value is not None]
        rows, columns = found.mean.shape[-2:]
        cell = height // rows
        if not self._sums:
            size = self._size[0] // cell, self._size[1] // cell
            self._sums = [value.new_zeros((*value.shape[:2], *size)) for value in values]
            self._weights = found.mean.new_zeros(size)
        weights = _ramp(rows, found.mean)[:, None] * _ramp(columns, found.mean)
        where = slice(top // cell, top // cell + rows), slice(left // cell, left // cell + columns)
        for total, value in zip(self._sums, values, strict=True):
            total[(..., *where)] += weights * value
        self._weights[where] += weights

    def result(self) -> Posterior:
        mean, *logvar = (total / self._weights for total in self._sums)
        return Posterior(mean, logvar[0] if logvar else None)


def _ramp(length: int, like: Tensor) -> Tensor:
    """Rise from both ends to 1 at a quarter of ``length``: a tile's edge has seen the least of what is around it."""
    distance = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(distance, length - distance).div(max(1, length // _OVERLAP)).clamp(max=1.0)
