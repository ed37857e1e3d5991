"""Which part of an image becomes a latent: whole numbers only, so that decoding needs no torch."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CropBox", "crop_box"]


class CropBox(NamedTuple):
    """A centred crop, in pixels of the uncropped image."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the crop along the height and the width."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


def crop_box(height: int, width: int, multiple: int) -> CropBox:
    """Return the largest centred crop whose sides are multiples of ``multiple``.

    Raises:
        ValueError: a side is smaller than ``multiple``, so that nothing would be left.
    """
    if min(height, width) < multiple:
        raise ValueError(f"{height} x {width} pixels: a side is smaller than the VAE's multiple of {multiple}")
    return CropBox(
        top=(height % multiple) // 2,
        left=(width % multiple) // 2,
        height=height // multiple * multiple,
        width=width // multiple * multiple,
    )
