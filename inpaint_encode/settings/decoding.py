"""Decoding of image and mask files, and the limits on their sizes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from .base import Frozen, section, unit
from .source import Source

__all__ = ["MASK_PRESETS", "Decoding", "Limits", "apply_preset_pattern", "validate_masks"]


class _Preset(NamedTuple):
    channel: str
    polarity: str
    pattern: str = ""


MASK_PRESETS = {
    "comfy": _Preset("alpha", "transparent"),
    "lama": _Preset("luma", "white", "{stem}_mask{n}.png"),
    "mat": _Preset("luma", "black"),
    "brushnet": _Preset("luma", "black"),
    "iopaint": _Preset("luma", "white"),
    "onetrainer": _Preset("luma", "white", "{stem}-masklabel.png"),
}
"""Mask conventions of tools: channel, polarity and file name."""


def apply_preset_pattern(given: Any) -> Any:
    """Return a command's settings with the preset's mask pattern, if its source is prefixes without a pattern."""
    if not isinstance(given, dict) or not isinstance(source := given.get("source"), dict):
        return given
    decoding = given.get("decoding")
    name = decoding.get("mask_preset") if isinstance(decoding, dict) else getattr(decoding, "mask_preset", None)
    if name not in MASK_PRESETS or source.get("pairs") or source.get("mask_pattern"):
        return given
    return {**given, "source": {**source, "mask_pattern": MASK_PRESETS[name].pattern}}


@section("Decoding", 3)
class Decoding(Frozen):
    """How image and mask files become pixels; like `RowSettings`, the same for all rows of an output."""

    mask_channel: Literal["auto", "red", "green", "blue", "alpha", "luma"] = "auto"
    """Channel to read the mask from. luma: the levels of a gray file, or the luma of a color file; alpha is ignored.
    auto: like luma, but a file with transparent pixels is rejected, because its alpha may be the mask. red, green,
    blue: that channel; in a gray file all three are equal. alpha: the alpha channel; a file without one is rejected."""
    mask_polarity: Literal["white", "black", "transparent", "opaque"] = "white"
    """Part of the mask to repaint. white: levels of 128 to 255. black: levels of 0 to 127. With --mask-channel alpha
    there are two other values. transparent: alpha of 0 to 127. opaque: alpha of 128 to 255. The default is transparent
    with --mask-channel alpha, and white with every other channel. For black and transparent, the levels are inverted
    before the mask is resized to its image."""
    mask_preset: Literal["comfy", "lama", "mat", "brushnet", "iopaint", "onetrainer"] | None = None
    """Tool whose mask convention to use. This sets --mask-channel and --mask-polarity, and for lama and onetrainer also
    --mask-pattern. Options that you give take precedence."""
    icc: Literal["srgb", "ignore"] = "srgb"
    """How to treat embedded color profiles of images. srgb: convert the image to sRGB. ignore: keep the pixel
    values."""
    resize: Annotated[int, Field(ge=0), unit("PIXELS", "none")] = 0
    """Resize each image so that its shorter side has this length. Then each side is cropped to a multiple of the number
    that the VAE requires, usually 8."""
    resolution: Annotated[str, unit("WxH")] = ""
    """Resize and crop each image to this width and height, such as 1024x768. The image is resized to cover that size,
    then cropped at the center."""
    buckets: Annotated[int, Field(ge=0), unit("PIXELS", "none")] = 0
    """Aspect-ratio bucketing: each image is resized and cropped to the bucket with the closest aspect ratio and at most
    this many pixels. For SDXL use 1048576, the pixels of 1024x1024. No side is shorter than half the side of the
    largest square bucket, or longer than twice that side."""
    bucket_step: Annotated[int, Field(ge=1), unit("PIXELS")] = 64
    """Bucket sides are multiples of this number. Needs --buckets."""
    upscale: bool = False
    """Enlarge images that are too small for --resize, --resolution or --buckets. Without --upscale they are rejected as
    size.too_small."""

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, given: Any) -> Any:
        """Fill in what is not given: from the preset, then the polarity that fits the channel."""
        if not isinstance(given, dict):
            return given
        preset = MASK_PRESETS.get(given.get("mask_preset") or "")
        channel = given.get("mask_channel", preset.channel if preset else "auto")
        polarity = "transparent" if channel == "alpha" else "white"
        if preset and (preset.channel == "alpha") == (channel == "alpha"):
            polarity = preset.polarity
        return {"mask_channel": channel, "mask_polarity": polarity, **given}

    @field_validator("resolution")
    @classmethod
    def _validate_resolution(cls, value: str) -> str:
        if value and not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", value):
            sides = re.findall(r"[1-9]\d*", value) or ["1024"]
            nearest = f"{sides[0]}x{sides[-1]}"
            raise ValueError(f"--resolution {value} must be WIDTHxHEIGHT in pixels; did you mean {nearest}?")
        return value

    @model_validator(mode="after")
    def _validate_polarity(self) -> Self:
        if (self.mask_polarity in ("transparent", "opaque")) != (self.mask_channel == "alpha"):
            allowed = "transparent or opaque" if self.mask_channel == "alpha" else "white or black"
            raise ValueError(
                f"--mask-polarity {self.mask_polarity} does not fit --mask-channel {self.mask_channel}; use {allowed}"
            )
        return self

    @model_validator(mode="after")
    def _validate_size(self) -> Self:
        options = {"--resize": self.resize, "--resolution": self.resolution, "--buckets": self.buckets}
        given = [name for name, value in options.items() if value]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} cannot be combined; give one of them")
        if self.upscale and not given:
            raise ValueError("--upscale needs a size; add --resize, --resolution or --buckets")
        if self.bucket_step != 64 and not self.buckets:
            raise ValueError("--bucket-step needs --buckets; add it")
        return self

    def recorded(self) -> dict[str, Any]:
        """Return the fields that an output records: a preset is recorded as its channel and polarity."""
        return self.model_dump(exclude={"mask_preset"})


def validate_masks(source: Source, decoding: Decoding) -> None:
    """Raise ValueError if there are no masks, or if options for mask files are given and masks are drawn."""
    if source.is_own_mask and decoding.mask_channel != "alpha":
        raise ValueError(
            "no masks are given; add --masks, --mask-pattern where masks are beside their images, --mask-channel alpha "
            "where each image's alpha is its mask, or --random-masks 1 to draw masks"
        )
    if source.random_masks and (decoding.mask_channel, decoding.mask_polarity) != ("auto", "white"):
        raise ValueError(
            "--mask-channel, --mask-polarity and --mask-preset are for mask files, and --random-masks reads none; "
            "leave out one or the other"
        )


@section("Decoding", 3)
class Limits(Frozen):
    """Limits on the sizes of files; they do not change rows, and may differ from run to run."""

    max_pixels: Annotated[int, Field(ge=1), unit("PIXELS")] = 64_000_000
    """Largest image or mask to decode, in pixels. A file whose header declares more pixels is rejected before it is
    decoded. A task holds the pixels of a chunk in memory: at most --chunk-rows times --max-pixels, 3 bytes each. For
    large images, lower --chunk-rows. A lower --max-pixels also saves memory, but rejects larger images."""
    max_bytes: Annotated[int, Field(ge=1), unit("BYTES")] = 256 * 2**20
    """Largest file to fetch, in bytes. A larger file is rejected. The default is enough for 64 megapixels of
    uncompressed RGB."""
