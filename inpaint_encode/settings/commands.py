"""Everything that a command can be told: one class for each."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from .base import Frozen, measured_in, section
from .files import Decoding, Limits, preset_pattern, refuse_masks_that_disagree
from .row import RowSettings, VaeSource
from .run import Batches, Chunks, Output, RunOptions, Workers
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
    """Which VAE the job will have, if that is known yet."""

    vae: Annotated[str, measured_in("MODEL")] = ""
    """Diffusers folder, .safetensors file or hub id. Folder and file may be on s3://; without a VAE, 8 pixels a latent
    and 4 channels are assumed."""


@section("How to estimate", 7)
class Estimation(Frozen):
    """How much is looked at, and how it is told."""

    sample: Annotated[int, Field(ge=1), measured_in("IMAGES")] = 256
    """Images, drawn at random, whose headers are read; four times as many halve the errors."""
    seed: Annotated[int, measured_in("NUMBER")] = 0
    """Which images --sample draws: the same seed draws the same ones of the same source."""
    calibrate: Annotated[float, Field(ge=0), measured_in("SECONDS")] = 0.0
    """How long to try sampled pairs here; needs --vae. They are fetched, decoded and encoded on this machine, to tell
    the job's hours."""
    price: Annotated[float, Field(ge=0), measured_in("AMOUNT")] = 0.0
    """Cost of an hour of this device, in any currency; needs --calibrate."""
    as_json: bool = False
    """Print JSON instead of a table."""


class PlanOptions(_Pairs):
    """Everything that ``inpaint-encode plan`` can be told."""

    vae: PlannedVae = PlannedVae()
    chunks: Chunks = Chunks()
    batches: Batches = Batches()
    estimation: Estimation = Estimation()

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.estimation.calibrate and not self.vae.vae:
            raise ValueError("--calibrate encodes, so it needs --vae")
        if self.estimation.price and not self.estimation.calibrate:
            raise ValueError("--price is of hours, which only --calibrate measures; give both")
        if not self.vae.vae and self.vae != PlannedVae():
            raise ValueError("--subfolder, --revision, --vae-family and --flux2-latents say more of --vae; give it too")
        return self
