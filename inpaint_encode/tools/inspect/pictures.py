"""Pictures of rows: the source, masks, the latent in false colors and the decoded latent; and sheets of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

WHITE_AT = 64
"""Difference that is drawn white: levels of 255, mean of the three channels."""

TITLES = {
    "image": "the source, cropped",
    "mask": "white is repainted",
    "grown mask": "stored; orange was added by growing",
    "masked image": "input of the VAE",
    "latent": "stored; channels in false colors",
    "decoded": "the latent, decoded by the VAE",
    "difference": f"outside the mask; white is {WHITE_AT} levels or more",
}
"""The pictures in the order of the job's steps, with an explanation each."""

_KEPT, _REPAINTED, _ADDED, _EXCLUDED = (38, 40, 46), (244, 243, 240), (240, 131, 48), (86, 92, 104)
_RAMP = np.array([(12, 12, 16), (120, 28, 84), (240, 131, 48), (255, 255, 240)], np.float32)
"""Colors of a difference, from none to `WHITE_AT`."""

_MARGIN, _GAP, _MIN_WIDTH = 28, 16, 760
_HEADER, _CAPTION, _TITLE = 104, 32, 46
_PAPER, _INK, _FAINT, _RULE = (250, 249, 246), (32, 33, 36), (112, 114, 120), (222, 220, 214)


class InspectedRow(NamedTuple):
    """A row with its pixels; all arrays but ``samples`` have the height and width of the crop."""

    row: Mapping[str, Any]
    """All columns, as `as_rows` returns them."""
    image: NDArray[np.uint8] | None
    """``[H, W, 3]``, cropped, not masked; None if the source is not available."""
    mask: NDArray[np.generic] | None
    """``[H, W]``, 0 or 1, not grown; None if the source is not available."""
    noise_mask: NDArray[np.generic]
    """``[H, W]``, 0 or 1, grown."""
    samples: NDArray[np.floating[Any]]
    """``[C, h, w]``, the latent; of stored moments the means."""
    decoded: NDArray[np.uint8] | None = None
    """``[H, W, 3]``, the decoded latent; None if it was not decoded."""
    missing: Sequence[str] = ()
    """What is not available and why, in sentences."""


@dataclass(frozen=True)
class LatentColors:
    """Maps the channels of latents to colors, the same in all pictures.

    Brightness and two colors are the three principal components of the latents' cells.
    """

    mean: NDArray[np.float64]
    """``[C]``"""
    axes: NDArray[np.float64]
    """``[3, C]``, each component divided by its standard deviation; zeros if there are fewer than three channels."""

    @classmethod
    def fit(cls, latents: Iterable[NDArray[np.floating[Any]]]) -> Self:
        """Compute the components of all cells of some latents ``[C, ...]``."""
        cells = np.concatenate([latent.reshape(len(latent), -1) for latent in latents], axis=1).astype(np.float64)
        variances, directions = np.linalg.eigh(np.atleast_2d(np.cov(cells, bias=True)))
        axes = np.zeros((3, len(cells)))
        for axis, at in zip(axes, range(len(cells) - 1, -1, -1), strict=False):
            direction = directions[:, at] * np.sign(directions[np.abs(directions[:, at]).argmax(), at])
            axis[:] = direction / max(float(variances[at]), 1e-12) ** 0.5
        return cls(cells.mean(axis=1), axes)

    def draw(self, samples: NDArray[np.floating[Any]]) -> Image.Image:
        """Draw a latent ``[C, h, w]`` with one pixel per cell."""
        centered = samples.astype(np.float64) - self.mean[:, None, None]
        # Colors span 2.5 standard deviations on either side of the mean.
        bright, warm, green = np.clip(np.tensordot(self.axes, centered, 1) / 2.5, -1, 1)
        red_green_blue = np.stack([bright + 0.5 * warm, bright + 0.5 * green, bright - 0.5 * warm - 0.5 * green], -1)
        levels = np.clip(0.5 + red_green_blue / 2.6, 0, 1) * 255
        return Image.fromarray(np.rint(np.nan_to_num(levels)).astype(np.uint8))


def draw_pictures(row: InspectedRow, colors: LatentColors) -> dict[str, Image.Image]:
    """Return the pictures of a row by their `TITLES`, in that order, without those whose data are missing.

    All have the size of the crop except the latent, which has one pixel per cell.
    """
    grown = row.noise_mask != 0
    pictures = {}
    if row.image is not None and row.mask is not None:
        mask = row.mask != 0
        pictures["image"] = Image.fromarray(row.image)
        pictures["mask"] = _draw_mask(mask, mask)
        pictures["grown mask"] = _draw_mask(mask, grown)
        pictures["masked image"] = Image.fromarray(np.where(mask[..., None], np.uint8(128), row.image))
    else:
        pictures["grown mask"] = _draw_mask(grown, grown)
    pictures["latent"] = colors.draw(row.samples)
    if row.decoded is not None:
        pictures["decoded"] = Image.fromarray(row.decoded)
        if row.image is not None:
            pictures["difference"] = _draw_difference(row.image, row.decoded, grown)
    return pictures


def psnr(row: InspectedRow) -> float | None:
    """Return the peak signal-to-noise ratio in dB of the decoded image against the source, outside the grown mask.

    None if either is missing or the mask covers everything; infinite if they are equal.
    """
    kept = row.noise_mask == 0
    if row.image is None or row.decoded is None or not kept.any():
        return None
    error = row.image[kept].astype(np.float64) - row.decoded[kept]
    mean = float(np.mean(error**2))
    return float("inf") if mean == 0 else float(10 * np.log10(255**2 / mean))


