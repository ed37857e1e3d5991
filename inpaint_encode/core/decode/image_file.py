"""From the bytes of one file to an array; all rules of decoding and their named errors are here.

* An image is JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF. Its first frame or page becomes 8-bit RGB: gray is repeated,
  palettes are looked up, CMYK is converted, alpha is dropped without blending. 16-bit gray is rounded to 8 bits;
  of 16-bit color Pillow reads the high bytes. An embedded ICC profile is applied (see `color`), PNG's gamma is not.
* A mask is one of the same formats. One channel becomes levels ``[h, w]``; 16-bit gray keeps its precision. Its ICC
  profile is ignored, because a mask's levels are numbers, not colors.
* 32-bit and floating-point files are rejected, because their range is not stated.
* EXIF orientation is applied to images and masks before anything is measured. EXIF data that cannot be read are
  ignored in every format.
* A file that ends early, or whose data do not fill the size in its header, is rejected and never filled with gray or
  black. AVIF is the exception: its decoder scales. Damaged data are rejected where the format allows the check: JPEG by
  its codes, PNG by its checksums.
* Gray TIFF of 12 bits is scaled to 16, and white is the highest level however the file stores it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from inpaint_encode.errors import PairRejected

from .color import to_srgb
from .memory import UNCOUNTED_PIXELS, DecodingMemory
from .pillow import TooLarge, open_image
from .strict import TooManyScans, check_scans, load_gif, load_png, load_tiff

MAX_PIXELS = 64_000_000
"""Default limit: a file whose header declares more pixels is rejected before a pixel is decoded."""

_SIMPLEJPEG_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""simplejpeg's names of Pillow's modes."""
_SIGNATURES = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WebP>RIFF....WEBP)|(?P<GIF>GIF8[79]a)|"
    rb"(?P<TIFF>II\*\0|MM\0\*|II\+\0|MM\0\+)|(?P<BMP>BM.{4}\0{4})|(?P<AVIF>....ftypavi[fs])",
    re.DOTALL,
)
_SWAPPING = {5, 6, 7, 8}
"""EXIF orientations that swap height and width."""
_ENDS_EARLY = re.compile("truncated|premature end of jpeg file", re.IGNORECASE)
_OUT_OF_MEMORY = re.compile(
    "out of memory|insufficient memory|memory allocation|(?:not enough|(?:cannot|can't) allocate) memory", re.IGNORECASE
)
_CHANNELS = ("red", "green", "blue")
_WIDE = {"I": "32-bit integers", "F": "floating-point numbers"}


class DecodedFile(NamedTuple):
    """A decoded image or mask file, its EXIF orientation applied."""

    levels: NDArray[Any]
    transposed: bool
    """Whether the orientation swapped height and width; never of a square TIFF, where it makes no difference."""


