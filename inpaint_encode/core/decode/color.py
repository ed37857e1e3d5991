"""Embedded colour profiles: an image's levels become those of sRGB, with which VAEs are trained.

* Intent: relative colorimetric with black point compensation, by LittleCMS.
* A profile that moves no level of a cube of colours by more than one is sRGB, and is not applied.
* A profile of RGB is applied to grey too. One that cannot be read, or is of other colours than the file, is ignored,
  as browsers do, and the levels are taken for sRGB.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from .levels import in_mode

__all__ = ["to_srgb"]

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's modes by a profile's colour space."""

_Conversion = tuple[str, ImageCms.ImageCmsTransform]
"""The mode that a transform to RGB takes, and the transform."""


def to_srgb(found: Image.Image | NDArray[np.uint8], profile: bytes) -> Image.Image | NDArray[np.uint8]:
    """Return an image, or grey or RGB levels, in sRGB, alpha dropped; as they are, where ``profile`` says nothing."""
    conversion = _conversion(profile, _colours_of(found))
    if conversion is None:
        return found
    mode, transform = conversion
    return transform.apply(in_mode(found if isinstance(found, Image.Image) else Image.fromarray(found), mode))


def _colours_of(found: Image.Image | NDArray[np.uint8]) -> str:
    if isinstance(found, np.ndarray):
        return "L" if found.ndim == 2 else "RGB"
    return "L" if found.mode in {"1", "L", "LA", "La"} else "CMYK" if found.mode == "CMYK" else "RGB"


@lru_cache(maxsize=64)
def _conversion(profile: bytes, mode: str) -> _Conversion | None:
    """What brings ``mode`` from ``profile`` to sRGB; None where that is nothing."""
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        takes = _MODES.get(opened.profile.xcolor_space.strip(), "")
        if takes != mode and (mode, takes) != ("L", "RGB"):
            return None
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(opened, srgb, takes, "RGB", intent, flags)
        return None if _changes_nothing(takes, transform) else (takes, transform)
    except (ImageCms.PyCMSError, ValueError, TypeError):
        return None


def _changes_nothing(mode: str, transform: ImageCms.ImageCmsTransform) -> bool:
    if mode == "CMYK":
        return False
    levels = np.arange(0, 256, 15, dtype=np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
    before = Image.fromarray(cube if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    moved = np.asarray(transform.apply(before)).astype(int) - np.asarray(before.convert("RGB"))
    return bool(np.abs(moved).max() <= 1)
