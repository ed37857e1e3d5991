"""Convert images with an embedded ICC profile to sRGB, the color space that VAEs are trained with.

* Intent: relative colorimetric with black point compensation, by LittleCMS.
* A profile that changes no level of a grid of colors by more than one counts as sRGB and is not applied.
* A profile for RGB is also applied to gray images. A profile that cannot be read, or is for another color space than
  the file's, is ignored, as in browsers: the levels count as sRGB.
"""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

_MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}
"""Pillow's mode for a profile's color space."""

_CACHED_BYTES = 2**20
"""Larger profiles are read anew for every image, so that the cache stays small."""


def to_srgb(stored: Image.Image | NDArray[np.uint8], profile: bytes) -> Image.Image | NDArray[np.uint8]:
    """Return an image as RGB in sRGB, without alpha.

    Args:
        stored: a Pillow image, or uint8 levels ``[H, W]`` or ``[H, W, 3]``.
        profile: the ICC profile embedded in the file.

    Returns:
        The converted image, or ``stored`` itself if the profile is ignored.
    """
    if isinstance(stored, np.ndarray):
        mode = "L" if stored.ndim == 2 else "RGB"
    else:
        mode = "L" if stored.mode in {"1", "L", "LA", "La"} else "CMYK" if stored.mode == "CMYK" else "RGB"
    conversion = (_conversion if len(profile) <= _CACHED_BYTES else _conversion.__wrapped__)(profile, mode)
    if conversion is None:
        return stored
    input_mode, transform = conversion
    image = Image.fromarray(stored) if isinstance(stored, np.ndarray) else stored
    return transform.apply(image if image.mode == input_mode else image.convert(input_mode))


@lru_cache(maxsize=16)
def _conversion(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform] | None:
    """Return the Pillow mode that the transform to sRGB takes, and the transform; None to ignore the profile."""
    try:
        opened = ImageCms.getOpenProfile(io.BytesIO(profile))
        input_mode = _MODES.get(opened.profile.xcolor_space.strip(), "")
        if input_mode != mode and (mode, input_mode) != ("L", "RGB"):
            return None
        srgb, intent = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        flags = ImageCms.Flags.BLACKPOINTCOMPENSATION
        transform = ImageCms.buildTransform(opened, srgb, input_mode, "RGB", intent, flags)
        if input_mode == "CMYK":
            return input_mode, transform
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        grid = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(1, -1, 3)
        before = Image.fromarray(grid if input_mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
        change = np.asarray(transform.apply(before)).astype(int) - np.asarray(before.convert("RGB"))
        return None if np.abs(change).max() <= 1 else (input_mode, transform)
    except (ImageCms.PyCMSError, ValueError, TypeError):
        return None
