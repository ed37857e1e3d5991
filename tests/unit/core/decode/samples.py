"""Files and expected levels that the tests of decoding share."""

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image

from inpaint_encode.core.decode import decode_image as image_of
from inpaint_encode.core.decode import decode_mask as mask_of
from inpaint_encode.errors import PairRejected
from tests.files import (
    COLOUR,
    COLOUR_ALPHA,
    GREY,
    GREY_ALPHA,
    PALETTE,
    png,
)

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
WIDE = np.array([[0, 255, 256, 32767], [32768, 33000, 65279, 65535]], np.uint16)
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
SMOOTH = np.stack([*np.mgrid[:48, :64], sum(np.mgrid[:48, :64])], axis=-1).astype(np.uint8) * 2
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""XYZ under D50 of red, green and blue, in columns."""
KINDS = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF jpeg": {"compression": "jpeg"},
    "AVIF": {},
}
"""How Pillow is to write each kind."""


PNGS = {
    "grey": lambda **options: png(NOISE[..., 0], GREY, **options),
    "grey of 1 bit": lambda **options: png(NOISE[..., 0] >> 7, GREY, 1, **options),
    "grey of 16 bits": lambda **options: png(NOISE[..., 0].astype(np.uint16) << 8, GREY, 16, **options),
    "colour": lambda **options: png(NOISE, COLOUR, **options),
    "colour of 16 bits": lambda **options: png(NOISE.astype(np.uint16) << 8, COLOUR, 16, **options),
    "palette": lambda **options: png(NOISE[..., 0] >> 4, PALETTE, 4, PLTE=NOISE[0, :16], **options),
    "grey and alpha": lambda **options: png(NOISE[..., :2], GREY_ALPHA, **options),
    "colour and alpha": lambda **options: png(np.dstack([NOISE, NOISE[..., 0]]), COLOUR_ALPHA, **options),
}


def srgb_curve(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def decode_image(data: bytes) -> np.ndarray:
    return image_of(data).levels


def decode_mask(data: bytes, channel: str = "auto") -> np.ndarray:
    return mask_of(data, channel).levels


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """One strip of gray, two levels in three bytes; written here, since tifffile does not without a codec."""
    height, width = values.shape
    packed = np.packbits((values.reshape(height, -1, 1) >> np.arange(11, -1, -1) & 1).reshape(height, -1), axis=1)
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 118, 277: 1, 278: height, 279: packed.size}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + packed.tobytes()


def turned_by(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def caught_by(decode, *arguments) -> PairRejected:
    with pytest.raises(PairRejected) as caught:
        decode(*arguments)
    return caught.value
