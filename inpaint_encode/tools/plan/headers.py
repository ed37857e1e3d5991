"""Sizes of a sample of images, from their first bytes: nothing is decoded."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from inpaint_encode.core.decode import PairDecoder, upright_size
from inpaint_encode.errors import JobFailed, PairRejected
from inpaint_encode.sources import PairReader
from inpaint_encode.stores import storage

__all__ = ["START", "Header", "draw", "read_header", "read_headers"]

START = 2**16
"""Bytes that are read of an image; the rest follows only where its header is not whole in them."""


_MAYBE_CUT = {"decode.not_an_image", "decode.truncated", "decode.corrupt"}
"""What a header may be called of which a part is missing."""


class Header(NamedTuple):
    """What the start of one image says."""

    size: tuple[int, int] | None
    """Height and width after the crop, EXIF orientation applied; None if the image will be rejected."""
    error: str
    """The name of the error that it will be rejected by, or empty."""
    bytes_read: int


def draw(population: int, count: int, seed: int) -> list[int]:
    """Draw ``count`` positions out of ``population``, or all there are, each as likely as any other; ascending."""
    return sorted(random.Random(seed).sample(range(population), min(count, population)))  # noqa: S311 - not a secret


def read_headers(
    pairs: Sequence[Mapping[str, Any]], reader: PairReader, decoder: PairDecoder, threads: int
) -> list[Header]:
    """Read the headers of the images of all ``pairs``; see `read_header`."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda pair: read_header(pair, reader, decoder), pairs))


def read_header(pair: Mapping[str, Any], reader: PairReader, decoder: PairDecoder) -> Header:
    """Read the header of the image of one of `schema.PAIRS`, and bring its size to what ``decoder`` makes of it.

    Raises:
        JobFailed: the store does not let it be read.
    """
    read = 0
    try:
        storage.refuse_more(pair.get("image_bytes") or 0, reader.max_bytes)
        start = reader.read_start(pair, START)
        read = len(start)
        try:
            size = upright_size(start, decoder.max_pixels)
        except PairRejected as rejection:
            if rejection.error not in _MAYBE_CUT or read < START:
                return Header(None, rejection.error, read)
            whole = reader.image(pair).data
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
