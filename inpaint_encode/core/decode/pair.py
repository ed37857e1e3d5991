"""Decode an image and its mask, bring both to one size and crop them alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inpaint_encode.core.geometry import Geometry, Sizing, format_size
from inpaint_encode.errors import PairRejected
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.sources.random_masks import RandomMask

from .image_file import MAX_PIXELS, decode_image, decode_mask
from .memory import UNCOUNTED_PIXELS, DecodingMemory


class DecodedImage(NamedTuple):
    """A decoded image, resized and cropped for the VAE."""

    pixels: NDArray[np.uint8]
    """RGB levels ``[H, W, 3]`` of the crop."""
    source_height: int
    source_width: int
    geometry: Geometry
    transposed: bool
    """Whether its EXIF orientation swapped height and width."""


@dataclass(frozen=True, kw_only=True)
class PairDecoder:
    """Decodes the pairs of a job; small, picklable, and the same in every worker.

    All options except ``max_pixels`` are those of `inpaint_encode.settings.Decoding`.
    """

    sizing: Sizing
    mask_channel: str = "auto"
    mask_polarity: str = "white"
    icc: str = "srgb"
    max_pixels: int = MAX_PIXELS
    """Limit for files and for resized images; a pair above it is rejected."""

    @classmethod
    def of(cls, metadata: RowMetadata, *, max_pixels: int) -> Self:
        """Return the decoder for rows with this metadata."""
        return cls(
            sizing=Sizing.of(metadata),
            mask_channel=metadata.mask_channel,
            mask_polarity=metadata.mask_polarity,
            icc=metadata.icc,
            max_pixels=max_pixels,
        )

    def image(self, data: bytes) -> DecodedImage:
        """Decode an image file, resize it (Lanczos with antialiasing) if the options ask for it, and crop it.

        Raises:
            PairRejected: ``image.*`` for a bad file, or the names of `fit`.
            MemoryError: there is not enough memory.
        """
        with DecodingMemory() as memory:
            pixels, transposed = decode_image(data, icc=self.icc, max_pixels=self.max_pixels, memory=memory)
            height, width = pixels.shape[:2]
            geometry = self.fit(height, width)
            if (geometry.resized_height, geometry.resized_width) != (height, width):
                size = geometry.resized_width, geometry.resized_height
                if size[0] * size[1] > max(UNCOUNTED_PIXELS, height * width):
                    memory.reserve(size[0] * size[1])
                pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
        return DecodedImage(pixels[geometry.crop.slices], height, width, geometry, transposed)

    def fit(self, height: int, width: int) -> Geometry:
        """Return how an image of this size is resized and cropped.

        Raises:
            PairRejected: ``size.too_small`` if a side is below the VAE's multiple, or if the image would have to be
                enlarged without ``upscale``; ``size.too_large`` if it would be enlarged to more than ``max_pixels``.
        """
        try:
            geometry = self.sizing.fit(height, width)
        except ValueError as error:
            raise PairRejected("size.too_small", str(error)) from None
        resized = geometry.resized_height, geometry.resized_width
        if resized != (height, width) and resized[0] * resized[1] > self.max_pixels:
            size = format_size(*resized)
            raise PairRejected(
                "size.too_large", f"it would be enlarged to {size} pixels, more than --max-pixels {self.max_pixels:,}"
            )
        return geometry

    def mask(self, data: bytes | RandomMask, image: DecodedImage) -> NDArray[np.uint8]:
        """Decode a mask file or draw a random mask, resize it to the image, make it binary and crop it alike.

        Returns:
            ``[H, W]``, 1 where the image is repainted and 0 elsewhere; not grown.

        Raises:
            PairRejected: ``mask.*`` for a bad file; ``orientation.mismatch`` if only one of image and mask has an EXIF
                orientation that swaps its sides, and their proportions match only without it.
            MemoryError: there is not enough memory.
        """
        height, width = image.geometry.resized_height, image.geometry.resized_width
        with DecodingMemory() as memory:
            if isinstance(data, RandomMask):
                levels = data.draw(height, width)
            else:
                levels, transposed = decode_mask(data, self.mask_channel, max_pixels=self.max_pixels, memory=memory)
                if transposed != image.transposed:
                    _check_orientation(levels.shape, image)
                if self.mask_polarity in ("black", "transparent"):
                    levels = np.iinfo(levels.dtype).max - levels
            full_scale = np.iinfo(levels.dtype).max
            if levels.shape == (height, width):  # needs no floating point
                binary = (levels > full_scale // 2).view(np.uint8)
            else:
                import torch

                from inpaint_encode.core.transform import binarize_mask, resize_mask

                if max(levels.size, height * width) > UNCOUNTED_PIXELS:
                    memory.reserve(max(levels.size, height * width))
                mask = torch.from_numpy(levels.astype(np.float32) / np.float32(full_scale))
                binary = binarize_mask(resize_mask(mask[None], height, width))[0].numpy().astype(np.uint8)
        return binary[image.geometry.crop.slices]


def _check_orientation(mask: tuple[int, ...], image: DecodedImage) -> None:
    """Reject a mask whose proportions match the image's only if height and width are swapped."""
    height, width = image.source_height, image.source_width
    if _same_proportions(mask[0], mask[1], height, width) or not _same_proportions(mask[1], mask[0], height, width):
        return
    which = "image" if image.transposed else "mask"
    raise PairRejected(
        "orientation.mismatch",
        f"EXIF rotates only the {which} by 90 degrees: after the rotation the image is {format_size(height, width)} "
        f"pixels and the mask {format_size(mask[0], mask[1])}; rotate one of them, or remove its EXIF orientation",
    )


def _same_proportions(height: int, width: int, other_height: int, other_width: int) -> bool:
    """Compare proportions, to within one pixel of the first size."""
    return abs(height * other_width - width * other_height) <= max(other_height, other_width)
