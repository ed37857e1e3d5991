"""Where rows are written, and the limits of one run."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from .base import Frozen, section, unit

__all__ = ["Chunks", "Output", "RunOptions"]


@section("Output", 5)
class Chunks(Frozen):
    """Size of a chunk, the unit of work, which becomes one data file."""

    chunk_rows: Annotated[int, Field(ge=1, le=100_000), unit("PAIRS")] = 256
    """Maximum number of pairs in a file. The pairs of a file are a chunk, the unit of work. Smaller chunks lose less
    work when a worker dies, and need more requests. All masks of an image are in one chunk if they fit."""
    chunk_bytes: Annotated[int, Field(ge=1), unit("BYTES")] = 64 * 2**20
    """End a chunk before --chunk-rows when its image files reach this size. A task holds the decoded pixels of a chunk
    in memory, for photographs about ten times the size of the files. Images of plain color have many more pixels per
    byte, and for a list of URIs the sizes are unknown. In both cases only --chunk-rows limits memory: each image takes
    3 bytes per pixel, 192 MB for 64 megapixels."""


@section("Output", 5)
class Output(Chunks):
    """Where rows are written, and in what chunks."""

    output: Annotated[str, unit("URI")]
    """Folder or prefix of the output. Accepts s3://bucket/prefix, file:///path or a plain path. Names of files and
    folders that are not data begin with "_"."""
    overwrite: bool = False
    """Delete the output's rows and start over. To resume an interrupted job, run it again without --overwrite."""


@section("Run", 7)
class RunOptions(Frozen):
    """Options of one run; they do not change rows, and may differ from run to run."""

    max_rejected: Annotated[str, unit("COUNT|%")] = "1%"
    """Maximum number or percentage of rejected pairs, such as 100 or 1%. With more, the job ends with exit code 3. A
    number is checked throughout the job. A percentage is checked from the 1,000th pair on,
    and at the end."""
    limit: Annotated[int, Field(ge=0), unit("PAIRS", "none")] = 0
    """Stop this run at the end of a chunk, after at least this many pairs. The same command without --limit encodes the
    rest."""
    retry_rejected: bool = False
    """Try rejected pairs again. Without --retry-rejected, later runs skip them."""
    refresh: bool = False
    """Encode a pair again if its image or mask has a new version in the listing, or if its line in the list of pairs
    has changed. All other rows stay."""
    drop_vanished: bool = False
    """With --refresh, remove rows whose image or mask is no longer in the source."""
    address: Annotated[str, unit("HOST:PORT", "RAY_ADDRESS")] = ""
    """Ray cluster to join. The default is RAY_ADDRESS, which `ray job submit` sets. If neither is set, Ray starts on
    this machine."""

    @field_validator("max_rejected")
    @classmethod
    def _validate_max_rejected(cls, value: str) -> str:
        if not re.fullmatch(r"\d+|\d+(\.\d+)?%", value):
            raise ValueError(f"--max-rejected {value!r} must be a number such as 100 or a percentage such as 1%")
        return value

    @model_validator(mode="after")
    def _validate_drop_vanished(self) -> Self:
        if self.drop_vanished and not self.refresh:
            raise ValueError("--drop-vanished needs --refresh; add it")
        return self

    def allows(self, rejected: int, decided: int, *, finished: bool) -> bool:
        """Return whether ``rejected`` of ``decided`` pairs are at most ``max_rejected``.

        A percentage is checked at the end, and before the end only after 1,000 decided pairs.
        """
        if not self.max_rejected.endswith("%"):
            return rejected <= int(self.max_rejected)
        if not finished and decided < 1_000:
            return True
        return rejected * 100 <= Decimal(self.max_rejected[:-1]) * decided
