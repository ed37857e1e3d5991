"""Sizes of images from their headers, without decoding a pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from inpaint_encode.core.decode import PairDecoder, upright_size
from inpaint_encode.errors import JobFailed, PairRejected
from inpaint_encode.sources import PairReader
from inpaint_encode.stores import storage

__all__ = ["START", "Header", "read_header"]

START = 2**16
"""Bytes to read of an image; the whole file is read only if its header is longer."""

_MAYBE_INCOMPLETE = {"image.not_an_image", "image.truncated", "image.corrupt"}
"""Errors that an incomplete header may cause."""


class Header(NamedTuple):
    """Result of reading one image's header."""

    size: tuple[int, int] | None
    """Height and width after the crop, EXIF orientation applied; None if the image will be rejected."""
    error: str
    """Name of the error that the image will be rejected with, or empty."""
    bytes_read: int


def read_header(pair: Mapping[str, Any], reader: PairReader, decoder: PairDecoder) -> Header:
    """Read the header of a pair's image, and compute the image's size after resizing and cropping.

    Args:
        pair: a row of `schema.PAIRS`.
        reader: its ``max_bytes`` limits the file's size.
        decoder: computes the size as in the job.

    Raises:
        JobFailed: the store denies or fails the read.
    """
    read = 0
    try:
        storage.check_size(pair.get("image_bytes") or 0, reader.max_bytes)
        start = reader.read_start(pair, START)
        read = len(start)
        try:
            size = upright_size(start, decoder.max_pixels)
        except PairRejected as rejection:
            if rejection.error not in _MAYBE_INCOMPLETE or read < START:
                return Header(None, rejection.error, read)
            whole = reader.read(pair["image_uri"], pair.get("image_version") or "").data
            read += len(whole)
            size = upright_size(whole, decoder.max_pixels)
        crop = decoder.fit(*size).crop
    except FileNotFoundError:
        return Header(None, "fetch.not_found", 0)
    except storage.TooLarge:
        return Header(None, "fetch.too_large", read)
    except PairRejected as rejection:
        return Header(None, rejection.error, read)
    except OSError as error:
        raise JobFailed(
            f"{pair['image_uri']} cannot be read: {error.strerror or error}; check the credentials"
        ) from error
    return Header((crop.height, crop.width), "", read)
