"""An image and its mask: both decoded and brought to one size, the mask to the image, and both cropped alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from inpaint_encode.core.geometry import CropBox, Geometry, Sizing
from inpaint_encode.errors import PairRejected
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.sources.random_masks import RandomMask

from .image_file import MAX_PIXELS, decode_image, decode_mask

__all__ = ["DecodedImage", "PairDecoder"]


class DecodedImage(NamedTuple):
    """An image, brought to size, cropped to the VAE's multiple and ready for it."""

    pixels: NDArray[np.uint8]
    """``[H, W, 3]`` RGB levels."""
    source_height: int
    source_width: int
    geometry: Geometry
    turned: bool
    """Whether its EXIF orientation exchanged height and width."""

    @property
    def crop(self) -> CropBox:
        """Where in the resized image the pixels lie."""
        return self.geometry.crop


@dataclass(frozen=True, kw_only=True)
class PairDecoder:
    """What a job's pairs are decoded by: small, and the same in every worker.

    But for the last, the options are those of `inpaint_encode.settings.Decoding`.
    """

    sizing: Sizing
    mask_channel: str = "auto"
    mask_polarity: str = "white"
    icc: str = "srgb"
    max_pixels: int = MAX_PIXELS
    """A file or a resized image of more is rejected."""

    @classmethod
    def of(cls, metadata: RowMetadata, *, max_pixels: int) -> Self:
        """Return the decoder of an output's rows."""
        return cls(
            sizing=Sizing.of(metadata),
            mask_channel=metadata.mask_channel,
            mask_polarity=metadata.mask_polarity,
            icc=metadata.icc,
            max_pixels=max_pixels,
        )

    def image(self, data: bytes) -> DecodedImage:
        """Decode an image file, resize it where that is asked for, and crop it.

        Raises:
            PairRejected: ``decode.*`` for a bad file, ``size.too_small`` below the VAE's multiple or where it would
                have to be enlarged, ``size.too_large`` where that makes too many pixels.
        """
        pixels, turned = decode_image(data, icc=self.icc, max_pixels=self.max_pixels)
        height, width = pixels.shape[:2]
        geometry = self.fit(height, width)
        resized = geometry.resized_height, geometry.resized_width
        if resized != (height, width):
            pixels = _resized(pixels, *resized)
        return DecodedImage(pixels[geometry.crop.slices], height, width, geometry, turned)

    def fit(self, height: int, width: int) -> Geometry:
        """Return what becomes of an image of this size.

        Raises:
            PairRejected: the ``size.*`` of `image`.
        """
        try:
            geometry = self.sizing.fit(height, width)
        except ValueError as error:
            raise PairRejected("size.too_small", str(error)) from None
        resized = geometry.resized_height, geometry.resized_width
        if resized != (height, width) and resized[0] * resized[1] > self.max_pixels:
            of = f"{resized[0]} x {resized[1]} pixels"
            raise PairRejected("size.too_large", f"enlarged to {of} it has more than --max-pixels {self.max_pixels:,}")
        return geometry

    def mask(self, data: bytes | RandomMask, image: DecodedImage) -> NDArray[np.uint8]:
        """Decode a mask file, or draw the mask, bring it to the image's size, crop it alike and make it binary.

        Returns ``[H, W]``, 1 where the image is repainted; not grown.

        Raises:
            PairRejected: ``mask.*`` for a bad file, ``orientation.mismatch`` if it lies across the image because only
                one of them has an EXIF orientation.
        """
        resized = image.geometry.resized_height, image.geometry.resized_width
        levels = data.draw(*resized) if isinstance(data, RandomMask) else self._mask_levels(data, image)
        return _binary_mask(levels, *resized)[image.crop.slices]

    def _mask_levels(self, data: bytes, image: DecodedImage) -> NDArray[Any]:
        """Levels ``[h, w]`` of a mask file, the higher half of which is repainted."""
        levels, turned = decode_mask(data, self.mask_channel, max_pixels=self.max_pixels)
        if turned != image.turned:
            _refuse_across(levels.shape, image)
        if self.mask_polarity in ("black", "transparent"):
            levels = np.iinfo(levels.dtype).max - levels
        return levels


def _resized(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Lanczos with antialiasing, Pillow's."""
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))


def _refuse_across(mask: tuple[int, ...], image: DecodedImage) -> None:
    """Reject a mask that has the image's proportions only if height and width are exchanged."""
    height, width = image.source_height, image.source_width
    if _alike(mask[0], mask[1], height, width) or not _alike(mask[1], mask[0], height, width):
        return
    which = "image" if image.turned else "mask"
    raise PairRejected(
        "orientation.mismatch",
        f"only the {which}'s EXIF orientation turns it by a quarter: the image is {height} x {width} pixels upright, "
        f"the mask {mask[0]} x {mask[1]}; turn or strip one of them",
    )


def _alike(height: int, width: int, other_height: int, other_width: int) -> bool:
    """Whether the proportions are the same, to a pixel of the first size."""
    return abs(height * other_width - width * other_height) <= max(other_height, other_width)


def _binary_mask(levels: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """Steps 1 and 3 of the contract on ``levels``; the common case needs no floating point."""
    full_scale = np.iinfo(levels.dtype).max
    if levels.shape == (height, width):
        return (levels > full_scale // 2).view(np.uint8)
    import torch

    from inpaint_encode.core.transform import binarise_mask, resize_mask

    mask = torch.from_numpy(levels.astype(np.float32) / np.float32(full_scale))
    return binarise_mask(resize_mask(mask[None], height, width))[0].numpy().astype(np.uint8)
