"""Source of the pairs, access to its store, and how its files become pixels."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, field_validator, model_validator

from inpaint_encode.stores.base import Access
from inpaint_encode.stores.redaction import redacted

from .base import Frozen, section, unit


@section("Source", 1)
class Source(Frozen):
    """Images and masks to pair: two prefixes to list, a list of pairs, or files that contain them.

    In prefixes, an image and a mask are a pair if their relative paths without suffixes are equal, or by
    ``mask_pattern``. In a list, the masks of an image have ``mask_index`` 0, 1, ... in the order of the list.
    """

    images: Annotated[str, unit("URI")] = ""
    """Prefix or folder of the images. Accepts s3://bucket/prefix, gs://bucket/prefix, file:///path or a plain path.
    Subfolders are included."""
    masks: Annotated[str, unit("URI")] = ""
    """Prefix or folder of the masks. White is repainted by default; see --mask-polarity. With --mask-pattern, the
    default is the value of --images. With --mask-channel alpha, and without --masks and --mask-pattern, each image is
    its own mask."""
    mask_pattern: Annotated[str, unit("NAME")] = ""
    """File name of masks, with {stem} for the image's name and {n} for a number, such as {stem}_mask{n}.png. A file
    that matches is a mask of the image named {stem} in the same relative folder. {n} has one to nine digits and allows
    several masks per image. With {n}, each mask forms its own pair; the pair's key (its unique name in the output) is
    the mask's path without the extension. Without {n}, the key is the image's path without the extension. The case of
    the extension does not matter. If images and masks share a prefix, a file is a mask if it matches and an image named
    {stem} exists; all other files are images."""
    pairs: Annotated[str, unit("URI")] = ""
    """List of pairs, Parquet files or tars. Use it instead of --images and --masks. Give one .parquet, .csv, .jsonl or
    .tar file, or a folder or prefix with Parquet files or with tars, not both. A list contains URIs, absolute or
    relative to its own folder. For a list of URIs, the versions of objects are not checked, so --refresh does not
    notice an object that was replaced under the same name. Parquet files may contain the images and masks themselves,
    as bytes or struct<bytes, path>. Other columns are copied to the output; those of CSV become strings. A tar is a
    WebDataset: a/042.jpg with a/042.mask.png, or with a/042.mask0.png and a/042.mask1.png. The files a/042.json and
    a/042.txt of the same sample are copied as strings."""
    image_column: Annotated[str, unit("COLUMN")] = "image"
    """Column of --pairs with the images or their URIs."""
    mask_column: Annotated[str, unit("COLUMN")] = "mask"
    """Column of --pairs with the masks or their URIs. In tars, it is the part of a mask's file name after the sample's
    name: with the default, the mask of a/042.jpg is a/042.mask.png. If it equals --image-column, each image is its own
    mask."""
    key_column: Annotated[str, unit("COLUMN")] = ""
    """Column of --pairs with a unique key for each pair. By default, the key in a list is the image's relative path
    without the extension: a/042 for a/042.jpg. The image's second mask has the key a/042/1, the third a/042/2. The key
    in a Parquet file with images is the file's path and the row's number, counted from 0: train-0/12. The key in a tar
    is the tar's path and the sample's name: train-0/a/042. The mask a/042.mask1.png in a tar has the key
    train-0/a/042/1. In tars the only possible value is __key__, the sample's name."""
    random_masks: Annotated[int, Field(ge=0, le=1_000), unit("COUNT")] = 0
    """Number of masks to draw for each image, 0 to 1,000. Use it if there are no masks. A mask depends only on
    --mask-style, --mask-seed, the pair's key, the mask's number and the image's size, so every run draws the same
    masks."""
    mask_style: Literal["brush", "box", "mixed"] = "mixed"
    """Shapes that --random-masks draws. brush: 1 to 4 strokes, each 1/25 to 1/6 of the image's shorter side wide. box:
    1 to 4 boxes, whose sides are 1/8 to 1/2 of the image's sides. mixed: for each mask one of the two, at random."""
    mask_seed: Annotated[int, Field(ge=0), unit("NUMBER")] = 0
    """Seed of --random-masks. Another seed draws other masks."""

    @model_validator(mode="after")
    def _validate_source(self) -> Self:
        listed = self.images or self.masks or self.mask_pattern
        columns = (self.image_column, self.mask_column, self.key_column) != ("image", "mask", "")
        if self.pairs and listed:
            raise ValueError(
                "--pairs already contains images and masks; leave out --images, --masks and --mask-pattern"
            )
        if not self.pairs and not listed:
            raise ValueError("no source is given; add --images and --masks, or --pairs")
        if not self.pairs and not self.images:
            raise ValueError("--masks and --mask-pattern need images; add --images")
        if not self.pairs and columns:
            raise ValueError("--image-column, --mask-column and --key-column are columns of --pairs; add --pairs")
        if self.random_masks and (self.masks or self.mask_pattern or self.mask_column != "mask"):
            raise ValueError(
                "--random-masks cannot be combined with --masks, --mask-pattern or --mask-column; "
                "leave out one or the other"
            )
        if not self.random_masks and (self.mask_style, self.mask_seed) != ("mixed", 0):
            raise ValueError("--mask-style and --mask-seed need --random-masks; add --random-masks 1")
        return self

    @property
    def is_own_mask(self) -> bool:
        """Whether each image is its own mask: there are no mask files, and no masks are drawn."""
        alone = self.image_column == self.mask_column if self.pairs else not (self.masks or self.mask_pattern)
        return alone and not self.random_masks

    @field_validator("mask_pattern")
    @classmethod
    def _validate_pattern(cls, value: str) -> str:
        plain = value.replace("{stem}", "", 1).replace("{n}", "", 1)
        if value and ("{stem}" not in value or not re.fullmatch(r"[^/{}]*\.[^./{}]+", plain)):
            raise ValueError(
                f"--mask-pattern {value!r} must be a file name with an extension, {{stem}} once and {{n}} at most "
                "once, such as {stem}_mask{n}.png"
            )
        if re.search(r"\{stem\}\d*\{n\}|\{n\}\d*\{stem\}", value):
            raise ValueError(
                f"--mask-pattern {value!r} needs a character that is not a digit between {{stem}} and {{n}}, "
                "such as {stem}_{n}.png"
            )
        return value


