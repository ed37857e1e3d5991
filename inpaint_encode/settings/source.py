"""Where the pairs come from, and how their store is asked."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from inpaint_encode.stores.access import Access

from .base import Frozen, measured_in, section

__all__ = ["Source", "SourceAccess"]


@section("Where the pairs come from", 1)
class Source(Frozen):
    """Prefixes that are listed, a manifest that names every pair, or files that hold them.

    Of two prefixes, image and mask belong together when their relative paths agree but for the suffix, or by
    ``mask_pattern``. A manifest gives ``mask_index`` 0, 1, ... to an image's masks in its own order.
    """

    images: Annotated[str, measured_in("URI")] = ""
    """Prefix or folder of the images: s3://bucket/prefix, gs://bucket/prefix, file:///path or a plain path; read
    recursively."""
    masks: Annotated[str, measured_in("URI")] = ""
    """Prefix or folder of the masks; white is repainted. With --mask-pattern, by default that of the images. Without
    either, and with --mask-channel alpha, each image is its own mask."""
    mask_pattern: Annotated[str, measured_in("NAME")] = ""
    """A mask's file name, such as {stem}_mask{n}.png: a file that matches is a mask of the image in the same relative
    folder whose name without the suffix is {stem}. {n}, one to nine digits, allows an image several masks, each a
    pair whose key is the mask's path without the suffix; without {n} the key is the image's. The suffix matches in any
    case. Below one prefix, a file that matches and whose {stem} another file has is a mask, everything else an
    image."""
    pairs: Annotated[str, measured_in("URI")] = ""
    """In their place a list, Parquet or tars: a .parquet, .csv, .jsonl or .tar file, or a prefix of Parquet files or of
    tars. A list has URIs, absolute or relative to its folder; nothing is listed then, and an object that changes in
    place is not noticed, by --refresh neither. Parquet may hold the images themselves, as bytes or struct<bytes, path>.
    Other columns are carried to the output, those of CSV as strings. A tar is a WebDataset: a/042.jpg, a/042.mask.png
    or several a/042.mask0.png, and a/042.json and a/042.txt, which are carried as strings."""
    image_column: Annotated[str, measured_in("COLUMN")] = "image"
    """Column with the images or their URIs."""
    mask_column: Annotated[str, measured_in("COLUMN")] = "mask"
    """Column with the masks or their URIs; in tars what stands between the sample's name and the suffix. Where it is
    --image-column, each image is its own mask."""
    key_column: Annotated[str, measured_in("COLUMN")] = ""
    """Column with a unique key for each pair; by default the image's relative path without the suffix, of rows and tars
    the file's with the row's number or the sample's name after it, and from the image's second mask on its number: a,
    a/1, a/2. Of tars it may be __key__, the sample's name."""
    random_masks: Annotated[int, Field(ge=0, le=1_000), measured_in("COUNT")] = 0
    """Masks to draw for each image, 0 to 1,000, in the place of masks that are there: each by --mask-seed, its key and
    its number alone, wherever it is drawn."""
    mask_style: Literal["brush", "box", "mixed"] = "mixed"
    """What is drawn: brush is 1 to 4 strokes, S/25 to S/6 wide, of an image whose shorter side is S; box is 1 to 4
    boxes, each side an eighth to a half of the image's; mixed is one or the other."""
    mask_seed: Annotated[int, Field(ge=0), measured_in("NUMBER")] = 0
    """Another seed draws other masks."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        listed = self.images or self.masks or self.mask_pattern
        named = (self.image_column, self.mask_column, self.key_column) != ("image", "mask", "")
        if self.pairs and listed:
            raise ValueError("--pairs names images and masks itself; leave out --images, --masks and --mask-pattern")
        if not self.pairs and not listed:
            raise ValueError("there is no source; add --images and --masks, or --pairs")
        if not self.pairs and not self.images:
            raise ValueError("masks alone are no pairs; add --images")
        if not self.pairs and named:
            raise ValueError("--image-column, --mask-column and --key-column are a manifest's columns; add --pairs")
        return self

    @model_validator(mode="after")
    def _one_kind_of_mask(self) -> Self:
        there = self.masks or self.mask_pattern
        if self.random_masks and (there or self.mask_column != "mask"):
            raise ValueError(
                "--random-masks draws what --masks, --mask-pattern and --mask-column name; leave out one or the other"
            )
        if not self.random_masks and (self.mask_style, self.mask_seed) != ("mixed", 0):
            raise ValueError("--mask-style and --mask-seed say what --random-masks draws; add --random-masks 1")
        return self

    @property
    def is_own_mask(self) -> bool:
        """Whether each image is its own mask: no other is there, and none is drawn."""
        alone = self.image_column == self.mask_column if self.pairs else not (self.masks or self.mask_pattern)
        return alone and not self.random_masks

    @field_validator("mask_pattern")
    @classmethod
    def _pattern(cls, value: str) -> str:
        plain = value.replace("{stem}", "", 1).replace("{n}", "", 1)
        if value and ("{stem}" not in value or not re.fullmatch(r"[^/{}]*\.[^./{}]+", plain)):
            raise ValueError(
                f"--mask-pattern {value!r} must be a file name with its suffix, with {{stem}} once and {{n}} at most "
                "once, such as {stem}_mask{n}.png"
            )
        if re.search(r"\{stem\}\d*\{n\}|\{n\}\d*\{stem\}", value):
            raise ValueError(f"--mask-pattern {value!r}: put a text that is no number between {{stem}} and {{n}}")
        return value


@section("Where the pairs come from", 1)
class SourceAccess(Frozen):
    """How the source's store is asked; that of the output is asked as the environment says."""

    anonymous: bool = False
    """Ask s3:// and gs:// for the source without credentials, as public buckets allow."""
    requester_pays: bool = False
    """Accept that the requests for the source on s3:// are charged to you."""
    endpoint_url: Annotated[str, measured_in("URL")] = ""
    """Server of the source's s3:// or gs://, if it is another than the environment's AWS_ENDPOINT_URL says."""

    @field_validator("endpoint_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/@]+/?", value):
            raise ValueError(f"--endpoint-url {value!r} is no http://host:port or https://host")
        return value.rstrip("/")

    def to_access(self) -> Access:
        """Return the same values for `inpaint_encode.stores`, which does not import the settings."""
        return Access(**self.model_dump())
