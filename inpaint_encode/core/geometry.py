"""Which part of an image becomes a latent, at which size: whole numbers only, so that decoding needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple, Self

from inpaint_encode.metadata import RowMetadata

__all__ = ["CropBox", "Geometry", "Sizing", "bucket_sizes", "crop_box", "parse_resolution"]


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


class Geometry(NamedTuple):
    """What becomes of an image's size: resized, then cropped.

    Pixel ``y`` of the crop lies at ``(crop.top + y + 0.5) * source_height / resized_height - 0.5`` of the source;
    along the width alike.
    """

    resized_height: int
    resized_width: int
    crop: CropBox
    """In pixels of the resized image."""


def crop_box(height: int, width: int, multiple: int) -> CropBox:
    """Return the largest centred crop whose sides are multiples of ``multiple``.

    Raises:
        ValueError: a side is smaller than ``multiple``, so that nothing would be left.
    """
    if min(height, width) < multiple:
        raise ValueError(f"{height} x {width} pixels: a side is smaller than the VAE's multiple of {multiple}")
    return _centred(height, width, height // multiple * multiple, width // multiple * multiple)


def _centred(height: int, width: int, crop_height: int, crop_width: int) -> CropBox:
    return CropBox((height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width)


def parse_resolution(spelled: str) -> tuple[int, int]:
    """Height and width of ``WIDTHxHEIGHT``."""
    width, height = spelled.split("x")
    return int(height), int(width)


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """How images are brought to size; the fields are those of `inpaint_encode.settings.Decoding`."""

    multiple: int
    """Multiple that the sides of every crop have, in pixels: the VAE's ``crop_multiple``."""
    resize: int = 0
    resolution: str = ""
    buckets: int = 0
    bucket_step: int = 64
    upscale: bool = False

    @classmethod
    def of(cls, metadata: RowMetadata) -> Self:
        """Return the sizing of an output's rows."""
        options = {one.name: getattr(metadata, one.name) for one in fields(cls) if one.name != "multiple"}
        return cls(multiple=metadata.vae.crop_multiple, **options)

    def check(self) -> None:
        """Hold the wanted sizes against the VAE's ratio.

        Raises:
            ValueError: they cannot be had; the message says which can.
        """
        if self.resize and self.resize < self.multiple:
            least = f"which is {self.multiple} pixels; give at least that"
            raise ValueError(f"--resize {self.resize} is less than one latent pixel, {least}")
        if self.buckets and self.bucket_step % self.multiple:
            step = -(-self.bucket_step // self.multiple) * self.multiple
            raise ValueError(f"--bucket-step {self.bucket_step} is no multiple of the VAE's {self.multiple}; {step} is")
        if self.buckets and not bucket_sizes(self.buckets, self.bucket_step):
            least = f"; give --buckets {self.bucket_step**2} or more, or a smaller --bucket-step"
            raise ValueError(
                f"--buckets {self.buckets}: not one square of --bucket-step {self.bucket_step} fits{least}"
            )
        sides = parse_resolution(self.resolution) if self.resolution else (0, 0)
        if any(side % self.multiple for side in sides):
            height, width = (max(1, round(side / self.multiple)) * self.multiple for side in sides)
            multiple = f"no multiple of the VAE's {self.multiple}; the nearest is {width}x{height}"
            raise ValueError(f"--resolution {self.resolution} is {multiple}")

    def fit(self, height: int, width: int) -> Geometry:
        """Return what becomes of an image of this size.

        Raises:
            ValueError: it is too small: for one latent pixel, or to be resized without ``upscale``.
        """
        if self.resize:
            resized = self._shrunk(height, width, *_short_side(height, width, self.resize))
            return Geometry(*resized, crop_box(*resized, self.multiple))
        if target := self._target(height, width):
            resized = self._shrunk(height, width, *_covering(height, width, *target))
            return Geometry(*resized, _centred(*resized, *target))
        return Geometry(height, width, crop_box(height, width, self.multiple))

    def _target(self, height: int, width: int) -> tuple[int, int] | None:
        """Height and width that the crop must have, if they are given."""
        if self.resolution:
            return parse_resolution(self.resolution)
        if self.buckets:
            return _nearest(height, width, bucket_sizes(self.buckets, self.bucket_step))
        return None

    def _shrunk(self, height: int, width: int, to_height: int, to_width: int) -> tuple[int, int]:
        if (to_height > height or to_width > width) and not self.upscale:
            raise ValueError(
                f"{height} x {width} pixels would have to be enlarged to {to_height} x {to_width}; --upscale allows it"
            )
        return to_height, to_width


def _short_side(height: int, width: int, short: int) -> tuple[int, int]:
    if height <= width:
        return short, _rounded(width * short, height)
    return _rounded(height * short, width), short


def _covering(height: int, width: int, over_height: int, over_width: int) -> tuple[int, int]:
    """The smallest size in the image's proportions that covers another."""
    if over_height * width >= over_width * height:
        return over_height, _rounded(width * over_height, height)
    return _rounded(height * over_width, width), over_width


def _rounded(numerator: int, denominator: int) -> int:
    """The nearest whole number, 1 at least; halves up."""
    return max(1, (2 * numerator + denominator) // (2 * denominator))


@lru_cache(maxsize=16)
def bucket_sizes(pixels: int, step: int) -> tuple[tuple[int, int], ...]:
    """Heights and widths that images are sorted into, for a budget of ``pixels``; the widest last.

    Sides are multiples of ``step`` from half to twice that of the largest square, which is one of them; to each width
    goes the largest height that keeps to the budget, and to each height the largest width.
    """
    side = math.isqrt(pixels) // step * step
    low, high = max(step, side // 2 // step * step), 2 * side
    longest = {(long, pixels // long // step * step) for long in range(low, high + 1, step)}
    sizes = {(long, min(other, high)) for long, other in longest if other >= low} | ({(side, side)} if side else set())
    return tuple(sorted(sizes | {(width, height) for height, width in sizes}, key=lambda size: size[1] / size[0]))


def _nearest(height: int, width: int, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The size of the nearest proportions; of two alike the one with more pixels."""

    def distance(size: tuple[int, int]) -> tuple[float, int]:
        here, there = height * size[1], width * size[0]
        return max(here, there) / min(here, there), -size[0] * size[1]

    return min(sizes, key=distance)