@section("Source", 1)
class SourceAccess(Frozen):
    """Access to the source's store; the output's store is always accessed by the environment's settings."""

    anonymous: bool = False
    """Read the source on s3:// or gs:// without credentials. Use it for public buckets."""
    requester_pays: bool = False
    """Pay for the requests to the source on s3://. Use it for requester-pays buckets."""
    endpoint_url: Annotated[str, unit("URL")] = ""
    """URL of the S3 or GCS server that has the source. The default is AWS_ENDPOINT_URL for s3:// and Google for gs://.
    Use it if source and output are on different servers."""

    @field_validator("endpoint_url")
    @classmethod
    def _validate_url(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/@]+/?", value):
            raise ValueError(f"--endpoint-url {redacted(value)!r} must be http://host:port or https://host")
        return value.rstrip("/")

    def to_access(self) -> Access:
        """Return the same values for `inpaint_encode.stores`, which does not import the settings."""
        return Access(self.anonymous, self.requester_pays, self.endpoint_url)


@section("Sources", 2)
class SourceReading(SourceAccess):
    """What a command that reads an output may read of its rows' sources; see `inpaint_encode.tools.recorded`."""

    sources: Annotated[tuple[str, ...], unit("URI", default="those of your own jobs")] = ()
    """Prefix or folder of images and masks to read, with your credentials; give the option once for each. By default,
    sources are read only if you encoded the output on this machine: an output of others may name any file and any
    server."""
    endpoint_url: Annotated[str, unit("URL")] = ""
    """URL of the S3 or GCS server that has the sources. Requests to it are signed with your credentials. Without it, a
    server that only the output names gets no credentials. By default, AWS_ENDPOINT_URL for s3:// and Google for
    gs://."""


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


@section("Decoding", 3)
class Decoding(Frozen):
    """How image and mask files become pixels; like `RowSettings`, the same for all rows of an output."""

    mask_channel: Literal["auto", "red", "green", "blue", "alpha", "luma"] = "auto"
    """Channel to read the mask from. luma: the values of a gray file, or the luma of a color file; alpha is ignored.
    auto: like luma, but a file with transparent pixels is rejected, because its alpha may be the mask. red, green,
    blue: that channel; in a gray file all three are equal. alpha: the alpha channel; a file without one is rejected."""
    mask_polarity: Literal["white", "black", "transparent", "opaque"] = "white"
    """Mask values that mark the area to repaint. white: 128 to 255. black: 0 to 127. With --mask-channel alpha there
    are two other values. transparent: alpha of 0 to 127. opaque: alpha of 128 to 255. The default is transparent with
    --mask-channel alpha, and white with every other channel. With black and transparent, the values are inverted before
    the mask is resized."""
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
    this many pixels. For SDXL use 1048576, the pixels of 1024x1024. The sides of buckets range from half to twice the
    side of the largest square bucket."""
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
    def _validate_combinations(self) -> Self:
        if (self.mask_polarity in ("transparent", "opaque")) != (self.mask_channel == "alpha"):
            allowed = "transparent or opaque" if self.mask_channel == "alpha" else "white or black"
            raise ValueError(
                f"--mask-polarity {self.mask_polarity} does not fit --mask-channel {self.mask_channel}; use {allowed}"
            )
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


@section("Decoding", 3)
class Limits(Frozen):
    """Limits on the sizes of files; they do not change rows, and may differ from run to run."""

    max_pixels: Annotated[int, Field(ge=1), unit("PIXELS")] = 64_000_000
    """Largest image or mask to decode, in pixels. A file whose header declares more pixels is rejected before it is
    decoded. The tasks of a node hold the pixels of their chunks in a quarter of its memory. Pairs above that are
    decoded later, by the VAE worker. For large images, lower --chunk-rows."""
    max_bytes: Annotated[int, Field(ge=1), unit("BYTES")] = 256 * 2**20
    """Largest file to fetch, in bytes. A larger file is rejected. The default is enough for 64 megapixels of
    uncompressed RGB."""
