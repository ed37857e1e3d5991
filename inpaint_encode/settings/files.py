"""How an image's and a mask's file are read, and what is not read at all."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from .base import Frozen, measured_in, section
from .source import Source

__all__ = ["MASK_PRESETS", "Decoding", "Limits", "preset_pattern", "refuse_masks_that_disagree"]


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
"""What each of these tools takes for a mask, and for the name of one."""


def preset_pattern(given: Any) -> Any:
    """Give a source that is told by prefixes and without a pattern that of the preset."""
    if not isinstance(given, dict) or not isinstance(source := given.get("source"), dict):
        return given
    decoding = given.get("decoding")
    name = decoding.get("mask_preset") if isinstance(decoding, dict) else getattr(decoding, "mask_preset", None)
    if name not in MASK_PRESETS or source.get("pairs") or source.get("mask_pattern"):
        return given
    return {**given, "source": {**source, "mask_pattern": MASK_PRESETS[name].pattern}}


@section("How files are read", 3)
class Decoding(Frozen):
    """How an image's and a mask's file become pixels; like `RowSettings`, the same for all rows of an output."""

    mask_channel: Literal["auto", "red", "green", "blue", "alpha", "luma"] = "auto"
    """What of a mask file is the mask. luma is grey as it is, colour by its luma, whatever its alpha says; auto is the
    same, but rejects a file whose alpha is not opaque everywhere, since it might be the mask. Grey is red, green and
    blue alike; alpha rejects a file that has none."""
    mask_polarity: Literal["white", "black", "transparent", "opaque"] = "white"
    """What is repainted. With --mask-channel alpha it is transparent, its default there, or opaque. Levels of 128 and
    more are white or opaque, those up to 127 black or transparent; a mask of another size is first inverted, then
    resized."""
    mask_preset: Literal["comfy", "lama", "mat", "brushnet", "iopaint", "onetrainer"] | None = None
    """A tool whose masks these are. Sets --mask-channel, --mask-polarity and for lama and onetrainer --mask-pattern,
    where they are not given."""
    icc: Literal["srgb", "ignore"] = "srgb"
    """Convert an image by its embedded colour profile to sRGB, or ignore the profile."""
    resize: Annotated[int, Field(ge=0), measured_in("PIXELS", "none")] = 0
    """Length in pixels that an image's shorter side is brought to, before the crop."""
    resolution: Annotated[str, measured_in("WxH")] = ""
    """Pixels of every image, such as 1024x768. It is resized to cover that, then cropped at the centre."""
    buckets: Annotated[int, Field(ge=0), measured_in("PIXELS", "none")] = 0
    """A budget of pixels, 1048576 for SDXL: every image is brought, as by --resolution, to the one of the sizes of at
    most so many that is nearest to its proportions. Their sides are from half to twice the square's."""
    bucket_step: Annotated[int, Field(ge=1), measured_in("PIXELS")] = 64
    """What the sides of --buckets are multiples of, in pixels."""
    upscale: bool = False
    """With one of these three, enlarge images that are too small; without it they are rejected as size.too_small."""

    @model_validator(mode="before")
    @classmethod
    def _conventions(cls, given: Any) -> Any:
        """Let the preset, and then the channel, say what the command does not."""
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
    def _width_x_height(cls, value: str) -> str:
        if value and not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", value):
            sides = re.findall(r"[1-9]\d*", value) or ["1024"]
            nearest = f"{sides[0]}x{sides[-1]}"
            raise ValueError(f"--resolution {value} is not WIDTHxHEIGHT in pixels; did you mean {nearest}?")
        return value

    @model_validator(mode="after")
    def _polarity_of_channel(self) -> Self:
        of_alpha = self.mask_polarity in ("transparent", "opaque")
        if of_alpha == (self.mask_channel == "alpha"):
            return self
        has = "is transparent or opaque" if self.mask_channel == "alpha" else "is white or black; alpha has the others"
        raise ValueError(f"--mask-polarity {self.mask_polarity}: --mask-channel {self.mask_channel} {has}")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        given = {"--resize": self.resize, "--resolution": self.resolution, "--buckets": self.buckets}
        named = [name for name, value in given.items() if value]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} each decide an image's size; give one of them")
        if self.upscale and not named:
            raise ValueError("--upscale says how to resize; add --resize, --resolution or --buckets")
        if self.bucket_step != 64 and not self.buckets:
            raise ValueError("--bucket-step is of --buckets; give both")
        return self

    def recorded(self) -> dict[str, Any]:
        """What of this an output keeps: a preset is the channel and the polarity that it stands for."""
        return self.model_dump(exclude={"mask_preset"})


def refuse_masks_that_disagree(source: Source, decoding: Decoding) -> None:
    """Raise ValueError if what is read of masks does not go with where they come from."""
    if source.is_own_mask and decoding.mask_channel != "alpha":
        raise ValueError(
            "images alone are no pairs; add --masks, --mask-pattern where masks lie beside images, "
            "--mask-channel alpha where each image's alpha is its mask, or --random-masks 1 to draw some"
        )
    if source.random_masks and (decoding.mask_channel, decoding.mask_polarity) != ("auto", "white"):
        raise ValueError(
            "--mask-channel, --mask-polarity and --mask-preset say how mask files are read, and --random-masks draws "
            "them; leave out one or the other"
        )


@section("How files are read", 3)
class Limits(Frozen):
    """What is not read at all; they leave no trace in the rows, and may differ from run to run."""

    max_pixels: Annotated[int, Field(ge=1), measured_in("PIXELS")] = 64_000_000
    """An image or mask whose header says more is rejected before it is decoded. A chunk's pixels are in memory at once:
    up to --chunk-rows times this many, 3 bytes each; lower either for large images."""
    max_bytes: Annotated[int, Field(ge=1), measured_in("BYTES")] = 256 * 2**20
    """A file of more is rejected and not fetched; 64 megapixels of uncompressed RGB are less."""
