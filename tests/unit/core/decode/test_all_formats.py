"""Every kind of image file with every kind of mask file, against levels that are known before a file is made."""

import io
from itertools import product

import numpy as np
import pytest
from PIL import Image
from skimage import data as photographs

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import PairRejected
from tests.files import COLOUR, COLOUR_ALPHA, GREY, GREY_ALPHA, PALETTE, png, saved, tiff

RNG = np.random.default_rng(20)
HEIGHT, WIDTH = 43, 54
CROPPED = (slice(1, 41), slice(3, 51))
"""What the contract leaves of that for a multiple of 8."""

PHOTO = np.ascontiguousarray(photographs.astronaut()[70 : 70 + HEIGHT, 190 : 190 + WIDTH])
GREY_PHOTO = np.ascontiguousarray(photographs.camera()[100 : 100 + HEIGHT, 200 : 200 + WIDTH])
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
COLOURS = RNG.integers(0, 256, (256, 3), np.uint8)
"""A palette."""
WIDE = GREY_PHOTO.astype(np.uint16) * 257 + 31
FLAT = np.kron(RNG.integers(30, 226, (6, 7, 3), np.uint8), np.ones((8, 8, 1), np.uint8))[:HEIGHT, :WIDTH]
"""Of one color in each of JPEG's blocks, so that it loses no more than rounding."""


