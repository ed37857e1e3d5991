"""Sizes: how an image is resized and cropped. Whole numbers only, so that decoding does not need torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import NamedTuple, Self

from inpaint_encode.metadata import RowMetadata


class CropBox(NamedTuple):
    """A centered crop, in pixels of the uncropped image."""

    top: int
    left: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the crop: rows and columns."""
        return slice(self.top, self.top + self.height), slice(self.left, self.left + self.width)


class Geometry(NamedTuple):
    """How an image is resized and then cropped.

    Pixel ``y`` of the crop lies at ``(crop.top + y + 0.5) * source_height / resized_height - 0.5`` of the source; the
    same holds for the width.
    """

    resized_height: int
    resized_width: int
    crop: CropBox
    """In pixels of the resized image."""


def crop_box(height: int, width: int, multiple: int) -> CropBox:
    """Return the largest centered crop whose sides are multiples of ``multiple``.

    Raises:
        ValueError: a side is smaller than ``multiple``, so nothing would be left.
    """
    if min(height, width) < multiple:
        size = format_size(height, width)
        raise ValueError(f"{size} pixels: the VAE needs at least {multiple} pixels on each side")
    top, left = height % multiple // 2, width % multiple // 2
    return CropBox(top, left, height // multiple * multiple, width // multiple * multiple)


def format_size(height: int, width: int) -> str:
    """Return ``WIDTH x HEIGHT``: all messages state sizes in the order of ``--resolution``."""
    return f"{width} x {height}"


def parse_resolution(text: str) -> tuple[int, int]:
    """Return height and width of ``WIDTHxHEIGHT``."""
    width, height = text.split("x")
    return int(height), int(width)


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Options for the size of images; the fields are those of `inpaint_encode.settings.Decoding`."""

    multiple: int
    """The sides of every crop are multiples of this many pixels: the VAE's ``crop_multiple``."""
    resize: int = 0
    resolution: str = ""
    buckets: int = 0
    bucket_step: int = 64
    upscale: bool = False

    @classmethod
    def of(cls, metadata: RowMetadata) -> Self:
        """Return the sizing for rows with this metadata."""
        options = {one.name: getattr(metadata, one.name) for one in fields(cls) if one.name != "multiple"}
        return cls(multiple=metadata.vae.crop_multiple, **options)

    def check(self) -> None:
        """Check the options against the VAE's multiple.

        Raises:
            ValueError: the VAE cannot encode these sizes; the message names a size that it can encode.
        """
        if self.resize and self.resize < self.multiple:
            raise ValueError(
                f"--resize {self.resize} must be at least {self.multiple} for this VAE; "
                f"give --resize {self.multiple} or more"
            )
        if self.buckets and self.bucket_step % self.multiple:
            step = -(-self.bucket_step // self.multiple) * self.multiple
            raise ValueError(
                f"--bucket-step {self.bucket_step} must be a multiple of {self.multiple} for this VAE; "
                f"give --bucket-step {step}"
            )
        if self.buckets and not bucket_sizes(self.buckets, self.bucket_step):
            raise ValueError(
                f"--buckets {self.buckets} is less than one bucket of {self.bucket_step} x {self.bucket_step} pixels; "
                f"give --buckets {self.bucket_step**2} or more, or a smaller --bucket-step"
            )
        sides = parse_resolution(self.resolution) if self.resolution else (0, 0)
        if any(side % self.multiple for side in sides):
            height, width = (max(1, round(side / self.multiple)) * self.multiple for side in sides)
            raise ValueError(
                f"--resolution {self.resolution} must be a multiple of {self.multiple} for this VAE; "
                f"the nearest is {width}x{height}"
            )

    def fit(self, height: int, width: int) -> Geometry:
        """Return how an image of ``height`` x ``width`` pixels is resized and cropped.

        Raises:
            ValueError: a side is below the VAE's multiple, or the image would have to be enlarged without ``upscale``.
        """
        target: tuple[int, int] | None = None  # height and width of the crop, if the options fix them
        resized = height, width
        if self.resize:  # to this shorter side
            short = self.resize
            resized = (
                (short, _divide(width * short, height)) if height <= width else (_divide(height * short, width), short)
            )
        elif self.resolution or self.buckets:  # to the smallest size that covers the target
            target = parse_resolution(self.resolution) if self.resolution else self._bucket(height, width)
            if target[0] * width >= target[1] * height:
                resized = target[0], _divide(width * target[0], height)
            else:
                resized = _divide(height * target[1], width), target[1]
        if (resized[0] > height or resized[1] > width) and not self.upscale:
            size, enlarged = format_size(height, width), format_size(*resized)
            raise ValueError(f"{size} pixels would have to be enlarged to {enlarged}; --upscale allows it")
        if target is None:
            return Geometry(*resized, crop_box(*resized, self.multiple))
        return Geometry(*resized, CropBox((resized[0] - target[0]) // 2, (resized[1] - target[1]) // 2, *target))

    def _bucket(self, height: int, width: int) -> tuple[int, int]:
        """Return the aspect-ratio bucket closest to these proportions; of two equally close, the larger."""

        def distance(size: tuple[int, int]) -> tuple[float, int]:
            ours, theirs = height * size[1], width * size[0]
            return max(ours, theirs) / min(ours, theirs), -size[0] * size[1]

        return min(bucket_sizes(self.buckets, self.bucket_step), key=distance)


def _divide(numerator: int, denominator: int) -> int:
    """Divide and round to the nearest whole number, halves up; at least 1."""
    return max(1, (2 * numerator + denominator) // (2 * denominator))


@lru_cache(maxsize=16)
def bucket_sizes(pixels: int, step: int) -> tuple[tuple[int, int], ...]:
    """Return the aspect-ratio buckets for a budget of ``pixels``, as heights and widths, the widest last.

    Sides are multiples of ``step``, from half to twice the side of the largest square, which is one of the buckets.
    Each width has the largest height within the budget, and each height the largest width.
    """
    side = math.isqrt(pixels) // step * step
    low, high = max(step, side // 2 // step * step), 2 * side
    longest = {(long, pixels // long // step * step) for long in range(low, high + 1, step)}
    sizes = {(long, min(other, high)) for long, other in longest if other >= low} | ({(side, side)} if side else set())
    return tuple(sorted(sizes | {(width, height) for height, width in sizes}, key=lambda size: size[1] / size[0]))
