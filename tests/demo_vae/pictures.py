"""Training batches: recolored pieces of photographs and of random ellipses, partly masked as in the job."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from inpaint_encode.demo.pairs import MaskKind, draw_mask, photograph

from .sources import TRAINED_ON

__all__ = ["Pictures"]

Pixels = NDArray[np.float32]
"""``H x W x 3`` in 0..1."""

SCALES = (1.0, 0.7, 0.5, 0.35)
SMALLEST = 130
"""Smallest side of a scaled photograph in pixels, so that pieces of 128 fit."""
LEAVES, LEAVES_SHARE, LEAVES_SIDE = 16, 0.15, 384
GREYED, FLAT, RECOLOURED, MIRRORED = 0.3, 0.05, 0.5, 0.5
"""Shares of pieces."""
GREY_KINDS: tuple[MaskKind, ...] = ("strokes", "boxes")
RIM = 4
"""Pixels from the edge of a masked area that do not count as flat."""


class Pictures:
    """Draws batches; the seed alone decides their sequence."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pool: list[NDArray[np.uint8]] = []
        shares: list[float] = []
        for photo in TRAINED_ON:
            levels = _levels(photograph(photo.file).convert("RGB"))
            self._pool += levels
            shares += [photo.share / len(levels)] * len(levels)
        photos = sum(shares)
        drawn = [_leaves(self._rng, self._pool[0]) for _ in range(LEAVES)]
        shares += [photos * LEAVES_SHARE / (1 - LEAVES_SHARE) / LEAVES] * LEAVES
        self._pool += drawn
        self._shares = np.array(shares) / sum(shares)

    def batch(self, count: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pixels ``[count, 3, side, side]`` in -1..1 and a map ``[count, 1, side, side]``, 1 where flat.

        Masked areas without their rims are flat, and some whole pieces.
        """
        pieces, flat = zip(*(self._piece(side) for _ in range(count)), strict=True)
        pixels = torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2)  # this memory layout decides the last bits
        return pixels * 2 - 1, torch.from_numpy(np.stack(flat))[:, None]

    def plain(self, count: int, side: int) -> torch.Tensor:
        """Return unchanged pieces of photographs, ``[count, 3, side, side]`` in -1..1."""
        pieces = np.stack([self._cut(side) for _ in range(count)])
        return torch.from_numpy(pieces).permute(0, 3, 1, 2) * 2 - 1

    def _piece(self, side: int) -> tuple[Pixels, Pixels]:
        rng = self._rng
        if rng.random() < FLAT:
            colour = np.full(3, 0.5) if rng.random() < 0.5 else rng.random(3)
            return np.broadcast_to(colour, (side, side, 3)).astype(np.float32), np.ones((side, side), np.float32)
        piece = _turned(rng, self._cut(side))
        if rng.random() < RECOLOURED:
            piece = _recoloured(rng, piece)
        if rng.random() >= GREYED:
            return piece, np.zeros((side, side), np.float32)
        mask = draw_mask(rng, (side, side), GREY_KINDS[rng.integers(len(GREY_KINDS))])
        flat = np.asarray(mask.filter(ImageFilter.MinFilter(2 * RIM + 1))) > 0
        piece = np.asarray(np.where(np.asarray(mask)[..., None] > 0, np.float32(0.5), piece), np.float32)
        return piece, flat.astype(np.float32)

    def _cut(self, side: int) -> Pixels:
        picture = self._pool[self._rng.choice(len(self._pool), p=self._shares)]
        top, left = (int(self._rng.integers(size - side, endpoint=True)) for size in picture.shape[:2])
        return picture[top : top + side, left : left + side].astype(np.float32) / np.float32(255)


def _levels(photo: Image.Image) -> list[NDArray[np.uint8]]:
    sizes = [(round(photo.width * scale), round(photo.height * scale)) for scale in SCALES]
    scaled = [photo.resize(size, Image.Resampling.LANCZOS) for size in sizes if min(size) >= SMALLEST]
    return [np.asarray(one) for one in scaled]


def _leaves(rng: np.random.Generator, palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw many small and few large ellipses over one another in a photograph's colors, for edges of every kind."""
    side = 2 * LEAVES_SIDE
    image = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(image)
    colours = palette.reshape(-1, 3)
    for radius in np.sort(6 / np.sqrt(rng.uniform(0.0004, 1, 3000)))[::-1]:
        x, y = rng.uniform(0, side, 2)
        wide, high = radius * rng.uniform(0.4, 1.6, 2)
        colour = tuple(colours[rng.integers(len(colours))].tolist())
        draw.ellipse((x - wide, y - high, x + wide, y + high), fill=colour)
    return np.asarray(image.resize((LEAVES_SIDE, LEAVES_SIDE), Image.Resampling.BOX))


def _turned(rng: np.random.Generator, piece: Pixels) -> Pixels:
    if rng.random() < MIRRORED:
        piece = piece[:, ::-1]
    if rng.random() < 0.2:
        piece = piece[::-1]
    return piece.transpose(1, 0, 2) if rng.random() < 0.2 else piece


def _recoloured(rng: np.random.Generator, piece: Pixels) -> Pixels:
    """Change hue, saturation, tint, contrast and brightness; gray pieces become a gradient of two colors."""
    grey = piece.mean(axis=2, keepdims=True)
    if np.ptp(piece, axis=2).max() == 0:
        dark, light = np.clip(rng.uniform(0, 0.4) + rng.normal(0, 0.12, 3), 0, 1), rng.uniform(0.6, 1, 3)
        return np.asarray(dark + grey * (light - dark), np.float32)
    if rng.random() < 0.4:
        piece = piece[..., rng.permutation(3)]
    saturated = grey + rng.uniform(0.3, 1.5) * (piece - grey)
    tinted = saturated * rng.uniform(0.8, 1.2, 3)
    contrasted = (tinted - 0.5) * rng.uniform(0.6, 1.2) + 0.5 + rng.uniform(-0.15, 0.15)
    return np.asarray(np.clip(contrasted, 0, 1), np.float32)
