"""One picture file with the pictures of several rows, or of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .pictures import TITLES, LatentColors, RowPixels, draw_pictures, psnr, resized

__all__ = ["contact_sheet", "row_sheet"]

_MARGIN, _GAP, _MIN_WIDTH = 28, 16, 760
_HEADER, _CAPTION, _TITLE = 104, 32, 46

_PAPER, _INK, _FAINT, _RULE = (250, 249, 246), (32, 33, 36), (112, 114, 120), (222, 220, 214)


def contact_sheet(rows: Sequence[RowPixels], cell: int = 160) -> Image.Image:
    """Draw one line of pictures per row, with a column for each picture that at least one row has.

    Args:
        rows: at least one; all latents have the same number of channels, and share their colors.
        cell: longest side of a picture in pixels.
    """
    colors = LatentColors.fit(row.samples for row in rows)
    lines = [{title: resized(one, cell) for title, one in draw_pictures(row, colors).items()} for row in rows]
    columns = [title for title in TITLES if any(title in line for line in lines)]
    left = {title: _MARGIN + number * (cell + _GAP) for number, title in enumerate(columns)}
    heights = [_CAPTION + max(picture.height for picture in line.values()) + _GAP for line in lines]
    sheet, draw = _new_sheet(len(columns) * (cell + _GAP) - _GAP, _HEADER + sum(heights) + _MARGIN)
    draw.text((_MARGIN, 24), "Inpainting latents", _INK, _font(24))
    legend = (
        f"{'1 pair' if len(rows) == 1 else f'{len(rows)} pairs'}  ·  white is repainted, orange was added by growing"
    )
    draw.text((sheet.width - _MARGIN, 34), legend, _FAINT, _font(13), anchor="ra")
    for title, x in left.items():
        draw.text((x, _HEADER - 28), title, _FAINT, _font(14))
    top = _HEADER
    for row, line, height in zip(rows, lines, heights, strict=True):
        draw.line((_MARGIN, top, sheet.width - _MARGIN, top), _RULE)
        about = _about(row)
        room = sheet.width - 2 * _MARGIN - _GAP - _font(13).getlength(about)
        draw.text((_MARGIN, top + 9), _shortened(row.key, room, 14), _INK, _font(14))
        draw.text((sheet.width - _MARGIN, top + 10), about, _FAINT, _font(13), anchor="ra")
        for title, picture in line.items():
            sheet.paste(picture, (left[title], top + _CAPTION))
        top += height
    return sheet


def row_sheet(row: RowPixels, cell: int = 320, across: int = 4) -> Image.Image:
    """Draw all pictures of one row, each with its title and an explanation.

    Args:
        row: the row; the colors are those of its latent alone.
        cell: longest side of a picture in pixels.
        across: pictures side by side.
    """
    pictures = draw_pictures(row, LatentColors.fit([row.samples]))
    cells = {title: resized(picture, cell) for title, picture in pictures.items()}
    step = _TITLE + max(picture.height for picture in cells.values()) + _GAP
    sheet, draw = _new_sheet(across * (cell + _GAP) - _GAP, _HEADER + -(-len(cells) // across) * step + _MARGIN)
    draw.text((_MARGIN, 22), _shortened(row.key, sheet.width - 2 * _MARGIN, 24), _INK, _font(24))
    draw.text((_MARGIN, 62), _about(row), _FAINT, _font(14))
    for number, (title, picture) in enumerate(cells.items()):
        left, top = _MARGIN + number % across * (cell + _GAP), _HEADER + number // across * step
        draw.text((left, top), title, _INK, _font(16))
        draw.text((left, top + 22), TITLES[title], _FAINT, _font(13))
        sheet.paste(picture, (left, top + _TITLE))
    return sheet


def _new_sheet(content_width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    sheet = Image.new("RGB", (max(_MIN_WIDTH, 2 * _MARGIN + content_width), height), _PAPER)
    return sheet, ImageDraw.Draw(sheet)


def _about(row: RowPixels) -> str:
    height, width = row.noise_mask.shape
    latent = " x ".join(map(str, row.samples.shape))
    grown = f"grown mask {np.mean(row.noise_mask != 0):.1%}"
    masks = grown if row.mask is None else f"mask {np.mean(row.mask != 0):.1%}, {grown}"
    decibels = psnr(row)
    quality = "" if decibels is None else f"  ·  PSNR {decibels:.1f} dB"
    return f"{width} x {height}  ·  {masks}  ·  latent {latent}{quality}"


def _shortened(text: str, room: float, size: int) -> str:
    """Cut the start of ``text`` until it is at most ``room`` pixels wide; the end distinguishes keys."""
    if _font(size).getlength(text) <= room:
        return text
    rest = text
    while rest and _font(size).getlength(f"...{rest}") > room:
        rest = rest[1:]
    return f"...{rest}"


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
