"""A file's bytes become levels; every rule of decoding and its named errors are here.

* An image is JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF, of these the first frame or page, and becomes 8-bit RGB: grey is
  repeated, palettes are looked up, CMYK is converted, alpha is dropped and not blended. 16-bit grey is rounded to
  8 bits; Pillow gives 16-bit colour as its high bytes. An embedded profile is applied by the rules of `colour`; PNG's
  gamma is not.
* A mask is any of these and becomes one level a pixel, of the channel that `decode_mask` is asked for; 16-bit grey
  keeps its precision. Its profile is ignored: a mask's levels are numbers, no colours.
* 32-bit and floating-point pixels have no stated range, so they are rejected.
* EXIF orientation is applied to image and mask alike, before anything is measured. EXIF that cannot be read says
  nothing, in every format.
* A file that ends early, or whose data do not fill the size that its header says, is rejected, never filled up with
  grey or black, but for AVIF, whose decoder scales it; so are damaged data where the format lets them be
  told: JPEG's codes, PNG's checksums.
* Grey TIFF of 12 bits is scaled to 16, and its white is white whichever way it is stored.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, features

from inpaint_encode.errors import PairRejected

from .color import to_srgb
from .levels import in_mode, stored

__all__ = [
    "MAX_PIXELS",
    "Upright",
    "decode_image",
    "decode_mask",
    "upright_size",
]

MAX_PIXELS = 64_000_000
"""A header that declares more is refused before a pixel is decoded, unless a caller has another limit."""

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if features.check("avif") else []))
_BEGINS = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WebP>RIFF....WEBP)|(?P<GIF>GIF8[79]a)|"
    rb"(?P<TIFF>II\*\0|MM\0\*|II\+\0|MM\0\+)|(?P<BMP>BM.{4}\0{4})|(?P<AVIF>....ftypavi[fs])",
    re.DOTALL,
)
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


def decode_image(data: bytes, *, icc: str = "srgb", max_pixels: int = MAX_PIXELS) -> Upright:
    """Return the 8-bit RGB levels ``[H, W, 3]`` of an image file.

    Args:
        data: the file.
        icc: ``srgb`` applies an embedded profile, ``ignore`` does not.
        max_pixels: a header that declares more is refused before a pixel is decoded.

    Raises:
        PairRejected: ``decode.not_an_image``, ``decode.too_large``, ``decode.unsupported``, ``decode.truncated``
            or ``decode.corrupt``.
    """
    return _decoded(data, "decode", max_pixels, lambda image: _colours(image, data, icc))


def decode_mask(data: bytes, channel: str = "auto", *, max_pixels: int = MAX_PIXELS) -> Upright:
    """Return the levels ``[h, w]`` of a mask file: uint8, or uint16 where the file is grey of 16 bits.

    Args:
        data: the file.
        channel: what of it, as `inpaint_encode.settings.Decoding` has it.
        max_pixels: as for `decode_image`.

    Raises:
        PairRejected: the names of `decode_image` with ``mask`` in the place of ``decode``; ``mask.no_alpha`` and
            ``mask.ambiguous`` by the rules of ``channel``.
    """
    return _decoded(data, "mask", max_pixels, lambda image: _channel(image, data, channel))


def upright_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the height and width that `decode_image` would give, by the header alone, EXIF orientation applied.

    The file's first bytes are enough if its header is in them. A PNG that states its orientation after its pixels,
    as the format allows, is taken as it lies.

    Raises:
        PairRejected: ``decode.not_an_image``, ``decode.corrupt``, ``decode.too_large`` or ``decode.unsupported``.
    """
    with _open(data, "decode", max_pixels) as image:
        _refuse_unsupported(image, "decode", _describe(image, data))
        try:
            lies, (width, height) = _lies(image), _size_in_file(image)
        except Exception as error:  # decoding fails by the same
            raise PairRejected("decode.corrupt", f"{_describe(image, data)}: {error}") from error
        return (width, height) if lies else (height, width)


def _lies(image: Image.Image) -> bool:
    """Whether the header says an orientation that exchanges height and width."""
    return _orientation(image, Image.Image.getexif) in _LYING  # a PNG's own decodes it whole


