"""One class of settings for each command."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from .base import Frozen, matching, section, unit
from .job import Chunks, Output, RowSettings, RunOptions, VaeSource, Workers
from .source import MASK_PRESETS, Decoding, Limits, Source, SourceAccess, SourceReading


class _Pairs(Frozen):
    """Settings that ``encode`` and ``plan`` share: the source, decoding and the contents of rows."""

    source: Source
    access: SourceAccess = SourceAccess()
    decoding: Decoding = Decoding()
    limits: Limits = Limits()
    rows: RowSettings = RowSettings()

    @model_validator(mode="before")
    @classmethod
    def _apply_preset_pattern(cls, given: Any) -> Any:
        """Fill in the preset's mask pattern if the source is prefixes without a pattern."""
        if not isinstance(given, dict) or not isinstance(source := given.get("source"), dict):
            return given
        decoding = given.get("decoding")
        name = decoding.get("mask_preset") if isinstance(decoding, dict) else getattr(decoding, "mask_preset", None)
        if name not in MASK_PRESETS or source.get("pairs") or source.get("mask_pattern"):
            return given
        return {**given, "source": {**source, "mask_pattern": MASK_PRESETS[name].pattern}}

    @model_validator(mode="after")
    def _validate_masks(self) -> Self:
        if self.source.is_own_mask and self.decoding.mask_channel != "alpha":
            raise ValueError(
                "no masks are given; add --masks; or --mask-pattern if masks lie beside their images; or "
                "--mask-channel alpha if each image's alpha channel is its mask; or --random-masks 1 to draw masks"
            )
        if self.source.random_masks and (self.decoding.mask_channel, self.decoding.mask_polarity) != ("auto", "white"):
            raise ValueError(
                "--mask-channel, --mask-polarity and --mask-preset are for mask files, and --random-masks reads none; "
                "leave out these options or --random-masks"
            )
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

    @model_validator(mode="after")
    def _validate_overwrite(self) -> Self:
        if self.run.shard and self.output.overwrite:
            raise ValueError("--overwrite cannot be combined with --shard; run it once without --shard")
        return self


@section("Verification", 1)
class VerifyOptions(Frozen):
    """Options of ``inpaint-encode verify``."""

    output: Annotated[str, unit("URI")]
    """Folder or prefix that `encode` wrote."""
    sample: Annotated[int, Field(ge=0), unit("ROWS")] = 0
    """Number of random rows to encode again on this machine and compare. With 0, no VAE is loaded."""
    seed: Annotated[int, unit("NUMBER")] = 0
    """Seed of --sample. The same seed chooses the same rows of an output."""
    vae: Annotated[str, unit("MODEL", "that of your own job")] = ""
    """VAE to use for --sample. Its weights must be the same as the job's. Give it if you did not encode the output on
    this machine, since a model that only the output names is not loaded; or if the job's path is not available here."""
    reading: SourceReading = SourceReading()
    repair: bool = False
    """Remove damaged files that can be made again, and rebuild a damaged plan from the data files. Then run the same
    encode command again to complete the output. Intact files are never removed. Do not use --repair while an encode job
    runs."""
    dry_run: bool = False
    """Print what --repair would change, and why, and change nothing. Use it with --repair."""
    address: Annotated[str, unit("HOST:PORT", "RAY_ADDRESS")] = ""
    """Ray cluster to join. The default is RAY_ADDRESS, which `ray job submit` sets. If neither is set, Ray starts on
    this machine."""

    @model_validator(mode="after")
    def _check_dry_run(self) -> Self:
        if self.dry_run and not self.repair:
            raise ValueError("--dry-run needs --repair; add it")
        return self


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
    """Output of a finished encode run; its pairs per second are used to estimate the hours. They are read from
    _report.json. The hours assume the same cluster and images of similar sizes."""
    price: Annotated[float, Field(ge=0), unit("AMOUNT")] = 0.0
    """Hourly cost of the cluster that made the --rate-from run, in any currency. Needs --rate-from."""
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
            raise ValueError("--price needs --rate-from, which estimates the hours; add --rate-from")
        if not self.vae.vae and self.vae != PlannedVae():
            raise ValueError("--subfolder, --revision, --vae-family and --flux2-latents need --vae; add it")
        return self


