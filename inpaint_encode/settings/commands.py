"""One class of settings for each command that reads pairs or checks an output."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from .base import Frozen, section, unit
from .decoding import Decoding, Limits, apply_preset_pattern, validate_masks
from .output import Chunks, Output, RunOptions
from .rows import RowSettings, VaeSource
from .source import Source, SourceAccess
from .workers import Workers

__all__ = ["EncodeJob", "PlanOptions", "VerifyOptions"]


class _Pairs(Frozen):
    """Settings that ``encode`` and ``plan`` share: the source, decoding and the contents of rows."""

    source: Source
    access: SourceAccess = SourceAccess()
    decoding: Decoding = Decoding()
    limits: Limits = Limits()
    rows: RowSettings = RowSettings()

    _apply_preset = model_validator(mode="before")(apply_preset_pattern)

    @model_validator(mode="after")
    def _validate_masks(self) -> Self:
        validate_masks(self.source, self.decoding)
        return self


class EncodeJob(_Pairs):
    """Settings of an encode job, as ``inpaint-encode encode`` and `inpaint_encode.job.pipeline.run_job` use them.

    Example::

        EncodeJob(
            source=Source(images="s3://bucket/images", masks="s3://bucket/masks"),
            vae=VaeSource(vae="stabilityai/sd-vae-ft-mse"),
            output=Output(output="s3://bucket/latents"),
        )

    Attributes:
        source: images and masks to pair.
        access: access to the source's store.
        decoding: how files become pixels.
        limits: limits on the sizes of files.
        rows: what a row contains.
        vae: the VAE to load.
        output: where rows are written, and in what chunks.
        workers: number of workers and their resources.
        run: options of one run, such as the limit on rejects.
    """

    source: Source = Field(default_factory=Source)
    vae: VaeSource
    output: Output
    workers: Workers = Workers()
    run: RunOptions = RunOptions()


@section("Verification", 1)
class VerifyOptions(Frozen):
    """Options of ``inpaint-encode verify``."""

    output: Annotated[str, unit("URI")]
    """Folder or prefix that `encode` wrote."""
    sample: Annotated[int, Field(ge=0), unit("ROWS")] = 0
    """Number of random rows to encode again on this machine and compare. With 0, no VAE is loaded."""
    seed: Annotated[int, unit("NUMBER")] = 0
    """Seed of --sample. The same seed chooses the same rows of an output."""
    vae: Annotated[str, unit("MODEL", "the job's")] = ""
    """VAE to use for --sample. Give it if the job's path or hub id is not available here. Its weights must be the same
    as the job's."""
    repair: bool = False
    """Remove damaged and unexpected files. Then run the same encode command again to complete the output. Do not use
    --repair while an encode job runs."""
    address: Annotated[str, unit("HOST:PORT", "RAY_ADDRESS")] = ""
    """Ray cluster to join. The default is RAY_ADDRESS, which `ray job submit` sets. If neither is set, Ray starts on
    this machine."""


@section("VAE", 2)
class PlannedVae(VaeSource):
    """The VAE of a planned job, if it is known."""

    vae: Annotated[str, unit("MODEL")] = ""
    """Diffusers folder, .safetensors file or Hugging Face hub id. A folder or file may be on s3://. Without a VAE, a
    downscale factor of 8 and 4 channels are assumed."""


@section("How to estimate", 7)
class Estimation(Frozen):
    """How ``inpaint-encode plan`` estimates and prints."""

    sample: Annotated[int, Field(ge=1), unit("IMAGES")] = 256
    """Number of randomly drawn images whose headers to read. Four times as many images halve the margins of error."""
    seed: Annotated[int, unit("NUMBER")] = 0
    """Seed of the random draw. The same seed draws the same images from the same source."""
    fetch_threads: Annotated[int, Field(ge=1, le=256), unit("COUNT")] = 16
    """Number of image headers to read concurrently, 1 to 256."""
    rate_from: Annotated[str, unit("OUTPUT")] = ""
    """Output of a finished encode run; its rate is used to estimate the hours. The rate is read from _report.json. The
    hours assume the same cluster and images of similar sizes."""
    price: Annotated[float, Field(ge=0), unit("AMOUNT")] = 0.0
    """Cost of one hour of the whole cluster of the --rate-from run, in any currency. Needs --rate-from."""
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