def _orientation(image: Image.Image, read: Callable[[Image.Image], Image.Exif]) -> Any:
    """EXIF orientation, 1 where none can be read: of JPEG Pillow lets that pass, of others it fails."""
    try:
        return read(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `_open`
        return 1


def _size_in_file(image: Image.Image) -> tuple[int, int]:
    """Width and height before any orientation: of a TIFF, newer Pillows tell those after it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.IMAGEWIDTH]), int(image.tag_v2[TiffImagePlugin.IMAGELENGTH])
    return image.size


def _open(data: bytes, stage: str, max_pixels: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception as error:  # Pillow's plugins raise nearly every type on hostile headers
        raise _not_opened(data, stage) from error
    if image.width * image.height > max_pixels:
        message = f"the header says {image.width} x {image.height} pixels; --max-pixels allows {max_pixels:,}"
        raise PairRejected(f"{stage}.too_large", message)
    return image


def _not_opened(data: bytes, stage: str) -> PairRejected:
    """Tell a file of another kind from one whose header is damaged or cut off."""
    begins = _BEGINS.match(data)
    if not begins:
        about = f"{len(data):,} bytes that begin with {data[:12]!r}" if data else "the file is empty"
        return PairRejected(f"{stage}.not_an_image", about)
    declared = int.from_bytes(data[4:8], "little") + 8
    if begins.lastgroup == "WebP" and declared > len(data):
        return PairRejected(f"{stage}.truncated", f"WebP of {declared:,} bytes, of which {len(data):,} are there")
    message = f"{begins.lastgroup} in {len(data):,} bytes, whose header is damaged or ends early"
    return PairRejected(f"{stage}.corrupt", message)


def _decoded(data: bytes, stage: str, max_pixels: int, take: Callable[[Image.Image], NDArray[Any]]) -> Upright:
    """Open a file, ``take`` its levels as they are stored, and turn them upright."""
    with _open(data, stage, max_pixels) as image:
        about = _describe(image, data)
        _refuse_unsupported(image, stage, about)
        try:
            turned = isinstance(image, TiffImagePlugin.TiffImageFile) and _lies(image)
            levels = take(image)  # a TIFF turns upright as it is loaded, and then says so
            upright = _upright(levels, _orientation(image, type(image).getexif))
            return upright._replace(turned=True) if turned else upright
        except PairRejected as rejection:
            raise PairRejected(rejection.error, f"{about}: {rejection.message}") from None
        except Exception as error:  # as above: a damaged body may end in any type of error
            what = "truncated" if _ENDS_EARLY.search(str(error)) else "corrupt"
            raise PairRejected(f"{stage}.{what}", f"{about}: {error}") from error


def _colours(image: Image.Image, data: bytes, icc: str) -> NDArray[np.uint8]:
    """RGB levels ``[H, W, 3]`` as they are stored, in sRGB."""
    found = stored(image, data)
    if isinstance(found, np.ndarray) and found.dtype == np.uint16:
        found = ((found.astype(np.uint32) + 128) // 257).astype(np.uint8)
    profile = image.info.get("icc_profile") if icc == "srgb" else None
    if profile:
        found = to_srgb(found, profile)
    levels = found if isinstance(found, np.ndarray) else np.asarray(in_mode(found, "RGB"))
    return np.repeat(levels[..., None], 3, axis=2) if levels.ndim == 2 else levels


def _channel(image: Image.Image, data: bytes, channel: str) -> NDArray[Any]:
    """Levels ``[h, w]`` of one channel as they are stored."""
    found = stored(image, data)
    if channel in {"alpha", "auto"}:
        alpha = _alpha(image, found, data)
        if channel == "alpha":
            return _wanted(alpha)
        if alpha is not None and (lowest := alpha.min()) < 255:
            message = f"its alpha goes down to {lowest} of 255, and may be the mask; say --mask-channel alpha or luma"
            raise PairRejected("mask.ambiguous", message)
    if isinstance(found, np.ndarray):
        if found.ndim == 2:
            return found
        found = Image.fromarray(found)
    if found.mode in {"P", "PA", "RGBA", "RGBa", "LA", "La"}:
        found = found.convert("RGB")  # drops alpha before a level is taken
    if channel in _CHANNELS and found.mode not in {"1", "L"}:
        return np.asarray(in_mode(found, "RGB").getchannel(_CHANNELS.index(channel)))
    return np.asarray(in_mode(found, "L"))


def _wanted(alpha: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    if alpha is None:
        raise PairRejected("mask.no_alpha", "it has no alpha channel, which --mask-channel alpha asks for")
    return alpha


def _alpha(image: Image.Image, found: Image.Image | NDArray[Any], data: bytes) -> NDArray[np.uint8] | None:
    """Alpha ``[h, w]`` of what `stored` found; None where there is none."""
    if not image.has_transparency_data:
        return None
    depth, transparent = data[24] if image.format == "PNG" else 8, image.info.get("transparency", 0)
    if image.mode == "L" or isinstance(found, np.ndarray):  # Pillow holds levels of 8 bits against one of `depth`
        level = transparent * 255 // (2**depth - 1) if depth < 8 else transparent
        return np.where(np.asarray(found) == level, np.uint8(0), np.uint8(255))
    if image.mode == "RGB" and depth == 16:
        raise PairRejected("mask.unsupported", "it has a transparent colour of 16 bits, and 16-bit colour is read at 8")
    return np.asarray(in_mode(image, "RGBA").getchannel("A"))


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