def _draw_mask(mask: NDArray[np.bool_], grown: NDArray[np.bool_]) -> Image.Image:
    colors = np.array([_KEPT, _ADDED, _REPAINTED], dtype=np.uint8)
    return Image.fromarray(colors[np.where(mask, 2, grown.astype(np.intp))])


def _draw_difference(image: NDArray[np.uint8], decoded: NDArray[np.uint8], grown: NDArray[np.bool_]) -> Image.Image:
    levels = np.abs(image.astype(np.float32) - decoded).mean(axis=-1)
    at = np.clip(levels / WHITE_AT, 0, 1) * (len(_RAMP) - 1)
    below = np.minimum(at.astype(np.intp), len(_RAMP) - 2)
    share = (at - below)[..., None]
    ramp = (_RAMP[below] * (1 - share) + _RAMP[below + 1] * share).astype(np.uint8)
    return Image.fromarray(np.where(grown[..., None], np.array(_EXCLUDED, np.uint8), ramp))


def contact_sheet(rows: Sequence[InspectedRow]) -> Image.Image:
    """Draw one line of pictures per row, with a column for each picture that at least one row has.

    There is at least one row. All latents have the same number of channels, and share their colors.
    """
    cell = 160  # longest side of a picture
    colors = LatentColors.fit(row.samples for row in rows)
    lines = [{title: _resized(one, cell) for title, one in draw_pictures(row, colors).items()} for row in rows]
    columns = [title for title in TITLES if any(title in line for line in lines)]
    left = {title: _MARGIN + number * (cell + _GAP) for number, title in enumerate(columns)}
    heights = [_CAPTION + max(picture.height for picture in line.values()) + _GAP for line in lines]
    width = max(_MIN_WIDTH, 2 * _MARGIN + len(columns) * (cell + _GAP) - _GAP)
    sheet = Image.new("RGB", (width, _HEADER + sum(heights) + _MARGIN), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 24), "Inpainting latents", _INK, _font(24))
    count = "1 pair" if len(rows) == 1 else f"{len(rows)} pairs"
    legend = f"{count}  ·  white is repainted, orange was added by growing"
    draw.text((sheet.width - _MARGIN, 34), legend, _FAINT, _font(13), anchor="ra")
    for title, x in left.items():
        draw.text((x, _HEADER - 28), title, _FAINT, _font(14))
    top = _HEADER
    for row, line, height in zip(rows, lines, heights, strict=True):
        draw.line((_MARGIN, top, sheet.width - _MARGIN, top), _RULE)
        about = _about(row)
        room = sheet.width - 2 * _MARGIN - _GAP - _font(13).getlength(about)
        draw.text((_MARGIN, top + 9), _shortened(row.row["key"], room, 14), _INK, _font(14))
        draw.text((sheet.width - _MARGIN, top + 10), about, _FAINT, _font(13), anchor="ra")
        for title, picture in line.items():
            sheet.paste(picture, (left[title], top + _CAPTION))
        top += height
    return sheet


def row_sheet(row: InspectedRow) -> Image.Image:
    """Draw all pictures of one row, each with its title and an explanation. The colors are those of its latent."""
    cell, across = 320, 4  # longest side of a picture, and pictures side by side
    pictures = draw_pictures(row, LatentColors.fit([row.samples]))
    cells = {title: _resized(picture, cell) for title, picture in pictures.items()}
    step = _TITLE + max(picture.height for picture in cells.values()) + _GAP
    height = _HEADER + -(-len(cells) // across) * step + _MARGIN
    sheet = Image.new("RGB", (2 * _MARGIN + across * (cell + _GAP) - _GAP, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, 22), _shortened(row.row["key"], sheet.width - 2 * _MARGIN, 24), _INK, _font(24))
    draw.text((_MARGIN, 62), _about(row), _FAINT, _font(14))
    for number, (title, picture) in enumerate(cells.items()):
        left, top = _MARGIN + number % across * (cell + _GAP), _HEADER + number // across * step
        draw.text((left, top), title, _INK, _font(16))
        draw.text((left, top + 22), TITLES[title], _FAINT, _font(13))
        sheet.paste(picture, (left, top + _TITLE))
    return sheet


def _resized(picture: Image.Image, side: int) -> Image.Image:
    """Scale the longer side to ``side`` pixels; small pictures are enlarged with visible pixels."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _about(row: InspectedRow) -> str:
    height, width = row.noise_mask.shape
    latent = " x ".join(map(str, row.samples.shape))
    grown = f"grown mask {np.mean(row.noise_mask != 0):.1%}"
    masks = grown if row.mask is None else f"mask {np.mean(row.mask != 0):.1%}, {grown}"
    decibels = psnr(row)
    quality = "" if decibels is None else f"  ·  PSNR {decibels:.1f} dB"
    return f"{width} x {height}  ·  {masks}  ·  latent {latent}{quality}"


def _shortened(text: str, room: float, size: int) -> str:
    """Cut the start of ``text`` until it is at most ``room`` pixels wide; the end distinguishes keys."""
    shown, start = text, 0
    while start < len(text) and _font(size).getlength(shown) > room:
        start += 1
        shown = f"...{text[start:]}"
    return shown


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