def repeated(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


def of_depth(depth: int) -> np.ndarray:
    return GREY_PHOTO >> (8 - depth)


def cmyk() -> tuple[bytes, np.ndarray]:
    """Inks, and the light that they leave: each of cyan, magenta and yellow, and black of the rest."""
    inks = np.concatenate([FLAT, np.full((HEIGHT, WIDTH, 1), 40, np.uint8)], axis=-1)
    out = io.BytesIO()
    Image.fromarray(inks, "CMYK").save(out, "JPEG", quality=100)
    return out.getvalue(), np.round((255.0 - FLAT) * (255 - 40) / 255)


def images() -> dict[str, tuple[bytes, np.ndarray, int]]:
    """File, RGB levels, and how far decoded levels may be off: a lossy format's rounding, or nothing."""
    alpha = np.dstack([PHOTO, ALPHA])
    indexed = np.dstack([GREY_PHOTO, ALPHA])
    exact = {
        f"png, {depth} bit grey": (png(of_depth(depth), GREY, depth), repeated(_scaled(depth)))
        for depth in (1, 2, 4, 8)
    }
    exact |= {
        f"png, palette of {depth} bits": (
            png(of_depth(depth), PALETTE, depth, PLTE=COLOURS[: 2**depth]),
            COLOURS[of_depth(depth)],
        )
        for depth in (1, 2, 4, 8)
    }
    transparent = COLOURS[:, 0]
    exact |= {
        "png, 16 bit grey": (png(WIDE, GREY, 16), repeated(np.round(WIDE / 257))),
        "png, colour": (png(PHOTO, COLOUR), PHOTO),
        "png, 16 bit colour": (png(PHOTO.astype(np.uint16) * 256 + 200, COLOUR, 16), PHOTO),
        "png, grey and alpha": (png(indexed, GREY_ALPHA), repeated(GREY_PHOTO)),
        "png, colour and alpha": (png(alpha, COLOUR_ALPHA), PHOTO),
        "png, palette and alpha": (png(GREY_PHOTO, PALETTE, PLTE=COLOURS, tRNS=transparent), COLOURS[GREY_PHOTO]),
        "webp, lossless": (saved(PHOTO, "WEBP", lossless=True), PHOTO),
        "webp, lossless, alpha": (saved(alpha, "WEBP", lossless=True, exact=True), PHOTO),
        "tiff": (tiff(PHOTO), PHOTO),
        "tiff, big-endian": (tiff(PHOTO, byteorder=">"), PHOTO),
        "tiff, lzw": (saved(PHOTO, "TIFF", compression="tiff_lzw"), PHOTO),
        "tiff, deflate": (saved(PHOTO, "TIFF", compression="tiff_adobe_deflate"), PHOTO),
        "tiff, grey": (tiff(GREY_PHOTO), repeated(GREY_PHOTO)),
        "tiff, 1 bit": (saved(GREY_PHOTO > 99, "TIFF"), repeated((GREY_PHOTO > 99) * 255)),
        "tiff, 16 bit grey": (tiff(WIDE), repeated(np.round(WIDE / 257))),
        "tiff, 16 bit colour": (tiff(PHOTO.astype(np.uint16) * 256 + 200), PHOTO),
        "tiff, alpha": (tiff(alpha, photometric="rgb", extrasamples=["unassalpha"]), PHOTO),
        "tiff, tiles": (tiff(PHOTO, tile=(16, 16)), PHOTO),
        "tiff, pages": (tiff(np.stack([PHOTO, 255 - PHOTO])), PHOTO),
        "bmp": (saved(PHOTO, "BMP"), PHOTO),
        "bmp, grey": (saved(GREY_PHOTO, "BMP"), repeated(GREY_PHOTO)),
        "bmp, 1 bit": (saved(GREY_PHOTO > 99, "BMP"), repeated((GREY_PHOTO > 99) * 255)),
        "gif": (saved(GREY_PHOTO, "GIF"), repeated(GREY_PHOTO)),
        "gif, frames": (gif_of_frames(GREY_PHOTO, 255 - GREY_PHOTO), repeated(GREY_PHOTO)),
    }
    lossy = {
        "jpeg": (saved(FLAT, "JPEG", quality=100, subsampling="4:4:4"), FLAT, 2),
        "jpeg, progressive": (saved(FLAT, "JPEG", quality=100, subsampling="4:4:4", progressive=True), FLAT, 2),
        "jpeg, grey": (saved(FLAT[..., 0], "JPEG", quality=100), repeated(FLAT[..., 0]), 1),
        "jpeg, cmyk": (*cmyk(), 3),
        "webp": (saved(repeated(FLAT[..., 0]), "WEBP", quality=100), repeated(FLAT[..., 0]), 3),
        "avif": (saved(FLAT, "AVIF", quality=100, subsampling="4:4:4"), FLAT, 3),
    }
    return {name: (*made, 0) for name, made in exact.items()} | lossy


def _scaled(depth: int) -> np.ndarray:
    return of_depth(depth).astype(int) * 255 // (2**depth - 1)


def gif_of_frames(*frames: np.ndarray) -> bytes:
    first, *others = (Image.fromarray(frame) for frame in frames)
    out = io.BytesIO()
    first.save(out, "GIF", save_all=True, append_images=others)
    return out.getvalue()


SOFT = RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8)
"""A mask's levels; every one of the 256 is among them."""
BLOCKS = np.kron(RNG.integers(0, 2, (6, 7), np.uint8) * 255, np.ones((8, 8), np.uint8))[:HEIGHT, :WIDTH]
HUES = np.dstack([SOFT, SOFT.T.copy().reshape(HEIGHT, WIDTH), 255 - SOFT])
LUMA = (HUES @ np.array([19595, 38470, 7471]) + 32768) >> 16
"""BT.601 in whole numbers."""
OPAQUE = np.full_like(SOFT, 255)
DEEP = SOFT.astype(np.uint16) * 256 + 128


