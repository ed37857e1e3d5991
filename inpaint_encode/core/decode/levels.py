"""The levels of an open file as it stores them, read strictly: damage is an error, and never becomes grey."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, TiffImagePlugin

__all__ = ["in_mode", "stored"]

_TURBO = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}
"""simplejpeg's names of Pillow's modes."""
_MARKS: dict[str, int | tuple[int, ...]] = {
    "LA": (1, 2),
    "RGB": (1, 2, 3),
    "RGBA": (1, 2, 3, 4),
    "P": 255,
    "I;16": 258,
    "I": 258,
}
"""By Pillow's modes a colour that few files have all along their last row."""
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
"""Of each pass of an interlaced PNG the first row and column, and the steps to the next."""


def stored(image: Image.Image, data: bytes) -> Image.Image | NDArray[Any]:
    """Load what ``data`` holds, opened as ``image``: grey or RGB JPEG and 16-bit grey as levels, all else in its mode.

    JPEG goes to libjpeg-turbo directly: the same levels as Pillow's in half of its time, and an error where Pillow
    fills the rest of a damaged scan with grey. PNG's checksums are held against its bytes, which Pillow leaves out:
    of masks with one flipped bit it took 58 of 400. What a file's data do not reach is an error, too: Pillow leaves it
    black.
    """
    if image.format in {"JPEG", "MPO"} and image.mode in _TURBO:
        levels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, _TURBO[image.mode])
        if image.mode == "CMYK":
            return Image.fromarray(255 - levels, "CMYK")  # stored as the light that is left, as Adobe began
        return levels[..., 0] if image.mode == "L" else levels
    if image.format == "TIFF":
        _check_tiff(image)
    if image.format == "GIF":
        _check_gif(data)
    if image.format == "PNG":
        packed = _check_png(data)
        if not _reaches_the_end(image):
            _check_length(data, packed)
    image.load()
    return _of_16_bits(image) if image.mode.startswith("I") else image


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """Convert, if there is anything to convert."""
    return image if image.mode == mode else image.convert(mode)


def _reaches_the_end(image: Image.Image) -> bool:
    """Load a PNG into memory whose last row is marked; whether its data surely wrote over that.

    To count them would cost a third of what decoding a photograph and its mask does.
    """
    last = (0, image.height - 1, *image.size)
    blank = Image.new(image.mode, image.size)
    blank.paste(_MARKS.get(image.mode, 1), last)
    mark = blank.crop(last).tobytes()
    image.im = blank.im
    image.load()
    in_order = image.im is blank.im and not image.info.get("interlace")
    return in_order and image.crop(last).tobytes() != mark


def _of_16_bits(image: Image.Image) -> NDArray[np.uint16]:
    """Grey of more than 8 bits, white the highest level; Pillow leaves a TIFF's 12 bits, and its white of 0."""
    levels = np.asarray(image).astype(np.uint16)
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        levels = ((levels.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    return 65535 - levels if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else levels


def _check_tiff(image: Image.Image) -> None:
    """Count the pixels of the strips or tiles of an open file; those of libtiff are its own affair.

    Raises:
        ValueError: there are too few for the size.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    planes = len(image.getbands()) if image.tag_v2.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 else 1
    boxes = [box for _, box, *_ in image.tile if box]
    there = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    if there < planes * image.width * image.height:
        raise ValueError(f"truncated: its strips or tiles have {there:,} pixels")


def _check_gif(data: bytes) -> None:
    """Decode the frame over two levels: a pixel that shows both has no data.

    Raises:
        ValueError: there is one.
    """
    unreached = _gif_over(data, 85) == 85
    if unreached.any() and (unreached & (_gif_over(data, 170) == 170)).any():
        raise ValueError("truncated: its data do not fill its frame")


def _gif_over(data: bytes, level: int) -> NDArray[np.uint8]:
    """Levels of the first frame, decoded into memory of one level."""
    with Image.open(io.BytesIO(data), formats=["GIF"]) as image:
        assert isinstance(image, GifImagePlugin.GifImageFile)
        frame = image.tile[0][1]
        image._frame_transparency = None  # Pillow would fill the memory with it
        image.im = Image.new(image.mode, image.size, level).im
        image.load()
        return np.asarray(image.crop(frame))


def _check_png(data: bytes) -> list[memoryview]:
    """Hold the checksum of every chunk that levels depend on against its bytes, and look for the end.

    Returns the compressed data: those of the first IDAT chunks, up to another chunk.

    Raises:
        ValueError: one differs, or the file ends before its last chunk.
    """
    view, at, kind = memoryview(data), 8, b""
    packed: list[memoryview] = []
    while kind != b"IEND":
        before, length, kind = kind, int.from_bytes(view[at : at + 4]), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"truncated: it ends in a chunk at byte {at:,}")
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"the checksum of the {kind.decode('ascii', 'replace')} chunk at byte {at:,} is wrong")
        if kind == b"IDAT" and (before == kind or not packed):
            packed.append(view[at + 8 : end])
        at = end + 4
    return packed


def _check_length(data: bytes, packed: list[memoryview]) -> None:
    """Hold the length of the inflated data against the header's size, which Pillow leaves out.

    Raises:
        ValueError: there are too few.
    """
    inflater, there, wanted = zlib.decompressobj(), 0, _inflated_length(data)
    for part in packed:
        rest: bytes | memoryview = part
        while rest and there < wanted and not inflater.eof:
            there += len(inflater.decompress(rest, 2**18))
            rest = inflater.unconsumed_tail
    if there < wanted:
        raise ValueError(f"truncated: its data are {there:,} of {wanted:,} bytes")


def _inflated_length(data: bytes) -> int:
    """Bytes of all rows of a PNG, with one more each for its filter, by its header."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(colour, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(height - top) // down), -(-(width - left) // right)) for top, left, down, right in passes]
    return sum(rows * (1 + -(-columns * bits // 8)) for rows, columns in sizes if rows > 0 and columns > 0)
