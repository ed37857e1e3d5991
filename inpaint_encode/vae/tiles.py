"""Encode an image in overlapping tiles, for images that do not fit in memory.

The result is close to that of the whole image, but not equal: attention and group norms see one tile only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .encode import Posterior, posterior

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["tile_starts", "tiled_posterior"]

_OVERLAP = 4
"""Neighboring tiles overlap by at least about 1 / _OVERLAP of a tile."""


def tile_starts(length: int, tile: int, multiple: int) -> list[int]:
    """Return where tiles begin along a side: multiples of ``multiple``, evenly spaced; the last tile ends at the end.

    Args:
        length: pixels of the side, a multiple of ``multiple``.
        tile: pixels of a tile's side, a multiple of ``multiple``.
        multiple: pixels that starts are rounded to.
    """
    if length <= tile:
        return [0]
    stride = max(multiple, tile - tile // _OVERLAP)
    count = 1 + -(-(length - tile) // stride)
    return [round((length - tile) / multiple * index / (count - 1)) * multiple for index in range(count)]


@torch.inference_mode()
def tiled_posterior(vae: ModelMixin, pixels: Tensor, tile: int, multiple: int) -> Posterior:
    """Encode images in square tiles and blend these where they overlap.

    Means and log-variances are weighted means over the tiles. A tile's weights fall toward its own edges.

    Args:
        vae: as for `posterior`.
        pixels: float32 ``[B, H, W, 3]`` in 0..1, sides a multiple of ``multiple``.
        tile: side of a tile in pixels, rounded down to a multiple; a shorter side of the image is one tile.
        multiple: the VAE's crop multiple in pixels.
    """
    height, width = pixels.shape[1:3]
    side = max(multiple, tile // multiple * multiple)
    sums: list[Tensor] = []
    weights = torch.empty(0)
    for top in tile_starts(height, side, multiple):
        for left in tile_starts(width, side, multiple):
            part = pixels[:, top : top + side, left : left + side]
            values = [value for value in posterior(vae, part) if value is not None]
            rows, columns = values[0].shape[-2:]
            ratio = part.shape[1] // rows
            if not sums:
                size = height // ratio, width // ratio
                sums = [value.new_zeros((*value.shape[:2], *size)) for value in values]
                weights = values[0].new_zeros(size)
            weight = _ramp(rows, weights)[:, None] * _ramp(columns, weights)
            where = slice(top // ratio, top // ratio + rows), slice(left // ratio, left // ratio + columns)
            for total, value in zip(sums, values, strict=True):
                total[(..., *where)] += weight * value
            weights[where] += weight
    mean, *logvar = (total / weights for total in sums)
    return Posterior(mean, logvar[0] if logvar else None)


def _ramp(length: int, like: Tensor) -> Tensor:
    """``[length]``: rises from both ends to 1 at a quarter, since a tile's edge has the least context."""
    distance = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    return torch.minimum(distance, length - distance).div(max(1, length // _OVERLAP)).clamp(max=1.0)
