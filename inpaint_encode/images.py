"""Bytes become pixels and a mask; every decode rule and its named errors are here.

* An image is JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF and becomes 8-bit RGB; alpha is dropped, and 16-bit
  grey is rounded to 8 bits.
* A mask is any of these and becomes one level a pixel: grey as it is, colour by its luma; 16-bit grey keeps
  its precision.
* 32-bit and floating-point pixels have no stated range, so they are rejected.
* EXIF orientation is applied to image and mask alike, before anything is measured.
* A file that ends early is rejected, never filled up with grey.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, TiffImagePlugin

from .errors import PairRejected
from .geometry import CropBox, crop_box

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "DecodedPair", "decode_image", "decode_mask", "decode_pair", "upright_size"]

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
"""File name suffixes, in lower case, that make an object an image or a mask; all others are ignored."""

MAX_PIXELS = 64_000_000
"""A header that declares more is refused before a pixel is decoded."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_LYING = {5, 6, 7, 8}
"""EXIF orientations that exchange height and width."""
_WIDE = {"I": "32-bit integers", "F": "floating-point"}

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
        PairRejected: ``decode.not_an_image``, ``decode.too_large``, ``decode.unsupported``, ``decode.truncated``
            or ``decode.corrupt``.
    """
    pixels = _pixels(data, "decode", _as_rgb)
    if pixels.ndim == 2:
        return np.repeat(((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    return pixels


def decode_mask(data: bytes) -> NDArray[Any]:
    """Return the levels ``[h, w]`` of a mask file: uint8, or uint16 where the file has 16 bits.

    Raises:
        PairRejected: the names of `decode_image` with ``mask`` in the place of ``decode``.
    """
    return _pixels(data, "mask", _as_levels)


def upright_size(data: bytes) -> tuple[int, int]:
    """Return the height and width that `decode_image` would give, by the header alone, EXIF orientation applied.

    The file's first bytes are enough if its header is in them. A PNG that states its orientation after its pixels,
    as the format allows, is taken as it lies.

    Raises:
        PairRejected: ``decode.not_an_image``, ``decode.too_large`` or ``decode.unsupported``.
    """
    with _open(data, "decode") as image:
        _refuse_unsupported(image, "decode", _describe(image, data))
        try:
            lies = Image.Image.getexif(image).get(ExifTags.Base.Orientation) in _LYING  # a PNG's own decodes it whole
            width, height = _size_in_file(image)
        except Exception as error:  # decoding fails by the same
            raise PairRejected("decode.corrupt", f"{_describe(image, data)}: {error}") from error
        return (width, height) if lies else (height, width)


def _size_in_file(image: Image.Image) -> tuple[int, int]:
    """Width and height before any orientation: of a TIFF, newer Pillows tell those after it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH]), int(image.tag_v2[TiffImagePlugin.IMAGELENGTH])
    return image.size


def _as_rgb(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _as_levels(image: Image.Image) -> Image.Image:
    """Palettes become colours first, and alpha is dropped before luma is taken."""
    with_colours = image.convert("RGB") if image.mode in {"P", "PA", "RGBA", "RGBa", "LA", "La"} else image
    return with_colours.convert("L")


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
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # Pillow's plugins raise nearly every type on hostile headers
        raise PairRejected(f"{stage}.not_an_image", _describe_start(data)) from error
    if image.width * image.height > MAX_PIXELS:
        message = f"the header says {image.width} x {image.height} pixels; the limit is {MAX_PIXELS:,}"
        raise PairRejected(f"{stage}.too_large", message)
    return image


def _pixels(data: bytes, stage: str, convert: Callable[[Image.Image], Image.Image]) -> NDArray[Any]:
    """Decode to 8 bits by ``convert``, or to uint16 ``[H, W]`` where the file is 16-bit grey."""
    with _open(data, stage) as image:
        about = _describe(image, data)
        _refuse_unsupported(image, stage, about)
        try:
            image.load()
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith("I"):
                return np.asarray(upright).astype(np.uint16)
            return np.asarray(convert(upright))
        except Exception as error:  # as above: a damaged body may end in any type of error
            what = "truncated" if "truncated" in str(error) else "corrupt"
            raise PairRejected(f"{stage}.{what}", f"{about}: {error}") from error


def _describe(image: Image.Image, data: bytes) -> str:
    return f"{image.format} of {image.width} x {image.height} pixels in {len(data):,} bytes"


def _refuse_unsupported(image: Image.Image, stage: str, about: str) -> None:
    if image.mode in {"I", "F"} and not _is_16_bit(image):
        raise PairRejected(f"{stage}.unsupported", f"{about}: its levels are {_WIDE[image.mode]}, of no stated range")


def _is_16_bit(image: Image.Image) -> bool:
    """Pillow before 11.3 opens 16-bit grey PNG in its 32-bit mode."""
    return image.mode == "I" and image.format == "PNG"


def _describe_start(data: bytes) -> str:
    return f"{len(data):,} bytes that begin with {data[:12]!r}" if data else "the file is empty"
