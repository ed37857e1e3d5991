"""A file's bytes become levels; every rule of decoding and its named errors are here.

* An image is JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF and becomes 8-bit RGB; alpha is dropped, and 16-bit
  grey is rounded to 8 bits.
* A mask is any of these and becomes one level a pixel, of the channel that `decode_mask` is asked for; 16-bit grey
  keeps its precision.
* 32-bit and floating-point pixels have no stated range, so they are rejected.
* EXIF orientation is applied to image and mask alike, before anything is measured.
* A file that ends early is rejected, never filled up with grey; so is a JPEG whose data are damaged where its decoder
  can tell.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from inpaint_encode.errors import PairRejected

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "Upright",
    "decode_image",
    "decode_mask",
    "upright_size",
]

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff"})
"""File name suffixes, in lower case, that make an object an image or a mask; all others are ignored."""

MAX_PIXELS = 64_000_000
"""A header that declares more is refused before a pixel is decoded."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_LYING = {5, 6, 7, 8}
"""EXIF orientations that exchange height and width."""
_ENDS_EARLY = re.compile("truncated|premature end of jpeg file", re.IGNORECASE)
_CHANNELS = ("red", "green", "blue")
_WIDE = {"I": "32-bit integers", "F": "floating-point"}

Image.MAX_IMAGE_PIXELS = None  # our own limit is an error with a name, not a warning


class Upright(NamedTuple):
    """What a file shows, its EXIF orientation applied."""

    levels: NDArray[Any]
    turned: bool
    """Whether that has exchanged height and width."""


def decode_image(data: bytes) -> Upright:
    """Return the 8-bit RGB levels ``[H, W, 3]`` of an image file.

    Raises:
        PairRejected: ``decode.not_an_image``, ``decode.too_large``, ``decode.unsupported``, ``decode.truncated``
            or ``decode.corrupt``.
    """
    levels, turned = _decoded(data, "decode", _colours)
    if levels.dtype == np.uint16:
        levels = ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return Upright(np.repeat(levels[..., None], 3, axis=2) if levels.ndim == 2 else levels, turned)


def decode_mask(data: bytes, channel: str = "auto") -> Upright:
    """Return the levels ``[h, w]`` of a mask file: uint8, or uint16 where the file is grey of 16 bits.

    Args:
        data: the file.
        channel: what of it, as `inpaint_encode.settings.Decoding` has it.

    Raises:
        PairRejected: the names of `decode_image` with ``mask`` in the place of ``decode``; ``mask.no_alpha`` and
            ``mask.ambiguous`` by the rules of ``channel``.
    """
    return _decoded(data, "mask", lambda image, data: _channel_levels(image, data, channel))


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


def _open(data: bytes, stage: str) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # Pillow's plugins raise nearly every type on hostile headers
        raise PairRejected(f"{stage}.not_an_image", _describe_start(data)) from error
    if image.width * image.height > MAX_PIXELS:
        message = f"the header says {image.width} x {image.height} pixels; the limit is {MAX_PIXELS:,}"
        raise PairRejected(f"{stage}.too_large", message)
    return image


def _decoded(data: bytes, stage: str, take: Callable[[Image.Image, bytes], NDArray[Any]]) -> Upright:
    """Open a file, ``take`` its levels as they are stored, and turn them upright."""
    with _open(data, stage) as image:
        about = _describe(image, data)
        _refuse_unsupported(image, stage, about)
        try:
            stored = take(image, data)  # a TIFF turns upright as it is loaded, and then says so
            return _upright(stored, image.getexif().get(ExifTags.Base.Orientation, 1))
        except PairRejected as rejection:
            raise PairRejected(rejection.error, f"{about}: {rejection.message}") from None
        except Exception as error:  # as above: a damaged body may end in any type of error
            what = "truncated" if _ENDS_EARLY.search(str(error)) else "corrupt"
            raise PairRejected(f"{stage}.{what}", f"{about}: {error}") from error


def _colours(image: Image.Image, data: bytes) -> NDArray[Any]:
    """RGB levels, or 16-bit grey ones."""
    loaded = _loaded(image, data)
    return loaded if isinstance(loaded, np.ndarray) else np.asarray(_in_mode(loaded, "RGB"))


def _channel_levels(image: Image.Image, data: bytes, channel: str) -> NDArray[Any]:
    if channel == "alpha":
        return _alpha(image)
    loaded = _loaded(image, data)
    if isinstance(loaded, np.ndarray):
        if loaded.ndim == 2:
            return loaded
        loaded = Image.fromarray(loaded)
    if channel == "auto" and loaded.has_transparency_data and (lowest := _alpha(loaded).min()) < 255:
        message = f"its alpha goes down to {lowest} of 255, and may be the mask; say --mask-channel alpha or luma"
        raise PairRejected("mask.ambiguous", message)
    if channel in _CHANNELS and loaded.mode not in {"1", "L", "LA"}:
        return np.asarray(_in_mode(loaded, "RGB").getchannel(_CHANNELS.index(channel)))
    if loaded.mode in {"P", "PA", "RGBA", "RGBa", "LA", "La"}:
        loaded = loaded.convert("RGB")  # drops alpha before luma is taken
    return np.asarray(_in_mode(loaded, "L"))


def _alpha(image: Image.Image) -> NDArray[np.uint8]:
    if not image.has_transparency_data:
        raise PairRejected("mask.no_alpha", "it has no alpha channel, which --mask-channel alpha asks for")
    return np.asarray(_in_mode(image, "RGBA").getchannel("A"))


def _loaded(image: Image.Image, data: bytes) -> Image.Image | NDArray[Any]:
    """The image as the file stores it: of JPEG its RGB or grey levels, of 16-bit grey its levels.

    JPEG goes to libjpeg-turbo directly: the same levels as Pillow's in half of its time, and an error where Pillow
    fills the rest of a damaged scan with grey.
    """
    if image.format in {"JPEG", "MPO"} and image.mode in {"L", "RGB"}:
        levels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, {"L": "GRAY", "RGB": "RGB"}[image.mode])
        return levels[..., 0] if image.mode == "L" else levels
    image.load()
    return np.asarray(image).astype(np.uint16) if image.mode.startswith("I") else image


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)


def _upright(levels: NDArray[Any], orientation: int) -> Upright:
    """Undo an EXIF orientation, 1 to 8: how the camera was held when it stored ``[H, W]`` or ``[H, W, 3]``."""
    turned = orientation in _LYING
    if turned:
        levels = levels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        levels = levels[::-1]
    return Upright(levels[:, ::-1] if orientation in {2, 3, 6, 7} else levels, turned)


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
