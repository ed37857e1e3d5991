"""Damaged PNG, TIFF and GIF files that Pillow accepts."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from inpaint_encode.errors import PairRejected
from tests.files import (
    GREY,
    png,
    taller_png,
    tiff,
)

from .samples import NOISE, PNGS, caught_by, decode_image, decode_mask, encoded


@pytest.mark.parametrize("kind", PNGS)
@pytest.mark.parametrize("interlaced", [False, True])
def test_png_with_too_few_rows(kind, interlaced):
    whole = PNGS[kind](interlaced=interlaced)
    assert decode_image(whole).shape == NOISE.shape
    for height in (49, 50, 96, 97):
        data = taller_png(whole, height)
        wanted = {"truncated", "corrupt"} if interlaced else {"truncated"}  # rows of passes may not be rows any more
        assert caught_by(decode_image, data).error.removeprefix("image.") in wanted
        assert caught_by(decode_mask, data, "luma").error.removeprefix("mask.") in wanted


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("depth", "level"), [(1, 0), (1, 1), (2, 0), (4, 0), (8, 0), (8, 1), (16, 0), (16, 258)])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (9, 16)])
def test_png_of_one_level_is_complete(size, depth, level, interlaced):
    data = png(np.full(size, level, np.uint16), GREY, depth, interlaced=interlaced)
    assert np.array_equal(decode_mask(data), np.full(size, level * (255 if depth == 1 else 1)))
    assert caught_by(decode_mask, taller_png(data, size[0] + 1)).error == "mask.truncated"


def test_every_flipped_bit_of_a_png_is_found():
    shape = np.hypot(*np.mgrid[-40:40, -40:40]) < 25
    data = png(shape * 255, GREY, 8)
    for at, bit in enumerate(np.random.default_rng(0).integers(0, 8, len(data))):
        damaged = bytearray(data)
        damaged[at] ^= 1 << bit
        assert caught_by(decode_mask, bytes(damaged)).error.startswith("mask.")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rowsperstrip": 8},
        {"tile": (32, 32)},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "tile": (32, 32)},
    ],
)
def test_tiff_with_too_few_strips_or_tiles(options):
    planes = np.ascontiguousarray(NOISE.transpose(2, 0, 1)) if "planarconfig" in options else NOISE
    whole = tiff(planes, photometric="rgb", **options)
    height = struct.pack("<HHII", 257, 4, 1, 48)
    assert np.array_equal(decode_image(whole), NOISE) and whole.count(height) == 1
    data = whole.replace(height, struct.pack("<HHII", 257, 4, 1, 96))
    assert caught_by(decode_image, data).error == "image.truncated"
    assert caught_by(decode_mask, data).error == "mask.truncated"


@pytest.mark.parametrize("options", [{}, {"interlace": 0}, {"transparency": 85}, {"transparency": 0}])
def test_gif_with_too_few_rows(options):
    for levels in (NOISE[..., 0], np.full((48, 64), 85, np.uint8), np.zeros((48, 64), np.uint8)):
        whole = encoded(Image.fromarray(levels), "GIF", **options)
        assert np.array_equal(decode_mask(whole, "luma"), levels)
        for height in (49, 50, 96, 97):
            data = whole.replace(struct.pack("<HH", 64, 48), struct.pack("<HH", 64, height))
            assert caught_by(decode_image, data).error == "image.truncated"


def scans(count: int, side: int = 64) -> bytes:
    """Return a gray JPEG whose last scan comes ``count`` times more."""
    file = io.BytesIO()
    Image.new("L", (side, side), 90).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    return data[:-2] + data[data.rfind(b"\xff\xda") : -2] * count + b"\xff\xd9"


def test_a_jpeg_of_too_many_scans_is_rejected_before_it_is_decoded():
    with pytest.raises(PairRejected, match="it has more than 100 scans; save it with fewer") as rejected:
        decode_image(scans(100))
    assert rejected.value.error == "image.unsupported"


def test_scans_of_other_images_in_a_jpeg_do_not_count():
    """Of a thumbnail in a comment, and of a film behind the image."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG", progressive=True)
    data, many = file.getvalue(), b"\xff\xda" * 200
    comment = b"\xff\xfe" + (len(many) + 2).to_bytes(2) + many
    assert decode_image(data[:2] + comment + data[2:] + many).shape == (64, 64, 3)
