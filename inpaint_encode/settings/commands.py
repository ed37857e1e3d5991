"""Everything that a command can be told: one class for each."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from .base import Frozen, measured_in, section
from .files import Decoding, Limits, preset_pattern, refuse_masks_that_disagree
from .row import RowSettings, VaeSource
from .run import Chunks, Output, RunOptions, Workers
from .source import Source, SourceAccess

__all__ = ["EncodeJob", "PlanOptions", "VerifyOptions"]


class _Pairs(Frozen):
    """Where pairs come from, how they are read, and what their rows are."""

    source: Source
    access: SourceAccess = SourceAccess()
    decoding: Decoding = Decoding()
    limits: Limits = Limits()
    rows: RowSettings = RowSettings()

    _preset = model_validator(mode="before")(preset_pattern)

    @model_validator(mode="after")
    def _masks_agree(self) -> Self:
        refuse_masks_that_disagree(self.source, self.decoding)
        return self


class EncodeJob(_Pairs):
    """Everything that ``inpaint-encode encode`` can be told."""

    source: Source = Field(default_factory=Source)
    vae: VaeSource
    output: Output
    workers: Workers = Workers()
    run: RunOptions = RunOptions()


@section("What to verify", 1)
class VerifyOptions(Frozen):
    """Everything that ``inpaint-encode verify`` can be told."""

    output: Annotated[str, measured_in("URI")]
    """Folder or prefix that an encode command wrote."""
    sample: Annotated[int, Field(ge=0), measured_in("ROWS")] = 0
    """Rows, drawn at random, to fetch, encode again on this machine and compare; 0 loads no VAE."""
    seed: Annotated[int, measured_in("NUMBER")] = 0
    """Which rows --sample draws: the same seed draws the same rows of the same output."""
    vae: Annotated[str, measured_in("MODEL")] = ""
    """Where --sample loads the VAE from, if not from where the job did; its weights must be the same."""
    repair: bool = False
    """Remove what is damaged or left over, so that the same encode command makes it again. No encode may run then."""
    address: Annotated[str, measured_in("HOST:PORT")] = ""
    """Ray cluster to join; by default the one this process runs in, else one is started on this machine."""


@section("The VAE", 2)
class PlannedVae(VaeSource):
    """VAE of the planned job, if it is known."""

    vae: Annotated[str, measured_in("MODEL")] = ""
    """Diffusers folder, .safetensors file or hub id. Folder and file may be on s3://. Without --vae, plan assumes 4
    latent channels and 8 pixels of a side per latent value."""


@section("How to estimate", 7)
class Estimation(Frozen):
    """How ``inpaint-encode plan`` estimates and prints."""

    sample: Annotated[int, Field(ge=1), measured_in("IMAGES")] = 256
    """Number of randomly drawn images whose headers to read. Four times as many halve the sampling errors."""
    seed: Annotated[int, measured_in("NUMBER")] = 0
    """Seed of the random draw. The same seed draws the same images from the same source."""
    fetch_threads: Annotated[int, Field(ge=1, le=256), measured_in("COUNT")] = 16
    """Number of headers to read concurrently, 1 to 256."""
    rate_from: Annotated[str, measured_in("OUTPUT")] = ""
    """Output of a finished encode run whose rate to use for the hours. Its _report.json is read. The hours assume the
    same cluster and images of similar sizes."""
    price: Annotated[float, Field(ge=0), measured_in("AMOUNT")] = 0.0
    """Cost of an hour of that run's whole cluster, in any currency. Needs --rate-from."""
    as_json: bool = False
    """Print JSON instead of a table."""


class PlanOptions(_Pairs):
    """Options of ``inpaint-encode plan``."""

    vae: PlannedVae = PlannedVae()
    chunks: Chunks = Chunks()
    estimation: Estimation = Estimation()

    @model_validator(mode="after")
    def _check_options_together(self) -> Self:
        if self.estimation.price and not self.estimation.rate_from:
            raise ValueError("--price needs the hours that --rate-from estimates; add --rate-from")
        if not self.vae.vae and self.vae != PlannedVae():
            raise ValueError("--subfolder, --revision, --vae-family and --flux2-latents need --vae; add it")
        return self