@section("Export", 1)
class ExportOptions(Frozen):
    """Options of ``inpaint-encode export``."""

    to: Literal["comfyui", "webdataset", "safetensors", "parquet"]
    """Format of the exported files. comfyui: for each row a/042.latent, unscaled float32 for LoadLatent, and
    a/042_mask.png, the dilated mask, where white is repainted. Latents of the unmasked images (encode --also-original)
    go to the folder _original. webdataset: one tar per Parquet file of the output, with a/042.json, a/042.samples.npy,
    a/042.noise_mask.png and the other columns. safetensors: for each row a/042.safetensors, with all tensors as they
    are stored and all other columns as strings. The mask takes one byte per pixel, which is most of the file. parquet:
    few large Parquet files with the same rows, in the same order, which all readers of an output can read. Only
    finished units of the plan are exported: about 65,000 pairs each, all of them encoded or rejected."""
    output: Annotated[str, unit("URI")]
    """Target of the export: folder or prefix to write, on s3:// or a disk. File names are the rows' keys. A character
    that is not allowed in a file name is written as % and two hexadecimal digits; in tars, dots in the last part of a
    key are escaped too. An empty part of a key, as in a//b, becomes %. A name of more than 200 bytes is cut and ends in
    a hash."""
    file_bytes: Annotated[
        str, unit("SIZE"), matching(r"\d+(\.\d+)?([kKMG]i?)?B?", "a size such as 256MB, 0.5GB or 512MiB")
    ] = "256MB"
    """Approximate maximum size of a file of --to parquet, 1MB to 4GB. Readers open fewer files if files are larger.
    Each task needs about three times this much memory."""
    overwrite: bool = False
    """Remove the files of any earlier export at --output and start over."""
    address: Annotated[str, unit("HOST:PORT", "RAY_ADDRESS")] = ""
    """Ray cluster to join. The default is RAY_ADDRESS, which `ray job submit` sets. If neither is set, Ray starts on
    this machine."""

    @property
    def max_file_bytes(self) -> int:
        """``file_bytes`` as a number."""
        number, prefix = re.fullmatch(r"([\d.]+)(\w*?)B?", self.file_bytes).groups()  # type: ignore[union-attr]
        base = 1024 if prefix.endswith("i") else 1000
        return int(Decimal(number) * base ** " KMG".index(prefix[:1].upper() or " "))

    @model_validator(mode="after")
    def _check_file_bytes(self) -> Self:
        if self.to != "parquet" and self.file_bytes != type(self).model_fields["file_bytes"].default:
            raise ValueError("--file-bytes is for --to parquet; leave it out, or use --to parquet")
        if not 10**6 <= self.max_file_bytes <= 4 * 10**9:
            raise ValueError(f"--file-bytes {self.file_bytes} must be 1MB to 4GB")
        return self


@section("VAE", 3)
class LatentDecoding(Frozen):
    """The VAE that decodes stored latents into pictures."""

    vae: Annotated[str, unit("MODEL", default="that of your own job")] = ""
    """VAE to decode latents with. Its weights must be the same as the job's. Give it if you did not encode the output
    on this machine, since a model that only the output names is not loaded; or if the job's path is not available
    here."""
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
    """Number of random rows to show as pictures, 0 to 200. The page also shows up to half as many rows for each of:
    smallest masks, largest masks, unusual latents, lowest decoding quality. 0 shows no pictures."""
    seed: Annotated[int, unit("NUMBER")] = 0
    """Seed of the random choice of rows. The same seed chooses the same rows of an output."""
    decoder: LatentDecoding = LatentDecoding()
    reading: SourceReading = SourceReading()


@section("Picture", 1)
class ShowOptions(Frozen):
    """Options of ``inpaint-encode show``."""

    picture: Annotated[str, unit("FILE", default="KEY.png")] = ""
    """Picture to write, a path or s3:// URI that ends in .png. By default it is written to the current folder, and "/"
    in the key becomes "-"."""
    decoder: LatentDecoding = LatentDecoding()
    reading: SourceReading = SourceReading()
