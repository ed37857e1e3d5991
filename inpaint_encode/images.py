"""Bytes become pixels and a mask; every decode rule and its named errors are here.

* An image is JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF and becomes 8-bit RGB; alpha is dropped.
* A mask is any of these and becomes one level a pixel: grey as it is, colour by its luma; 16-bit grey keeps
  its precision.
* EXIF orientation is applied to image and mask alike, before anything is measured.
* A file that ends early is rejected, never filled up with grey.
"""

from __future__ import annotations

import io
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .errors import PairRejected
from .geometry import CropBox, crop_box

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "DecodedPair", "decode_image", "decode_mask", "decode_pair"]

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
"""File name suffixes, in lower case, that make an object an image or a mask; all others are ignored."""

MAX_PIXELS = 64_000_000
"""A header that declares more is refused before a pixel is decoded."""

Image.MAX_IMAGE_PIXELS = None  # our own limit is an error with a name, not a warning


class DecodedPair(NamedTuple):
    """One pair, cropped to the VAE's multiple and ready for it."""

    pixels: NDArray[np.uint8]
    """``[H, W, 3]`` RGB levels."""
    mask: NDArray[np.uint8]
    """``[H, W]``, 1 where the image is repainted; not grown."""
    source_height: int
    source_width: int
    crop: CropBox


def decode_pair(image: bytes, mask: bytes, multiple: int) -> DecodedPair:
    """Decode both files, bring the mask to the image's size, crop both to ``multiple``, make the mask binary.

    Raises:
        PairRejected: ``decode.*`` or ``mask.*`` for a bad file, ``size.too_small`` below ``multiple``.
    """
    pixels = decode_image(image)
    levels = decode_mask(mask)
    height, width = pixels.shape[:2]
    try:
        crop = crop_box(height, width, multiple)
    except ValueError as error:
        raise PairRejected("size.too_small", str(error)) from None
    binary = _binary_mask(levels, height, width)
    return DecodedPair(pixels[crop.slices], binary[crop.slices], height, width, crop)


def decode_image(data: bytes) -> NDArray[np.uint8]:
    """Return the RGB levels ``[H, W, 3]`` of an image file.

    Raises:
        PairRejected: ``decode.not_an_image``, ``decode.too_large``, ``decode.truncated`` or ``decode.corrupt``.
    """
    with _open(data, "decode") as image:
        return np.asarray(_pixels(image, "decode", len(data)).convert("RGB"))


def decode_mask(data: bytes) -> NDArray[Any]:
    """Return the levels ``[h, w]`` of a mask file: uint8, or uint16 where the file has 16 bits.

    Raises:
        PairRejected: the names of `decode_image` with ``mask`` in the place of ``decode``.
    """
    with _open(data, "mask") as image:
        pixels = _pixels(image, "mask", len(data))
        if pixels.mode.startswith("I"):
            return np.asarray(pixels).astype(np.uint16)
        return np.asarray(_without_palette(pixels).convert("L"))


def _without_palette(image: Image.Image) -> Image.Image:
    """Palettes become colours first, and alpha is dropped before luma is taken."""
    return image.convert("RGB") if image.mode in {"P", "PA", "RGBA", "RGBa", "LA", "La"} else image


def _binary_mask(levels: NDArray[Any], height: int, width: int) -> NDArray[np.uint8]:
    """Steps 1 and 3 of the contract on ``levels``; the common case needs no floating point."""
    full_scale = np.iinfo(levels.dtype).max
    if levels.shape == (height, width):
        return (levels > full_scale // 2).view(np.uint8)
    import torch

    from .transform import binarise_mask, resize_mask

    mask = torch.from_numpy(levels.astype(np.float32) / np.float32(full_scale))
    return binarise_mask(resize_mask(mask[None], height, width))[0].numpy().astype(np.uint8)


def _open(data: bytes, stage: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data))
    except Exception as error:  # Pillow's plugins raise nearly every type on hostile headers
        raise PairRejected(f"{stage}.not_an_image", _describe_start(data)) from error
    if image.width * image.height > MAX_PIXELS:
        message = f"the header says {image.width} x {image.height} pixels; the limit is {MAX_PIXELS:,}"
        raise PairRejected(f"{stage}.too_large", message)
    return image


def _pixels(image: Image.Image, stage: str, size: int) -> Image.Image:
    try:
        image.load()
        return ImageOps.exif_transpose(image)
    except Exception as error:  # as above: a damaged body may end in any type of error
        what = "truncated" if "truncated" in str(error) else "corrupt"
        message = f"{image.format} of {image.width} x {image.height} pixels in {size:,} bytes: {error}"
        raise PairRejected(f"{stage}.{what}", message) from error


def _describe_start(data: bytes) -> str:
    return f"{len(data):,} bytes that begin with {data[:12]!r}" if data else "the file is empty"
