"""Options of ``report`` and ``show``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from .base import Frozen, measured_in, section

__all__ = ["LatentDecoding", "ReportOptions", "ShowOptions"]


@section("How rows are decoded", 3)
class LatentDecoding(Frozen):
    """The VAE that decodes latents to pictures."""

    vae: Annotated[str, measured_in("MODEL", default="the job's")] = ""
    """VAE to load instead of the job's, for example from another path. Its weights must be the same."""
    decode: Annotated[bool, Parameter(negative="--no-decode")] = True
    """Load the VAE and decode the rows that are shown. Without it no picture shows the quality of the latents."""


@section("What to show", 1)
class ReportOptions(Frozen):
    """Options of ``inpaint-encode report``."""

    html: Annotated[str, measured_in("FILE")] = "report.html"
    """Path or s3:// URI of the page. Empty: print the table only, which reads no rows."""
    sample: Annotated[int, Field(ge=1), measured_in("ROWS")] = 2_000
    """Rows whose latents are read for statistics, from randomly drawn files. More rows take longer."""
    gallery: Annotated[int, Field(ge=0, le=200), measured_in("ROWS")] = 8
    """Random rows to show in pictures; half as many are shown of each kind of extreme. 0: none."""
    seed: Annotated[int, measured_in("NUMBER")] = 0
    """Seed of the random sample. The same seed draws the same rows of the same output."""
    decoder: LatentDecoding = LatentDecoding()


@section("What to show", 1)
class ShowOptions(Frozen):
    """Options of ``inpaint-encode show``."""

    picture: Annotated[str, measured_in("FILE", default="the key .png")] = ""
    """Path or s3:// URI of the picture, which must end in .png. Default: the key, in the current folder."""
    decoder: LatentDecoding = LatentDecoding()
