"""One picture of what became of some pairs, or of one, for a person to look at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pictures import TITLES, LatentColours, RowPixels, fitted, pictures_of, psnr

__all__ = ["contact_sheet", "row_sheet"]

CELL = 160
"""Longest side of a thumbnail in pixels."""

_MARGIN, _GAP = 28, 16
_HEADER, _CAPTION, _TITLED = 104, 32, 46

_PAPER, _INK, _FAINT, _RULE = (250, 249, 246), (32, 33, 36), (112, 114, 120), (222, 220, 214)
_LEAST_WIDTH = 760


def contact_sheet(rows: Sequence[RowPixels], cell: int = CELL) -> Image.Image:
    """Draw a line for each row: image, mask, grown mask, greyed image, latent, decoded, and how that differs.

    What no row has gets no column. The growth stands out in orange, and the colours of latents compare within the
    sheet: see `pictures_of`.

    Args:
        rows: latents of as many channels; at least one row.
        cell: longest side of a picture in pixels.
    """
    colours = LatentColours.fitted(row.samples for row in rows)
    pictures = [pictures_of(row, colours) for row in rows]
    sheet = _Sheet([title for title in TITLES if any(title in one for one in pictures)], cell)
    lines = [sheet.line(row, one) for row, one in zip(rows, pictures, strict=True)]
    whole = Image.new("RGB", (sheet.width, _HEADER + sum(line.height for line in lines) + _MARGIN), _PAPER)
    sheet.draw_header(whole, len(lines))
    top = _HEADER
    for line in lines:
        whole.paste(line, (0, top))
        top += line.height
    return whole


def row_sheet(row: RowPixels, cell: int = 320, across: int = 4) -> Image.Image:
    """Draw all pictures of one row, each with a line that says what it is.

    Args:
        row: whose latent's colours are by itself alone.
        cell: longest side of a picture in pixels.
        across: pictures side by side.
    """
    pictures = pictures_of(row, LatentColours.fitted([row.samples]))
    cells = {title: fitted(picture, cell) for title, picture in pictures.items()}
    step = _TITLED + max(picture.height for picture in cells.values()) + _GAP
    height = _HEADER + -(-len(cells) // across) * step + _MARGIN
    sheet = Image.new("RGB", (max(_LEAST_WIDTH, 2 * _MARGIN + across * (cell + _GAP) - _GAP), height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 22), _shortened(row.key, sheet.width - 2 * _MARGIN, 24), _INK, _font(24))
    draw.text((_MARGIN, 62), _facts(row), _FAINT, _font(14))
    for at, (title, picture) in enumerate(cells.items()):
        left, top = _MARGIN + at % across * (cell + _GAP), _HEADER + at // across * step
        draw.text((left, top), title, _INK, _font(16))
        draw.text((left, top + 22), TITLES[title], _FAINT, _font(13))
        sheet.paste(picture, (left, top + _TITLED))
    return sheet


class _Sheet:
    """Where things are on a sheet of these columns."""

    def __init__(self, columns: Sequence[str], cell: int) -> None:
        self._columns, self._cell = columns, cell
        self.width = max(_LEAST_WIDTH, 2 * _MARGIN + len(columns) * (cell + _GAP) - _GAP)

    def draw_header(self, sheet: Image.Image, count: int) -> None:
        draw = ImageDraw.Draw(sheet)
        draw.text((_MARGIN, 24), "Inpainting latents", _INK, _font(24))
        pairs = "1 pair" if count == 1 else f"{count} pairs"
        legend = f"{pairs}  ·  white is repainted, orange is what growing adds"
        draw.text((self.width - _MARGIN, 34), legend, _FAINT, _font(13), anchor="ra")
        for column, title in enumerate(self._columns):
            draw.text((self._left(column), _HEADER - 28), title, _FAINT, _font(14))

    def line(self, row: RowPixels, pictures: dict[str, Image.Image]) -> Image.Image:
        cells = {title: fitted(picture, self._cell) for title, picture in pictures.items()}
        tallest = max(cell.height for cell in cells.values())
        line = Image.new("RGB", (self.width, _CAPTION + tallest + _GAP), _PAPER)
        draw = ImageDraw.Draw(line)
        draw.line((_MARGIN, 0, self.width - _MARGIN, 0), _RULE)
        self._draw_caption(draw, row)
        for column, title in enumerate(self._columns):
            if title in cells:
                line.paste(cells[title], (self._left(column), _CAPTION))
        return line

    def _draw_caption(self, draw: ImageDraw.ImageDraw, row: RowPixels) -> None:
        facts = _facts(row)
        room = self.width - 2 * _MARGIN - _GAP - _font(13).getlength(facts)
        draw.text((_MARGIN, 9), _shortened(row.key, room), _INK, _font(14))
        draw.text((self.width - _MARGIN, 10), facts, _FAINT, _font(13), anchor="ra")

    def _left(self, column: int) -> int:
        return _MARGIN + column * (self._cell + _GAP)


def _facts(row: RowPixels) -> str:
    height, width = row.noise_mask.shape
    channels, latent_height, latent_width = row.samples.shape
    grown = f"grown {np.mean(row.noise_mask != 0):.1%}"
    repainted = grown if row.mask is None else f"repainted {np.mean(row.mask != 0):.1%}, {grown}"
    facts = f"{width} x {height}  ·  {repainted}  ·  latent {channels} x {latent_height} x {latent_width}"
    found = psnr(row)
    return facts if found is None else f"{facts}  ·  PSNR {found:.1f} dB"


def _shortened(text: str, room: float, size: int = 14) -> str:
    """Cut the front of ``text`` until it is at most ``room`` pixels wide: the end tells keys apart."""
    if _font(size).getlength(text) <= room:
        return text
    rest = text
    while rest and _font(size).getlength(f"...{rest}") > room:
        rest = rest[1:]
    return f"...{rest}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
