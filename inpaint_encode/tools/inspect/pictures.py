"""One row in pictures: what it was made of, what is stored, and what the VAE makes of that again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["TITLES", "WHITE_AT", "LatentColours", "RowPixels", "fitted", "pictures_of", "psnr"]

WHITE_AT = 64
"""Levels of 255 by which a pixel differs, in the mean of its three channels, where the difference is drawn in white."""

TITLES: Mapping[str, str] = MappingProxyType(
    {
        "image": "the source, cropped",
        "mask": "white is to be repainted",
        "grown mask": "stored; orange is what growing added",
        "greyed image": "what the VAE was given",
        "latent": "stored; its channels in false colours",
        "decoded": "the VAE's picture of the latent",
        "difference": f"outside of the mask; white is {WHITE_AT} levels or more",
    }
)
"""What there is a picture of, in the order of the job's steps, and how it is to be read."""

_KEPT, _REPAINTED, _RING, _LEFT_OUT = (38, 40, 46), (244, 243, 240), (240, 131, 48), (86, 92, 104)
_RAMP = np.array([(12, 12, 16), (120, 28, 84), (240, 131, 48), (255, 255, 240)], np.float32)
"""Colours of a difference, from none to `WHITE_AT`."""

_RANGE = 2.5
"""Standard deviations that latent colours span on either side; what is beyond is drawn as its end."""


class RowPixels(NamedTuple):
    """One pair as the job left it; every array but ``samples`` has the sides of the crop."""

    key: str
    image: NDArray[np.uint8] | None
    """``H x W x 3``, cropped and not yet grey; None where the source is not to be had."""
    mask: NDArray[np.generic] | None
    """``H x W``, 0 or 1, not grown; None as above."""
    noise_mask: NDArray[np.generic]
    """``H x W``, 0 or 1, grown."""
    samples: NDArray[np.floating[Any]]
    """``C x h x w``, the latent; of moments the means."""
    decoded: NDArray[np.uint8] | None = None
    """``H x W x 3``, by the VAE's decoder; None where there is none."""


@dataclass(frozen=True)
class LatentColours:
    """How the channels of some latents become colours, so that pictures of these compare.

    Brightness and two colours are the three directions in which the latents' cells vary most, by their covariance.
    """

    mean: NDArray[np.float64]
    """``[C]``"""
    axes: NDArray[np.float64]
    """``[3, C]``, each a direction divided by its standard deviation; zeros where the latents have fewer."""

    @classmethod
    def of(cls, mean: NDArray[np.float64], covariance: NDArray[np.float64]) -> Self:
        """Take the directions of a covariance ``[C, C]``."""
        variances, directions = np.linalg.eigh(covariance)
        axes = np.zeros((3, len(mean)))
        for axis, at in zip(axes, range(len(mean) - 1, -1, -1), strict=False):
            direction = directions[:, at] * np.sign(directions[np.abs(directions[:, at]).argmax(), at])
            axis[:] = direction / max(float(variances[at]), 1e-12) ** 0.5
        return cls(mean, axes)

    @classmethod
    def fitted(cls, latents: Iterable[NDArray[np.floating[Any]]]) -> Self:
        """Take the directions of all cells of some latents of as many channels."""
        cells = np.concatenate([latent.reshape(len(latent), -1) for latent in latents], axis=1).astype(np.float64)
        return cls.of(cells.mean(axis=1), np.atleast_2d(np.cov(cells, bias=True)))

    def picture(self, samples: NDArray[np.floating[Any]]) -> Image.Image:
        """One pixel for each cell of ``samples`` ``[C, h, w]``."""
        centred = samples.astype(np.float64) - self.mean[:, None, None]
        bright, warm, green = np.clip(np.tensordot(self.axes, centred, 1) / _RANGE, -1, 1)
        red_green_blue = np.stack([bright + 0.5 * warm, bright + 0.5 * green, bright - 0.5 * warm - 0.5 * green], -1)
        levels = np.clip(0.5 + red_green_blue / 2.6, 0, 1) * 255
        return Image.fromarray(np.rint(levels).astype(np.uint8))


def pictures_of(row: RowPixels, colours: LatentColours) -> dict[str, Image.Image]:
    """Return pictures by their `TITLES`, in that order; what there is nothing of is left out.

    All have the sides of the crop but the latent's, which has a pixel for each cell. A mask is white where the image
    is repainted, and what growing adds is orange.
    """
    grown = row.noise_mask != 0
    pictures = {}
    if row.image is not None and row.mask is not None:
        repainted = row.mask != 0
        pictures["image"] = Image.fromarray(row.image)
        pictures["mask"] = _mask_picture(repainted, repainted)
        pictures["grown mask"] = _mask_picture(repainted, grown)
        pictures["greyed image"] = Image.fromarray(np.where(repainted[..., None], np.uint8(128), row.image))
    else:
        pictures["grown mask"] = _mask_picture(grown, grown)
    pictures["latent"] = colours.picture(row.samples)
    if row.decoded is not None:
        pictures["decoded"] = Image.fromarray(row.decoded)
        if row.image is not None:
            pictures["difference"] = _difference_picture(row.image, row.decoded, grown)
    return pictures


def psnr(row: RowPixels) -> float | None:
    """Peak signal-to-noise ratio in decibels of the decoded image against the source, where it is not repainted.

    Of 8-bit levels outside of the grown mask; None where one of the two is not there or the mask covers all, infinite
    where they are equal.
    """
    kept = row.noise_mask == 0
    if row.image is None or row.decoded is None or not kept.any():
        return None
    error = row.image[kept].astype(np.float64) - row.decoded[kept]
    mean = float(np.mean(error**2))
    return float("inf") if mean == 0 else float(10 * np.log10(255**2 / mean))


def fitted(picture: Image.Image, side: int) -> Image.Image:
    """Bring the longer side to ``side`` pixels; small ones are enlarged so that their pixels show."""
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def _mask_picture(mask: NDArray[np.bool_], grown: NDArray[np.bool_]) -> Image.Image:
    colours = np.array([_KEPT, _RING, _REPAINTED], dtype=np.uint8)
    return Image.fromarray(colours[np.where(mask, 2, grown.astype(np.intp))])


def _difference_picture(image: NDArray[np.uint8], decoded: NDArray[np.uint8], grown: NDArray[np.bool_]) -> Image.Image:
    """Where the mask is, it is a plain grey-blue."""
    levels = np.abs(image.astype(np.float32) - decoded).mean(axis=-1)
    at = np.clip(levels / WHITE_AT, 0, 1) * (len(_RAMP) - 1)
    below = np.minimum(at.astype(np.intp), len(_RAMP) - 2)
    share = (at - below)[..., None]
    ramp = (_RAMP[below] * (1 - share) + _RAMP[below + 1] * share).astype(np.uint8)
    return Image.fromarray(np.where(grown[..., None], np.array(_LEFT_OUT, np.uint8), ramp))
