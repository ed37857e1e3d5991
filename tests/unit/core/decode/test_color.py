"""ICC profiles, against colors computed here."""

import numpy as np
import pytest
from PIL import Image, ImageCms

from inpaint_encode.core.decode import decode_image as image_of
from tests.files import (
    grey_profile,
    matrix_profile,
)

from .samples import ADOBE_RGB, LEVELS, SRGB, decode_image, decode_mask, encoded, srgb_curve, turned_by


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_colors_are_converted_to_srgb(kind, options):
    colours = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    data = encoded(Image.fromarray(colours), kind, icc_profile=matrix_profile(ADOBE_RGB, 563 / 256), **options)
    light = np.clip((colours / 255.0) ** (563 / 256) @ ADOBE_RGB.T @ np.linalg.inv(SRGB).T, 0, 1)
    found = decode_image(data)
    assert np.abs(found - 255 * srgb_curve(light)).max() <= 1.5
    assert np.abs(found - colours.astype(int)).max() > 100
    assert np.array_equal(image_of(data, icc="ignore").levels, colours)


def test_profile_of_palettes_and_rotated_images():
    profile = matrix_profile(ADOBE_RGB, 563 / 256)
    colours = np.full((8, 16, 3), (0, 200, 0), np.uint8)
    light = np.clip((colours[0, 0] / 255) ** (563 / 256) @ ADOBE_RGB.T @ np.linalg.inv(SRGB).T, 0, 1)
    options = {"icc_profile": profile, "exif": turned_by(6)}
    for image, kind in ((Image.fromarray(colours), "JPEG"), (Image.fromarray(colours).quantize(4), "PNG")):
        found = decode_image(encoded(image, kind, **options))
        assert found.shape == (16, 8, 3)
        assert np.abs(found - 255 * srgb_curve(light)).max() <= 4


@pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
def test_grey_with_a_grey_or_rgb_profile(mode):
    levels = LEVELS.astype(np.uint16) * 257 if mode == "I;16" else LEVELS
    wanted = 255 * srgb_curve((LEVELS / 255) ** 1.8)
    for profile in (grey_profile(1.8), matrix_profile(SRGB, 1.8)):
        image = Image.fromarray(levels)
        data = encoded(image.convert("LA") if mode == "LA" else image, icc_profile=profile)
        assert np.abs(decode_image(data) - wanted[..., None]).max() <= 1.5


@pytest.mark.parametrize(
    "profile",
    [
        b"no profile",
        matrix_profile(ADOBE_RGB, 2.2)[:300],
        grey_profile(1.0),
        matrix_profile(ADOBE_RGB, 2.2).replace(b"RGB ", b"CMYK"),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
    ],
    ids=["garbage", "cut", "of grey", "of inks", "sRGB itself", "of no device"],
)
def test_ignored_profiles_leave_the_levels(profile):
    colours = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    assert np.array_equal(decode_image(encoded(Image.fromarray(colours), icc_profile=profile)), colours)


def test_profile_of_a_mask_is_ignored():
    data = encoded(Image.fromarray(LEVELS), icc_profile=grey_profile(1.0))
    assert np.array_equal(decode_mask(data), LEVELS)
