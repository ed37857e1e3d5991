"""One picture of what became of some pairs, for a person to look at."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

__all__ = ["SheetRow", "contact_sheet"]

CELL = 160
"""Longest side of a thumbnail in pixels."""
COLUMNS = ("image", "mask", "grown mask", "greyed image", "latent 0, 1, 2")

_MARGIN, _GAP = 28, 16
_HEADER, _CAPTION = 104, 32
_WIDTH = 2 * _MARGIN + len(COLUMNS) * CELL + (len(COLUMNS) - 1) * _GAP

_PAPER, _INK, _FAINT, _RULE = (250, 249, 246), (32, 33, 36), (112, 114, 120), (222, 220, 214)
_KEPT, _REPAINTED, _RING = (38, 40, 46), (244, 243, 240), (240, 131, 48)


class SheetRow(NamedTuple):
    """One pair as the job left it; every array but ``samples`` has the sides of the crop."""

    key: str
    """What the caption says."""
    image: NDArray[np.uint8]
    """``H x W x 3``, cropped and not yet grey."""
    mask: NDArray[np.generic]
    """``H x W``, 0 or 1, not grown."""
    noise_mask: NDArray[np.generic]
    """``H x W``, 0 or 1, grown."""
    samples: NDArray[np.floating]
    """``C x h x w``, the latent."""


def contact_sheet(rows: Iterable[SheetRow], path: Path) -> None:
    """Write a PNG with one line for each row: image, mask, grown mask, greyed image, first latent channels.

    The growth stands out in orange. Each latent channel is stretched between its 2nd and 98th percentile, so
    that colours compare within a picture and not between two.
    """
    lines = [_line(row) for row in rows]
    height = _HEADER + sum(line.height for line in lines) + _MARGIN
    sheet = Image.new("RGB", (_WIDTH, height), _PAPER)
    _draw_header(sheet, len(lines))
    top = _HEADER
    for line in lines:
        sheet.paste(line, (0, top))
        top += line.height
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def _draw_header(sheet: Image.Image, count: int) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 24), "Inpainting latents", _INK, _font(24))
    pairs = "1 pair" if count == 1 else f"{count} pairs"
    legend = f"{pairs}  ·  white is repainted, orange is what growing adds"
    draw.text((_WIDTH - _MARGIN, 34), legend, _FAINT, _font(13), anchor="ra")
    for column, title in enumerate(COLUMNS):
        draw.text((_left(column), _HEADER - 28), title, _FAINT, _font(14))


def _line(row: SheetRow) -> Image.Image:
    cells = [_thumbnail(picture) for picture in _pictures(row)]
    tallest = max(cell.height for cell in cells)
    line = Image.new("RGB", (_WIDTH, _CAPTION + tallest + _GAP), _PAPER)
    draw = ImageDraw.Draw(line)
    draw.line((_MARGIN, 0, _WIDTH - _MARGIN, 0), _RULE)
    _draw_caption(draw, row)
    for column, cell in enumerate(cells):
        line.paste(cell, (_left(column), _CAPTION))
    return line


def _draw_caption(draw: ImageDraw.ImageDraw, row: SheetRow) -> None:
    facts = _facts(row)
    room = _WIDTH - 2 * _MARGIN - _GAP - _font(13).getlength(facts)
    draw.text((_MARGIN, 9), _shortened(row.key, room), _INK, _font(14))
    draw.text((_WIDTH - _MARGIN, 10), facts, _FAINT, _font(13), anchor="ra")


def _facts(row: SheetRow) -> str:
    height, width = row.image.shape[:2]
    channels, latent_height, latent_width = row.samples.shape
    before, after = (100 * float(np.mean(mask != 0)) for mask in (row.mask, row.noise_mask))
    return (
        f"{width} x {height}  ·  repainted {before:.1f} %, grown {after:.1f} %"
        f"  ·  latent {channels} x {latent_height} x {latent_width}"
    )


def _shortened(text: str, room: float) -> str:
    """Cut the front of ``text`` until it is at most ``room`` pixels wide: the end tells keys apart."""
    if _font(14).getlength(text) <= room:
        return text
    rest = text
    while rest and _font(14).getlength(f"...{rest}") > room:
        rest = rest[1:]
    return f"...{rest}"


def _pictures(row: SheetRow) -> list[Image.Image]:
    repainted, grown = row.mask != 0, row.noise_mask != 0
    grey = np.where(repainted[..., None], np.uint8(128), row.image)
    return [
        Image.fromarray(row.image),
        _mask_picture(repainted, repainted),
        _mask_picture(repainted, grown),
        Image.fromarray(grey),
        _latent_picture(row.samples).resize((row.image.shape[1], row.image.shape[0]), Image.Resampling.NEAREST),
    ]


def _mask_picture(mask: NDArray[np.bool_], grown: NDArray[np.bool_]) -> Image.Image:
    colours = np.array([_KEPT, _RING, _REPAINTED], dtype=np.uint8)
    return Image.fromarray(colours[np.where(mask, 2, grown.astype(np.intp))])


def _latent_picture(samples: NDArray[np.floating]) -> Image.Image:
    """Red, green and blue are channels 0, 1 and 2; a latent of fewer repeats its last."""
    channels = [_stretched(samples[min(channel, len(samples) - 1)]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1))


def _stretched(channel: NDArray[np.floating]) -> NDArray[np.uint8]:
    values = channel.astype(np.float32)
    low, high = (float(bound) for bound in np.percentile(values, (2, 98)))
    unit = np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0)
    level: NDArray[np.uint8] = np.rint(unit * 255).astype(np.uint8)
    return level


def _thumbnail(picture: Image.Image) -> Image.Image:
    """Fit ``picture`` into a cell; small ones are enlarged so that their pixels show."""
    scale = CELL / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _left(column: int) -> int:
    return _MARGIN + column * (CELL + _GAP)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
