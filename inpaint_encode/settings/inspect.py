"""Options of ``report`` and ``show``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from .base import Frozen, section, unit

__all__ = ["LatentDecoding", "ReportOptions", "ShowOptions"]


@section("VAE", 3)
class LatentDecoding(Frozen):
    """The VAE that decodes stored latents into pictures."""

    vae: Annotated[str, unit("MODEL", default="the job's")] = ""
    """VAE to decode latents with. Give it if the job's path or hub id is not available here. Its weights must be the
    same as the job's."""
    decode: Annotated[bool, Parameter(negative="--no-decode")] = True
    """Decode latents, to show them beside their images. --no-decode: leave out decoded latents. This loads no VAE and
    is faster."""


@section("Report", 1)
class ReportOptions(Frozen):
    """Options of ``inpaint-encode report``."""

    html: Annotated[str, unit("FILE")] = "report.html"
    """HTML file to write, a path or s3:// URI. An empty value writes no file and prints only the table."""
    sample: Annotated[int, Field(ge=1), unit("ROWS")] = 2_000
    """Number of rows whose latents are read for statistics, from randomly chosen files. More rows take more time."""
    gallery: Annotated[int, Field(ge=0, le=200), unit("ROWS")] = 8
    """Number of random rows to show as pictures, 0 to 200. For each kind of extreme, such as the largest masks, the
    page shows half this number of rows. 0 shows no pictures."""
    seed: Annotated[int, unit("NUMBER")] = 0
    """Seed of the random choice of rows. The same seed chooses the same rows of an output."""
    decoder: LatentDecoding = LatentDecoding()


@section("Picture", 1)
class ShowOptions(Frozen):
    """Options of ``inpaint-encode show``."""

    picture: Annotated[str, unit("FILE", default="KEY.png")] = ""
    """Picture to write, a path or s3:// URI that ends in .png. By default it is written to the current folder, and "/"
    in the key becomes "-"."""
    decoder: LatentDecoding = LatentDecoding()
