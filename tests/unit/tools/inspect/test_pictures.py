"""The pictures of a row, the colors of latents, and sheets of pictures."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from inpaint_encode.tools.inspect.pictures import (
    WHITE_AT,
    InspectedRow,
    LatentColors,
    contact_sheet,
    draw_pictures,
    psnr,
    row_sheet,
)

REPAINTED, ADDED, EXCLUDED = (244, 243, 240), (240, 131, 48), (86, 92, 104)


def inspected_row(key: str = "a/pair", height: int = 32, width: int = 32) -> InspectedRow:
    mask = np.zeros((height, width), np.uint8)
    mask[4:12, 4:12] = 1
    grown = np.zeros_like(mask)
    grown[2:15, 2:15] = 1
    image = np.full((height, width, 3), (10, 200, 30), np.uint8)
    samples = np.random.default_rng(0).normal(size=(4, height // 8, width // 8)).astype(np.float16)
    return InspectedRow({"key": key}, image, mask, grown, samples)


def pictures(row: InspectedRow) -> dict[str, Image.Image]:
    return draw_pictures(row, LatentColors.fit([row.samples]))


def colors_of(picture: Image.Image) -> Counter:
    return Counter(map(tuple, np.asarray(picture).reshape(-1, 3).tolist()))


class TestPictures:
    def test_masks_and_masked_pixels(self):
        made = pictures(inspected_row())
        assert list(made) == ["image", "mask", "grown mask", "masked image", "latent"]
        assert colors_of(made["image"]) == {(10, 200, 30): 32 * 32}
        assert colors_of(made["mask"])[REPAINTED] == 8 * 8
        assert colors_of(made["grown mask"])[REPAINTED] == 8 * 8
        assert colors_of(made["grown mask"])[ADDED] == 13 * 13 - 8 * 8
        assert colors_of(made["masked image"]) == {(128, 128, 128): 8 * 8, (10, 200, 30): 32 * 32 - 8 * 8}
        assert made["latent"].size == (4, 4)

    def test_without_its_source_a_row_has_mask_and_latent(self):
        row = inspected_row()._replace(image=None, mask=None, decoded=np.zeros((32, 32, 3), np.uint8))
        made = pictures(row)
        assert list(made) == ["grown mask", "latent", "decoded"]
        assert colors_of(made["grown mask"])[REPAINTED] == 13 * 13
        assert psnr(row) is None

    def test_the_difference_excludes_the_grown_mask(self):
        row = inspected_row()
        decoded = row.image.copy()
        decoded[:15, :15] = 0  # where the mask is, and a pixel's frame around it
        decoded[20, 20] = np.array([10, 200, 30]) + WHITE_AT // 2
        difference = np.asarray(pictures(row._replace(decoded=decoded))["difference"]).astype(int)
        assert (difference[2:15, 2:15] == EXCLUDED).all()
        assert (difference[25:, 25:] == difference[31, 31]).all() and difference[31, 31].sum() < 60
        assert 60 < difference[20, 20].sum() < difference[0, 0].sum() == 255 + 255 + 240

    def test_psnr_excludes_the_grown_mask(self):
        row = inspected_row()
        decoded = row.image + np.uint8(5)
        decoded[2:15, 2:15] = 0
        assert psnr(row._replace(decoded=decoded)) == pytest.approx(20 * np.log10(255 / 5))
        assert psnr(row._replace(decoded=row.image)) == float("inf")
        assert psnr(row._replace(decoded=decoded, noise_mask=np.ones((32, 32)))) is None


class TestLatentColors:
    def test_brightness_is_the_first_principal_component(self):
        rng = np.random.default_rng(1)
        latent = rng.normal(size=(6, 40, 40)) * np.array([1, 1, 30, 1, 1, 1])[:, None, None] + 100
        bright = np.asarray(LatentColors.fit([latent]).draw(latent).convert("L")).astype(float)
        assert np.corrcoef(bright.ravel(), latent[2].ravel())[0, 1] > 0.9

    def test_a_value_has_the_same_color_in_every_picture(self):
        latents = np.random.default_rng(2).normal(size=(2, 4, 8, 8))
        latents[1, :, 0, 0] = latents[0, :, 5, 5]
        colors = LatentColors.fit(latents)
        first, second = (colors.draw(latent) for latent in latents)
        assert first.getpixel((5, 5)) == second.getpixel((0, 0))

    @pytest.mark.parametrize("channels", [1, 2, 3, 128])
    def test_any_number_of_channels(self, channels):
        latent = np.random.default_rng(3).normal(size=(channels, 6, 5))
        picture = LatentColors.fit([latent]).draw(latent)
        assert picture.size == (5, 6)
        assert len(colors_of(picture)) > 15

    def test_a_constant_latent_has_one_color(self):
        latent = np.full((1, 4, 4), 7.0)
        assert len(colors_of(LatentColors.fit([latent]).draw(latent))) == 1


class TestContactSheet:
    def test_it_shows_every_picture(self):
        sheet = contact_sheet([inspected_row()])
        bottom = sheet.height - 44  # gap of the line and margin of the sheet
        seen = colors_of(sheet.crop((0, bottom - 160, sheet.width, bottom)))
        area = (160 // 32) ** 2
        assert seen[ADDED] == (13 * 13 - 8 * 8) * area
        assert seen[REPAINTED] == 2 * 8 * 8 * area
        assert seen[10, 200, 30] == (32 * 32 + 32 * 32 - 8 * 8) * area
        assert seen[128, 128, 128] == 8 * 8 * area

    def test_a_row_adds_its_thumbnails_height(self):
        rows = [inspected_row("square", 64, 64), inspected_row("wide", 64, 128), inspected_row("long/" * 60, 320, 64)]
        sizes = [contact_sheet(rows[:count]).size for count in range(1, 4)]
        heights = np.diff([104 + 28, *(height for _, height in sizes)])
        assert len({width for width, _ in sizes}) == 1
        assert heights[0] == heights[2] == heights[1] + 80

    def test_a_picture_of_one_row_makes_a_column(self):
        with_decoded = inspected_row()._replace(decoded=np.full((32, 32, 3), (200, 10, 30), np.uint8))
        sheet = contact_sheet([inspected_row("without"), with_decoded])
        assert colors_of(sheet)[200, 10, 30] == 160 * 160
        assert contact_sheet([with_decoded]).width - contact_sheet([inspected_row()]).width == 2 * (160 + 16)


class TestRowSheet:
    def test_it_shows_every_picture(self):
        row = inspected_row()._replace(decoded=np.full((32, 32, 3), (200, 10, 30), np.uint8))
        seen = colors_of(row_sheet(row))
        area = (320 // 32) ** 2
        assert seen[200, 10, 30] == 32 * 32 * area
        assert seen[EXCLUDED] == 13 * 13 * area
        assert seen[ADDED] == (13 * 13 - 8 * 8) * area
