"""An image and its mask: both decoded, the mask brought to the image, and both cropped alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpaint_encode.errors import PairRejected
from inpaint_encode.geometry import CropBox, crop_box

from .drawn import Drawing
from .files import decode_image, decode_mask

__all__ = ["DecodedImage", "PairDecoder"]


class DecodedImage(NamedTuple):
    """An image, cropped to the VAE's multiple and ready for it."""

    pixels: NDArray[np.uint8]
    """``[H, W, 3]`` RGB levels."""
    source_height: int
    source_width: int
    crop: CropBox


@dataclass(frozen=True, kw_only=True)
class PairDecoder:
    """What a job's pairs are decoded by: small, and the same in every worker."""

    multiple: int
    """Sides are cropped to multiples of it, in pixels."""

    def image(self, data: bytes) -> DecodedImage:
        """Decode an image file and crop it.

        Raises:
            PairRejected: ``decode.*`` for a bad file, ``size.too_small`` below ``multiple``.
        """
        pixels = decode_image(data)
        height, width = pixels.shape[:2]
        try:
            crop = crop_box(height, width, self.multiple)
        except ValueError as error:
            raise PairRejected("size.too_small", str(error)) from None
        return DecodedImage(pixels[crop.slices], height, width, crop)

    def mask(self, data: bytes | Drawing, image: DecodedImage) -> NDArray[np.uint8]:
        """Decode a mask file, or draw the mask, bring it to the image's size, crop it alike and make it binary.

        Returns ``[H, W]``, 1 where the image is repainted; not grown.

        Raises:
            PairRejected: ``mask.*`` for a bad file.
        """
        height, width = image.source_height, image.source_width
        levels = data.levels(height, width) if isinstance(data, Drawing) else decode_mask(data)
        return _binary_mask(levels, height, width)[image.crop.slices]


def _binary_mask(levels: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """Steps 1 and 3 of the contract on ``levels``; the common case needs no floating point."""
    full_scale = np.iinfo(levels.dtype).max
    if levels.shape == (height, width):
        return (levels > full_scale // 2).view(np.uint8)
    import torch

    from inpaint_encode.transform import binarise_mask, resize_mask

    mask = torch.from_numpy(levels.astype(np.float32) / np.float32(full_scale))
    return binarise_mask(resize_mask(mask[None], height, width))[0].numpy().astype(np.uint8)
