"""What is looked at of an output: by ``report`` and ``show``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from .base import Frozen, measured_in, section

__all__ = ["LatentDecoding", "ReportOptions", "ShowOptions"]


@section("How rows are decoded", 3)
class LatentDecoding(Frozen):
    """The VAE that makes pictures of latents again."""

    vae: Annotated[str, measured_in("MODEL", default="the job's")] = ""
    """Where to load the VAE from, if not from where the job did; its weights must be the same."""
    decode: Annotated[bool, Parameter(negative="--no-decode")] = True
    """Load the VAE and decode the rows that are shown; without it no picture tells how good the latents are."""


@section("What to show", 1)
class ReportOptions(Frozen):
    """Everything that ``inpaint-encode report`` can be told but which output."""

    html: Annotated[str, measured_in("FILE")] = "report.html"
    """Where the page goes, a path or s3://; an empty one prints the table alone, which reads no rows."""
    sample: Annotated[int, Field(ge=1), measured_in("ROWS")] = 2_000
    """Rows whose latents are read for the statistics, of files that are drawn at random; more take longer to read."""
    gallery: Annotated[int, Field(ge=0, le=200), measured_in("ROWS")] = 8
    """Rows in pictures that are drawn at random; of each kind of extreme there are half as many. 0 shows none."""
    seed: Annotated[int, measured_in("NUMBER")] = 0
    """Which rows are drawn: the same seed draws the same rows of the same output."""
    decoder: LatentDecoding = LatentDecoding()


@section("What to show", 1)
class ShowOptions(Frozen):
    """Everything that ``inpaint-encode show`` can be told but which row."""

    picture: Annotated[str, measured_in("FILE", default="the key .png")] = ""
    """Where the picture goes, a path or s3:// that ends in .png; by default the key in the current folder."""
    decoder: LatentDecoding = LatentDecoding()
