"""Open image files with Pillow's plugins, without Pillow's process-wide limit `PIL.Image.MAX_IMAGE_PIXELS`.

``Image.open`` warns about or refuses images above that limit, which belongs to the host program. The functions here
apply a limit of their own instead: they call the plugins directly, as ``Image.open`` does, and skip its check.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Lock

from PIL import Image

_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
_CHECKING_FORMATS = {"GIF", "WEBP"}
"""Formats whose plugins compare sizes with ``MAX_IMAGE_PIXELS`` themselves while they open a file."""
_limit_lock = Lock()


class TooLarge(Exception):
    """The header declares more pixels than allowed."""


def open_image(data: bytes, max_pixels: int) -> Image.Image:
    """Open an image file by its first bytes; read its header, decode no pixel.

    Args:
        data: the file.
        max_pixels: the largest allowed product of width and height.

    Raises:
        TooLarge: the header declares more pixels; the message states the numbers.
        ValueError: the first bytes are of no supported format.
        Exception: the header is damaged. Pillow's plugins raise almost any type.
    """
    Image.init()
    for name in _FORMATS:
        factory, accepts = Image.OPEN.get(name, (None, None))
        if factory is None or accepts is None or accepts(data[:16]) is not True:
            continue
        try:
            with _raised_limit(max_pixels) if name in _CHECKING_FORMATS else nullcontext():
                image = factory(io.BytesIO(data), "")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise TooLarge(f"the header declares more pixels than --max-pixels {max_pixels:,} ({error})") from error
        if image.width * image.height > max_pixels:
            size = f"{image.width} x {image.height}"
            raise TooLarge(f"the header declares {size} pixels; --max-pixels allows {max_pixels:,}")
        return image
    raise ValueError(f"the first bytes are of none of {', '.join(_FORMATS)}")


@contextmanager
def _raised_limit(max_pixels: int) -> Iterator[None]:
    """Raise Pillow's limit to ``max_pixels`` for the block if it is lower, and restore it afterwards.

    With the default ``--max-pixels`` Pillow's limit is higher, and nothing changes. The lock ensures that no thread
    takes the raised limit for the host's own.
    """
    with _limit_lock:
        limit = Image.MAX_IMAGE_PIXELS
        if limit is None or limit >= max_pixels:
            yield
            return
        Image.MAX_IMAGE_PIXELS = max_pixels
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit
