"""The contact sheet of several rows, and the sheet of one."""

import numpy as np

from inpaint_encode.tools.inspect.contact_sheet import contact_sheet, row_sheet
from tests.unit.tools.inspect.test_pictures import ADDED, EXCLUDED, REPAINTED, colors_of, row_pixels


class TestContactSheet:
    def test_it_shows_every_picture(self):
        sheet = contact_sheet([row_pixels()])
        bottom = sheet.height - 44  # gap of the line and margin of the sheet
        seen = colors_of(sheet.crop((0, bottom - 160, sheet.width, bottom)))
        area = (160 // 32) ** 2
        assert seen[ADDED] == (13 * 13 - 8 * 8) * area
        assert seen[REPAINTED] == 2 * 8 * 8 * area
        assert seen[10, 200, 30] == (32 * 32 + 32 * 32 - 8 * 8) * area
        assert seen[128, 128, 128] == 8 * 8 * area

    def test_a_row_adds_its_thumbnails_height(self):
        rows = [row_pixels("square", 64, 64), row_pixels("wide", 64, 128), row_pixels("long/" * 60, 320, 64)]
        sizes = [contact_sheet(rows[:count]).size for count in range(1, 4)]
        heights = np.diff([104 + 28, *(height for _, height in sizes)])
        assert len({width for width, _ in sizes}) == 1
        assert heights[0] == heights[2] == heights[1] + 80

    def test_a_picture_of_one_row_makes_a_column(self):
        with_decoded = row_pixels()._replace(decoded=np.full((32, 32, 3), (200, 10, 30), np.uint8))
        sheet = contact_sheet([row_pixels("without"), with_decoded], cell=32)
        assert colors_of(sheet)[200, 10, 30] == 32 * 32
        assert contact_sheet([with_decoded]).width - contact_sheet([row_pixels()]).width == 2 * (160 + 16)


class TestRowSheet:
    def test_it_shows_every_picture(self):
        row = row_pixels()._replace(decoded=np.full((32, 32, 3), (200, 10, 30), np.uint8))
        sheet = row_sheet(row, cell=64, across=4)
        seen = colors_of(sheet)
        area = (64 // 32) ** 2
        assert seen[200, 10, 30] == 32 * 32 * area
        assert seen[EXCLUDED] == 13 * 13 * area
        assert seen[ADDED] == (13 * 13 - 8 * 8) * area
        assert sheet.height > row_sheet(row, cell=64, across=7).height
