"""Load PNG, TIFF and GIF files strictly: damage that Pillow fills with black or gray is an error here.

`check_scans` limits the scans of a JPEG.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import GifImagePlugin, Image, JpegImagePlugin, TiffImagePlugin

from .pillow import open_image

_MARKS: dict[str, int | tuple[int, ...]] = {
    "LA": (1, 2),
    "RGB": (1, 2, 3),
    "RGBA": (1, 2, 3, 4),
    "P": 255,
    "I;16": 258,
    "I": 258,
}
"""For each of Pillow's modes, a color that rarely fills the end of an image's last row; 1 for other modes."""
_MARK_WIDTH = 4096
"""Pixels at the end of the last row that get the mark."""
_ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
"""For each pass of an interlaced PNG: first row, first column, and the steps to the next row and column."""

MAX_SCANS = 100
"""Largest number of scans of a JPEG, as in libtiff. Encoders write up to 14; a progressive JPEG in the finest steps
that the format allows has fewer than 100."""
_START_OF_SCAN = b"\xff\xda"
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
"""A JPEG marker with a segment, or of an end; not a stuffed zero, a restart or a fill byte."""


class TooManyScans(ValueError):
    """The JPEG has more than `MAX_SCANS` scans."""


def check_scans(image: Image.Image, data: bytes) -> None:
    """Check the number of scans of a JPEG. Each passes over all pixels, and 104 kB can hold 300 scans of a large image.

    Args:
        image: the opened file; its header is read up to the first scan.
        data: the file.

    Raises:
        TooManyScans: there are more than `MAX_SCANS`.
    """
    assert isinstance(image, JpegImagePlugin.JpegImageFile) and image.fp is not None
    first = image.fp.tell() - 8 - 2 * len(image.getbands())
    if data[first : first + 2] == _START_OF_SCAN and "progressive" not in image.info:
        return  # libjpeg reads one scan if it has all components
    pairs = (np.frombuffer(data, "<u2", (len(data) - start) // 2, start) for start in (0, 1))
    if sum(np.count_nonzero(pair == int.from_bytes(_START_OF_SCAN, "little")) for pair in pairs) <= MAX_SCANS:
        return
    # Thumbnails, profiles and a film behind the image can contain the same two bytes: count the image's own.
    at, scans = 2, 0
    while (found := _MARKER.search(data, at)) and found[0] != b"\xff\xd9":
        at = found.end() + max(2, int.from_bytes(data[found.end() : found.end() + 2]))
        scans += found[0] == _START_OF_SCAN
        if scans > MAX_SCANS:
            raise TooManyScans(f"it has more than {MAX_SCANS} scans; save it with fewer")


def load_png(image: Image.Image, data: bytes) -> None:
    """Load a PNG; check the chunks' checksums and that the data fill the image, which Pillow does not.

    Of 400 masks with one flipped bit, Pillow alone accepts 58.

    Args:
        image: the opened file.
        data: the file.

    Raises:
        ValueError: a checksum is wrong, the file ends before its last chunk, or the data are too short.
    """
    view, at, kind = memoryview(data), 8, b""
    packed: list[memoryview] = []  # the consecutive IDAT chunks that hold the pixels
    while kind != b"IEND":
        before, length, kind = kind, int.from_bytes(view[at : at + 4]), bytes(view[at + 4 : at + 8])
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError(f"truncated: it ends inside the chunk that starts at byte {at:,}")
        if kind[:1].isupper() and zlib.crc32(view[at + 4 : end]) != int.from_bytes(view[end : end + 4]):
            raise ValueError(f"the checksum of the {kind.decode('ascii', 'replace')} chunk at byte {at:,} is wrong")
        if kind == b"IDAT" and (before == kind or not packed):
            packed.append(view[at + 8 : end])
        at = end + 4

    # Inflating the data only to count them would cost a third of all decoding. Instead, mark the end of the last row
    # and load the image over it. If the mark is gone, the data reach the end.
    width, height = image.size
    end_of_last_row = (max(0, width - _MARK_WIDTH), height - 1, width, height)
    canvas = Image.new(image.mode, image.size)
    canvas.paste(_MARKS.get(image.mode, 1), end_of_last_row)
    mark = canvas.crop(end_of_last_row).tobytes()
    image.im = canvas.im
    image.load()
    in_order = image.im is canvas.im and not image.info.get("interlace")
    if not in_order or image.crop(end_of_last_row).tobytes() == mark:
        _check_png_length(data, packed)


def _check_png_length(data: bytes, packed: list[memoryview]) -> None:
    """Inflate the data and compare their length with the size in the header.

    Raises:
        ValueError: there are too few bytes.
    """
    width, height, depth, color_type, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * {2: 3, 4: 2, 6: 4}.get(color_type, 1)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    sizes = [(-(-(height - top) // down), -(-(width - left) // right)) for top, left, down, right in passes]
    # every row has one byte more for its filter
    expected = sum(rows * (1 + -(-columns * bits // 8)) for rows, columns in sizes if rows > 0 and columns > 0)
    inflater, inflated = zlib.decompressobj(), 0
    for part in packed:
        rest: bytes | memoryview = part
        while rest and inflated < expected and not inflater.eof:
            inflated += len(inflater.decompress(rest, 2**18))
            rest = inflater.unconsumed_tail
    if inflated < expected:
        raise ValueError(f"truncated: it has {inflated:,} of {expected:,} bytes of pixel data")


def load_tiff(image: Image.Image) -> Image.Image | NDArray[np.uint16]:
    """Load a TIFF; check that its strips or tiles cover the image, which Pillow does not.

    Files that libtiff decodes are checked by libtiff.

    Returns:
        The loaded image; 16-bit and 12-bit gray as uint16 levels ``[H, W]`` in 0..65535, white the highest.

    Raises:
        ValueError: there are too few pixels.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile)
    tags = image.tag_v2
    width, height = int(tags[TiffImagePlugin.IMAGEWIDTH]), int(tags[TiffImagePlugin.IMAGELENGTH])
    planes = len(image.getbands()) if tags.get(TiffImagePlugin.PLANAR_CONFIGURATION) == 2 else 1
    boxes = [box for _, box, *_ in image.tile if box]
    pixels = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    if pixels < planes * width * height:
        raise ValueError(f"truncated: its strips or tiles have only {pixels:,} pixels")
    image.im = Image.new(image.mode, (width, height), None).im  # else Pillow applies its process-wide limit
    image.load()
    if not image.mode.startswith("I"):
        return image
    levels = np.asarray(image).astype(np.uint16)
    if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,):
        levels = ((levels.astype(np.uint32) * 65535 + 2047) // 4095).astype(np.uint16)
    return 65535 - levels if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else levels


def load_gif(image: Image.Image, data: bytes) -> None:
    """Load a GIF's first frame; check that the data fill the frame, which Pillow does not.

    The frame is decoded onto two canvases of different levels. A pixel that shows both levels has no data.

    Raises:
        ValueError: the data do not fill the frame.
    """
    unfilled = _gif_on_canvas(image, data, 85) == 85
    if unfilled.any() and (unfilled & (_gif_on_canvas(image, data, 170) == 170)).any():
        raise ValueError("truncated: its data do not fill its frame")
    image.load()


def _gif_on_canvas(image: Image.Image, data: bytes, level: int) -> NDArray[Any]:
    """Open the file again and decode the first frame onto a canvas of one level; return the frame's levels."""
    with open_image(data, image.width * image.height) as copy:
        assert isinstance(copy, GifImagePlugin.GifImageFile)
        extents = copy.tile[0][1]
        assert extents is not None
        left, top, right, bottom = extents
        copy._frame_transparency = None  # else Pillow fills the canvas with the transparent level
        copy.im = Image.new(copy.mode, copy.size, level).im
        copy.load()
        return np.asarray(copy)[top:bottom, left:right]
