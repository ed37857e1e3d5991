"""The pictures of a row: each shows what it says, where it is; the sheet puts them together."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from inpaint_encode.tools.inspect.pictures import WHITE_AT, LatentColours, RowPixels, pictures_of, psnr
from inpaint_encode.tools.inspect.sheet import contact_sheet, row_sheet

REPAINTED, RING, LEFT_OUT = (244, 243, 240), (240, 131, 48), (86, 92, 104)


def row_pixels(key: str = "a/pair", height: int = 32, width: int = 32) -> RowPixels:
    mask = np.zeros((height, width), np.uint8)
    mask[4:12, 4:12] = 1
    grown = np.zeros_like(mask)
    grown[2:15, 2:15] = 1
    image = np.full((height, width, 3), (10, 200, 30), np.uint8)
    samples = np.random.default_rng(0).normal(size=(4, height // 8, width // 8)).astype(np.float16)
    return RowPixels(key, image, mask, grown, samples)


def pictures(row: RowPixels) -> dict[str, Image.Image]:
    return pictures_of(row, LatentColours.fitted([row.samples]))


def colours_of(picture: Image.Image) -> Counter:
    return Counter(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


class TestPictures:
    def test_mask_growth_and_grey_are_where_they_are(self):
        made = pictures(row_pixels())
        assert list(made) == ["image", "mask", "grown mask", "greyed image", "latent"]
        assert colours_of(made["image"]) == {(10, 200, 30): 32 * 32}
        assert colours_of(made["mask"])[REPAINTED] == 8 * 8
        assert colours_of(made["grown mask"])[REPAINTED] == 8 * 8
        assert colours_of(made["grown mask"])[RING] == 13 * 13 - 8 * 8
        assert colours_of(made["greyed image"]) == {(128, 128, 128): 8 * 8, (10, 200, 30): 32 * 32 - 8 * 8}
        assert made["latent"].size == (4, 4)

    def test_without_its_source_the_stored_mask_and_the_latent_are_left(self):
        row = row_pixels()._replace(image=None, mask=None, decoded=np.zeros((32, 32, 3), np.uint8))
        made = pictures(row)
        assert list(made) == ["grown mask", "latent", "decoded"]
        assert colours_of(made["grown mask"])[REPAINTED] == 13 * 13
        assert psnr(row) is None

    def test_a_difference_is_drawn_outside_of_the_grown_mask_alone(self):
        row = row_pixels()
        decoded = row.image.copy()
        decoded[:15, :15] = 0  # where the mask is, and a pixel's frame around it
        decoded[20, 20] = np.array([10, 200, 30]) + WHITE_AT // 2
        difference = np.asarray(pictures(row._replace(decoded=decoded))["difference"]).astype(int)
        assert (difference[2:15, 2:15] == LEFT_OUT).all()
        assert (difference[25:, 25:] == difference[31, 31]).all() and difference[31, 31].sum() < 60
        assert 60 < difference[20, 20].sum() < difference[0, 0].sum() == 255 + 255 + 240

    def test_psnr_is_of_what_is_kept(self):
        row = row_pixels()
        decoded = row.image + np.uint8(5)
        decoded[2:15, 2:15] = 0
        assert psnr(row._replace(decoded=decoded)) == pytest.approx(20 * np.log10(255 / 5))
        assert psnr(row._replace(decoded=row.image)) == float("inf")
        assert psnr(row._replace(decoded=decoded, noise_mask=np.ones((32, 32)))) is None


class TestLatentColours:
    def test_brightness_is_the_direction_of_the_largest_variance(self):
        rng = np.random.default_rng(1)
        latent = rng.normal(size=(6, 40, 40)) * np.array([1, 1, 30, 1, 1, 1])[:, None, None] + 100
        bright = np.asarray(LatentColours.fitted([latent]).picture(latent).convert("L")).astype(float)
        assert np.corrcoef(bright.ravel(), latent[2].ravel())[0, 1] > 0.9

    def test_one_value_has_one_colour_in_every_picture(self):
        latents = np.random.default_rng(2).normal(size=(2, 4, 8, 8))
        latents[1, :, 0, 0] = latents[0, :, 5, 5]
        colours = LatentColours.fitted(latents)
        first, second = (colours.picture(latent) for latent in latents)
        assert first.getpixel((5, 5)) == second.getpixel((0, 0))

    @pytest.mark.parametrize("channels", [1, 2, 3, 128])
    def test_any_number_of_channels_is_drawn(self, channels):
        latent = np.random.default_rng(3).normal(size=(channels, 6, 5))
        picture = LatentColours.fitted([latent]).picture(latent)
        assert picture.size == (5, 6)
        assert len(colours_of(picture)) > 15

    def test_a_constant_latent_is_one_colour(self):
        latent = np.full((1, 4, 4), 7.0)
        assert len(colours_of(LatentColours.fitted([latent]).picture(latent))) == 1


class TestContactSheet:
    def test_it_shows_every_picture(self):
        sheet = contact_sheet([row_pixels()])
        bottom = sheet.height - 44  # the line's gap and the sheet's margin
        seen = colours_of(sheet.crop((0, bottom - 160, sheet.width, bottom)))
        area = (160 // 32) ** 2
        assert seen[RING] == (13 * 13 - 8 * 8) * area
        assert seen[REPAINTED] == 2 * 8 * 8 * area
        assert seen[10, 200, 30] == (32 * 32 + 32 * 32 - 8 * 8) * area
        assert seen[128, 128, 128] == 8 * 8 * area

    def test_a_row_adds_its_thumbnails_height(self):
        rows = [row_pixels("square", 64, 64), row_pixels("wide", 64, 128), row_pixels("long/" * 60, 320, 64)]
        sizes = [contact_sheet(rows[:count]).size for count in range(1, 4)]
        heights = np.diff([104 + 28, *(height for _, height in sizes)])
        assert len({width for width, _ in sizes}) == 1
        assert heights[0] == heights[2] == heights[1] + 80

    def test_what_one_row_has_makes_a_column_for_all(self):
        with_decoded = row_pixels()._replace(decoded=np.full((32, 32, 3), (200, 10, 30), np.uint8))
        sheet = contact_sheet([row_pixels("without"), with_decoded], cell=32)
        assert colours_of(sheet)[200, 10, 30] == 32 * 32
        assert contact_sheet([with_decoded]).width - contact_sheet([row_pixels()]).width == 2 * (160 + 16)


class TestRowSheet:
    def test_it_shows_every_picture_of_one_row(self):
        row = row_pixels()._replace(decoded=np.full((32, 32, 3), (200, 10, 30), np.uint8))
        sheet = row_sheet(row, cell=64, across=4)
        seen = colours_of(sheet)
        area = (64 // 32) ** 2
        assert seen[200, 10, 30] == 32 * 32 * area
        assert seen[LEFT_OUT] == 13 * 13 * area
        assert seen[RING] == (13 * 13 - 8 * 8) * area
        assert sheet.height > row_sheet(row, cell=64, across=7).height
