"""Measurements for a VAE's card: decibels on photographs, levels of 255 on gray."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from inpaint_encode.demo.pairs import draw_mask, photograph
from jobs.benchmarks.threads import one_thread

from .sources import HELD_OUT

__all__ = ["Figures", "cropped", "levels", "measured", "psnr", "through"]

GREY_SIDE = 128
GREYS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
STROKES_SIDE = 128
"""Side of the mask that is repeated over a photograph; its strokes are 9 to 18 pixels wide."""


class Figures(NamedTuple):
    """Measurements of a VAE; each is the worse of two photographs."""

    parameters: int
    coffee_psnr: float
    """Decibels."""
    chelsea_psnr: float
    sample_loss: float
    """Decibels that a sample of the posterior loses against its mean."""
    colour_off: float
    """Error of a color channel's mean over a whole photograph, in levels of 255."""
    strokes_loss: float
    """Decibels that a photograph with gray strokes loses against the whole one."""
    strokes_off: float
    """Error of a color channel's mean inside the strokes, 2 pixels from their edges, in levels."""
    rectangle_off: float
    """Largest error of a pixel inside a gray rectangle, 8 pixels from its edges, in levels."""
    grey_off: float
    """Largest error of a pixel of an image of 0.5 gray, in levels."""
    corner_off: float
    """The same for its top left 8 x 8 pixels."""
    tint: float
    """Largest difference between the means of two color channels, for flat images from black to white, in levels."""


@one_thread()
def measured(vae: Any) -> Figures:
    """Encode and decode the held-out photographs, whole and partly gray, and flat images."""
    photos = [cropped(photo.file) for photo in HELD_OUT]
    decoded = [through(vae, photo) for photo in photos]
    whole = [psnr(after, before) for after, before in zip(decoded, photos, strict=True)]
    strokes = [_strokes(vae, photo) for photo in photos]
    grey = _off(through(vae, torch.zeros(1, 3, GREY_SIDE, GREY_SIDE)))
    return Figures(
        parameters=sum(parameter.numel() for parameter in vae.parameters()),
        coffee_psnr=whole[0],
        chelsea_psnr=whole[1],
        sample_loss=max(before - _sampled(vae, photo) for before, photo in zip(whole, photos, strict=True)),
        colour_off=max(_colour_off(after, before) for after, before in zip(decoded, photos, strict=True)),
        strokes_loss=max(before - after for before, (after, _) in zip(whole, strokes, strict=True)),
        strokes_off=max(off for _, off in strokes),
        rectangle_off=max(_rectangle(vae, photo) for photo in photos),
        grey_off=float(grey.max()),
        corner_off=float(grey[..., :8, :8].max()),
        tint=max(_tint(vae, level) for level in GREYS),
    )


def cropped(file: str, multiple: int = 8) -> Tensor:
    """Return a photograph, cropped at the right and the bottom to ``multiple``, ``[1, 3, H, W]`` in -1..1."""
    pixels = np.asarray(photograph(file).convert("RGB"))
    height, width = (size // multiple * multiple for size in pixels.shape[:2])
    return torch.from_numpy(pixels[:height, :width].copy()).permute(2, 0, 1)[None] / 127.5 - 1


@torch.no_grad()
def through(vae: Any, pixels: Tensor) -> Tensor:
    """Encode to the posterior's mean and decode; both ``[B, 3, H, W]`` in -1..1."""
    decoded: Tensor = vae.decode(vae.encode(pixels).latent_dist.mode()).sample
    return decoded


def levels(pixels: Tensor) -> Tensor:
    """Round -1..1 to whole levels of 0..255, as a file holds them."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round()


def psnr(decoded: Tensor, pixels: Tensor) -> float:
    """Return decibels of 255 over the root mean square error, after rounding to 8 bits."""
    return 10 * math.log10(255**2 / float((levels(decoded) - levels(pixels)).square().mean()))


@torch.no_grad()
def _sampled(vae: Any, photo: Tensor) -> float:
    posterior = vae.encode(photo).latent_dist
    return psnr(vae.decode(posterior.sample(torch.Generator().manual_seed(0))).sample, photo)


def _colour_off(decoded: Tensor, photo: Tensor) -> float:
    return float((levels(decoded) - levels(photo)).mean((0, 2, 3)).abs().max())


def _off(grey: Tensor) -> Tensor:
    """Differences of pixels from 0.5 gray, in levels of 255."""
    return grey.abs() * 127.5


def _strokes(vae: Any, photo: Tensor) -> tuple[float, float]:
    """Set strokes to gray; return decibels, and the error of a color channel's mean inside the strokes."""
    height, width = photo.shape[2:]
    drawn = np.asarray(draw_mask(np.random.default_rng(0), (STROKES_SIDE, STROKES_SIDE), "strokes")) > 0
    repeats = -(-height // STROKES_SIDE), -(-width // STROKES_SIDE)
    mask = torch.from_numpy(np.tile(drawn, repeats)[:height, :width])
    pixels = photo.masked_fill(mask, 0)
    decoded = through(vae, pixels)
    inside = -functional.max_pool2d(-mask[None, None].float(), 5, stride=1, padding=2) > 0
    return psnr(decoded, pixels), float(_off(decoded[0][:, inside[0, 0]].mean(1)).max())


def _rectangle(vae: Any, photo: Tensor) -> float:
    """Set the middle ninth to gray, on the grid of 8; return the largest error of a pixel, 8 pixels inside."""
    top, left = (size // 24 * 8 for size in photo.shape[2:])
    pixels = photo.clone()
    pixels[..., top : 2 * top, left : 2 * left] = 0
    return float(_off(through(vae, pixels)[..., top + 8 : 2 * top - 8, left + 8 : 2 * left - 8]).max())


def _tint(vae: Any, level: float) -> float:
    means = levels(through(vae, torch.full((1, 3, GREY_SIDE, GREY_SIDE), 2 * level - 1))).mean((0, 2, 3))
    return float(means.max() - means.min())