def decode_image(
    data: bytes, *, icc: str = "srgb", max_pixels: int = MAX_PIXELS, memory: DecodingMemory | None = None
) -> DecodedFile:
    """Decode an image file to uint8 RGB levels ``[H, W, 3]``.

    Args:
        data: the file.
        icc: ``srgb`` applies an embedded ICC profile, ``ignore`` does not.
        max_pixels: a file whose header declares more is rejected before a pixel is decoded.
        memory: is reserved for a large image; None reserves nothing.

    Raises:
        PairRejected: ``image.not_an_image``, ``image.too_large``, ``image.unsupported``, ``image.truncated`` or
            ``image.corrupt``.
        MemoryError: there is not enough memory.
    """
    with _opened(data, "image", max_pixels, memory) as image:
        stored = _load(image, data)
        if isinstance(stored, np.ndarray) and stored.dtype == np.uint16:
            stored = ((stored.astype(np.uint32) + 128) // 257).astype(np.uint8)
        profile = image.info.get("icc_profile") if icc == "srgb" else None
        if profile:
            stored = to_srgb(stored, profile)
        if isinstance(stored, Image.Image):
            stored = np.asarray(stored if stored.mode == "RGB" else stored.convert("RGB"))
        if stored.ndim == 2:
            stored = np.repeat(stored[..., None], 3, axis=2)
        return _apply_orientation(stored, image)


def decode_mask(
    data: bytes, channel: str = "auto", *, max_pixels: int = MAX_PIXELS, memory: DecodingMemory | None = None
) -> DecodedFile:
    """Decode a mask file to levels ``[h, w]``: uint8, or uint16 if the file is 16-bit gray.

    Args:
        data: the file.
        channel: channel to read the mask from: ``auto``, ``luma``, ``alpha``, ``red``, ``green`` or ``blue``.
        max_pixels: as in `decode_image`.
        memory: as in `decode_image`.

    Raises:
        PairRejected: the names of `decode_image` with ``mask`` in place of ``image``; ``mask.no_alpha`` if ``channel``
            is ``alpha`` and the file has none; ``mask.ambiguous`` if ``channel`` is ``auto`` and the file has
            transparent pixels.
        MemoryError: there is not enough memory.
    """
    with _opened(data, "mask", max_pixels, memory) as image:
        stored = _load(image, data)
        if channel in {"alpha", "auto"} and image.has_transparency_data:
            alpha = _alpha(image, stored, data)
            if channel == "alpha":
                return _apply_orientation(alpha, image)
            if (lowest := alpha.min()) < 255:
                message = (
                    f"it has transparent pixels (lowest alpha {lowest} of 255), so its alpha may be the mask; set "
                    "--mask-channel alpha or luma"
                )
                raise PairRejected("mask.ambiguous", message)
        elif channel == "alpha":
            raise PairRejected("mask.no_alpha", "it has no alpha channel; --mask-channel alpha needs one")
        if isinstance(stored, np.ndarray):
            if stored.ndim == 2:
                return _apply_orientation(stored, image)
            stored = Image.fromarray(stored)
        if stored.mode in {"P", "PA", "RGBA", "RGBa", "LA", "La"}:
            stored = stored.convert("RGB")  # drops alpha before a channel is read
        if channel in _CHANNELS and stored.mode not in {"1", "L"}:
            rgb = stored if stored.mode == "RGB" else stored.convert("RGB")
            return _apply_orientation(np.asarray(rgb.getchannel(_CHANNELS.index(channel))), image)
        return _apply_orientation(np.asarray(stored if stored.mode == "L" else stored.convert("L")), image)


def upright_size(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Return the height and width that `decode_image` would give, from the header alone.

    The first bytes of the file are enough if they contain the header. The orientation of a PNG that stores it after
    its pixels, which the format allows, is not seen.

    Raises:
        PairRejected: the names of `decode_image`.
    """
    with _opened(data, "image", max_pixels) as image:
        width, height = image.size
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # newer Pillows have already swapped its size
            width, height = (
                int(image.tag_v2[tag]) for tag in (TiffImagePlugin.IMAGEWIDTH, TiffImagePlugin.IMAGELENGTH)
            )
        try:
            exif = Image.Image.getexif(image)  # PngImageFile.getexif would decode the pixels
            swapped = exif.get(ExifTags.Base.Orientation, 1) in _SWAPPING
        except Exception:  # Pillow raises almost any type on damaged EXIF data
            swapped = False
        return (width, height) if swapped else (height, width)


@contextmanager
def _opened(
    data: bytes, role: Literal["image", "mask"], max_pixels: int, memory: DecodingMemory | None = None
) -> Iterator[Image.Image]:
    """Open a file, check its header and reserve memory; translate errors in the block to rejections ``role.what``."""
    try:
        image = open_image(data, max_pixels)
    except TooLarge as error:
        raise PairRejected(f"{role}.too_large", str(error)) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise almost any type on damaged headers
        raise _unreadable(data, role) from error
    with image:
        about = f"{image.format} of {image.width} x {image.height} pixels in {len(data):,} bytes"
        try:
            is_png16 = (image.mode, image.format) == ("I", "PNG")  # Pillow before 11.3 opens it in this mode
            if image.mode in _WIDE and not is_png16:
                what = f"its pixels are {_WIDE[image.mode]}, whose range is unknown"
                raise PairRejected(f"{role}.unsupported", f"{what}; save it with 8 or 16 bits")
            if memory and image.width * image.height > UNCOUNTED_PIXELS:
                memory.reserve(image.width * image.height)
            yield image
        except PairRejected as rejection:
            raise PairRejected(rejection.error, f"{about}: {rejection.message}") from None
        except TooManyScans as error:
            raise PairRejected(f"{role}.unsupported", f"{about}: {error}") from None
        except MemoryError:
            raise
        except Exception as error:  # damaged pixel data may raise any type, too
            if _OUT_OF_MEMORY.search(str(error)):
                raise MemoryError(str(error)) from error
            what = "truncated" if _ENDS_EARLY.search(str(error)) else "corrupt"
            raise PairRejected(f"{role}.{what}", f"{about}: {error}") from error


def _unreadable(data: bytes, role: str) -> PairRejected:
    """Tell a file of another kind from one with a damaged or incomplete header."""
    signature = _SIGNATURES.match(data)
    if not signature:
        about = f"{len(data):,} bytes that begin with {data[:12]!r}" if data else "the file is empty"
        return PairRejected(f"{role}.not_an_image", about)
    declared = int.from_bytes(data[4:8], "little") + 8
    if signature.lastgroup == "WebP" and declared > len(data):
        return PairRejected(
            f"{role}.truncated", f"the WebP header states {declared:,} bytes, but the file has {len(data):,}"
        )
    message = f"{signature.lastgroup} in {len(data):,} bytes: its header is damaged or ends early"
    return PairRejected(f"{role}.corrupt", message)


def _load(image: Image.Image, data: bytes) -> Image.Image | NDArray[Any]:
    """Load the pixels of an opened file as they are stored, before color conversion and orientation.

    Returns:
        Levels of gray and RGB JPEG (uint8) and of 16-bit gray (uint16); all else as a Pillow image in its own mode.
    """
    if image.format in {"JPEG", "MPO"}:
        check_scans(image, data)
    if image.format in {"JPEG", "MPO"} and image.mode in _SIMPLEJPEG_SPACES:
        # libjpeg-turbo: the same levels as Pillow's in half the time, and an error where Pillow fills a damaged scan
        levels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, _SIMPLEJPEG_SPACES[image.mode])
        if image.mode == "CMYK":
            return Image.fromarray(255 - levels, "CMYK")  # JPEG stores CMYK inverted, as Adobe does
        return levels[..., 0] if image.mode == "L" else levels
    if image.format == "TIFF":
        return load_tiff(image)
    if image.format == "PNG":
        load_png(image, data)
        return np.asarray(image).astype(np.uint16) if image.mode.startswith("I") else image
    if image.format == "GIF":
        load_gif(image, data)
    else:
        image.load()
    return image


def _alpha(image: Image.Image, stored: Image.Image | NDArray[Any], data: bytes) -> NDArray[np.uint8]:
    """Return the alpha levels ``[h, w]`` of a file with transparency; ``stored`` is what `_load` returned."""
    depth, transparent = data[24] if image.format == "PNG" else 8, image.info.get("transparency", 0)
    if image.mode == "L" or isinstance(stored, np.ndarray):
        # one gray level is transparent, given at the file's bit depth; Pillow scales the levels to 8 bits
        level = transparent * 255 // (2**depth - 1) if depth < 8 else transparent
        return np.where(np.asarray(stored) == level, np.uint8(0), np.uint8(255))
    if image.mode == "RGB" and depth == 16:
        message = "a 16-bit color is marked as transparent (tRNS), which is not supported; save it with 8 bits"
        raise PairRejected("mask.unsupported", message)
    return np.asarray((image if image.mode == "RGBA" else image.convert("RGBA")).getchannel("A"))


def _apply_orientation(levels: NDArray[Any], image: Image.Image) -> DecodedFile:
    """Apply the EXIF orientation, 1 to 8, of a loaded file to its levels ``[H, W]`` or ``[H, W, 3]``."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises almost any type on damaged EXIF data
        orientation = 1
    transposed = orientation in _SWAPPING
    if transposed:
        levels = levels.swapaxes(0, 1)
    if orientation in {3, 4, 7, 8}:
        levels = levels[::-1]
    if orientation in {2, 3, 6, 7}:
        levels = levels[:, ::-1]
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # Pillow has applied it while loading, and then says 1
        transposed = levels.shape[0] != image.tag_v2[TiffImagePlugin.IMAGELENGTH]
    return DecodedFile(levels, transposed)