def masks() -> dict[str, tuple[bytes, dict[str, str], np.ndarray]]:
    """File, options, and where it repaints."""
    given = {
        "1 bit": (png(SOFT >> 7, GREY, 1), {}, SOFT > 127),
        "2 bit": (png(SOFT >> 6, GREY, 2), {}, (SOFT >> 6) * 85 > 127),
        "8 bit": (png(SOFT, GREY), {}, SOFT >= 128),
        "8 bit, black": (png(SOFT, GREY), {"mask_polarity": "black"}, SOFT <= 127),
        "16 bit": (png(DEEP, GREY, 16), {}, DEEP >= 32768),
        "16 bit, black": (png(DEEP, GREY, 16), {"mask_polarity": "black"}, DEEP <= 32767),
        "16 bit tiff": (tiff(DEEP), {}, DEEP >= 32768),
        "palette": (png(SOFT, PALETTE, PLTE=HUES.reshape(-1, 3)[:256]), {}, LUMA.reshape(-1)[:256][SOFT] > 127),
        "colour": (png(HUES, COLOUR), {}, LUMA > 127),
        "luma, black": (png(HUES, COLOUR), {"mask_polarity": "black"}, LUMA <= 127),
        "grey, opaque": (png(np.dstack([SOFT, OPAQUE]), GREY_ALPHA), {}, SOFT > 127),
        "colour, opaque": (png(np.dstack([HUES, OPAQUE]), COLOUR_ALPHA), {}, LUMA > 127),
        "grey and alpha, luma": (png(np.dstack([SOFT, ALPHA]), GREY_ALPHA), {"mask_channel": "luma"}, SOFT > 127),
        "grey and alpha, alpha": (png(np.dstack([SOFT, ALPHA]), GREY_ALPHA), {"mask_channel": "alpha"}, ALPHA <= 127),
        "grey, red": (png(SOFT, GREY), {"mask_channel": "red"}, SOFT > 127),
        "jpeg": (saved(BLOCKS, "JPEG", quality=90), {}, BLOCKS > 0),
        "jpeg, colour": (saved(repeated(BLOCKS), "JPEG", quality=90), {}, BLOCKS > 0),
        "jpeg, colour, green": (saved(repeated(BLOCKS), "JPEG", quality=90), {"mask_channel": "green"}, BLOCKS > 0),
        "webp": (saved(repeated(BLOCKS), "WEBP", lossless=True), {}, BLOCKS > 0),
        "gif": (saved(SOFT, "GIF"), {}, SOFT > 127),
        "bmp": (saved(SOFT > 127, "BMP"), {}, SOFT > 127),
        "avif": (saved(repeated(BLOCKS), "AVIF", quality=90), {}, BLOCKS > 0),
    }
    hues = png(np.dstack([HUES, ALPHA]), COLOUR_ALPHA)
    for index, channel in enumerate(("red", "green", "blue")):
        given[channel] = (hues, {"mask_channel": channel}, HUES[..., index] > 127)
    given["alpha"] = (hues, {"mask_channel": "alpha"}, ALPHA <= 127)
    given["opaque"] = (hues, {"mask_channel": "alpha", "mask_polarity": "opaque"}, ALPHA >= 128)
    seen = png(SOFT, PALETTE, PLTE=COLOURS, tRNS=COLOURS[:, 1])
    given["palette, alpha"] = (seen, {"mask_channel": "alpha"}, COLOURS[:, 1][SOFT] <= 127)
    return given


IMAGES, MASKS = images(), masks()


@pytest.mark.parametrize("image", IMAGES)
def test_every_image_with_every_mask(image):
    data, wanted, off = IMAGES[image]
    for mask, (mask_data, options, repainted) in MASKS.items():
        decoder = decoder_of(options)
        found = decoder.image(data)
        assert (found.source_height, found.source_width, found.geometry.crop[:2]) == (HEIGHT, WIDTH, (1, 3))
        assert found.pixels.dtype == np.uint8
        assert np.abs(found.pixels - wanted[CROPPED].astype(int)).max() <= off
        assert np.array_equal(decoder.mask(mask_data, found), repainted[CROPPED]), mask


def decoder_of(options: dict[str, str]) -> PairDecoder:
    transparent = {"mask_polarity": "transparent"} if options.get("mask_channel") == "alpha" else {}
    return PairDecoder(sizing=Sizing(multiple=8), **(transparent | options))


@pytest.mark.parametrize(("quality", "kind"), product((75, 95), ("JPEG", "WEBP", "AVIF")))
def test_a_photograph_stays_itself_in_lossy_formats(quality, kind):
    photo = photographs.chelsea()[:240, :320]
    found = PairDecoder(sizing=Sizing(multiple=8)).image(saved(photo, kind, quality=quality)).pixels
    assert np.abs(found - photo.astype(int)).mean() < 6
    assert np.abs(found.mean(axis=(0, 1)) - photo.mean(axis=(0, 1))).max() < 1


@pytest.mark.parametrize("mask", ["red", "palette, alpha", "grey and alpha, luma"])
def test_auto_does_not_guess_between_alpha_and_luma(mask):
    image = decoder_of({}).image(IMAGES["png, colour"][0])
    with pytest.raises(
        PairRejected,
        match=r"PNG of 54 x 43 pixels in [\d,]+ bytes: it has transparent pixels \(lowest alpha [03] of 255\)",
    ):
        decoder_of({}).mask(MASKS[mask][0], image)
