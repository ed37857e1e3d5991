"""The VAE, the contents of rows, the output and the workers of a job, and the limits of one run."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from .base import Frozen, matching, section, unit


@section("VAE", 2)
class VaeSource(Frozen):
    """The VAE to load, and where from."""

    vae: Annotated[str, unit("MODEL")]
    """Diffusers folder, .safetensors file or Hugging Face hub id. A folder or file may be on s3://. The file may be a
    whole checkpoint. For a VAE in a pipeline's folder, add --subfolder. Only safetensors weights are loaded."""
    subfolder: Annotated[str, unit("FOLDER")] = ""
    """Folder of the VAE in a pipeline, usually "vae"."""
    revision: Annotated[str, unit("NAME")] = ""
    """Branch, tag or commit on the hub. Give a commit if the repository may change while a job is not finished."""
    vae_family: Literal["", "sd1", "sdxl", "sd3", "flux1"] = ""
    """Model family of a single-file VAE. Give it for SD 1, SD 2, SDXL, SD 3 and Flux.1, unless the file is a full
    checkpoint. The family determines the scaling factor, for the metadata and --scaled. Use sd1 for SD 1 and SD 2."""
    flux2_latents: Literal["packed", "plain"] = "packed"
    """Layout of Flux.2 latents. packed: normalized, 128 channels at 1/16 of the image's size, as in ComfyUI. plain: 32
    channels at 1/8. For both, images are cropped to multiples of 16."""


@section("Row contents", 4)
class RowSettings(Frozen):
    """Settings that change the rows; all rows of an output have the same."""

    grow_mask_by: Annotated[int, Field(ge=0, le=64), unit("PIXELS")] = 6
    """Dilate the mask with a square of this side. The side is 0 to 64; 0 and 1 do not change the mask. A larger side
    makes the border of the repainted part less visible. Only the stored mask, the column noise_mask, is dilated. The
    masked image that the VAE encodes uses the original mask."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute dtype of the VAE. auto: bfloat16 on GPUs of compute capability 8.0 and up, otherwise float32. Give a
    dtype if the nodes have different hardware and all rows must have the same precision."""
    samples_dtype: Literal["float16", "float32"] = "float16"
    """Dtype of the stored latents, in the columns samples and original_samples. float32 takes twice the bytes; use it
    if values exceed the range of float16."""
    posterior: Literal["mean", "sample", "moments"] = "mean"
    """Which values of the VAE's posterior to store. mean: the mean. sample: a random sample, which depends only on the
    key and --posterior-seed. moments: the means, then the log-variances; this takes twice as many channels."""
    posterior_seed: Annotated[int, unit("NUMBER")] = 0
    """Seed of --posterior sample. Another seed gives another sample of every row."""
    scaled: bool = False
    """Store latents scaled and shifted by the factors in the VAE's configuration. Diffusers' denoisers expect scaled
    latents; ComfyUI expects unscaled ones."""
    also_original: bool = False
    """Add the column original_samples, the latent of the original, unmasked image. This encodes each row twice."""
    latent_mask: Literal["none", "comfyui", "diffusers"] = "none"
    """Add the column latent_mask, a mask of the latent's size. comfyui: noise_mask, resized bilinearly, with fractional
    values between 0 and 1. diffusers: the mask before dilation, resized by nearest neighbor, binary."""
    tile: Annotated[
        bool | None, Parameter(negative="--no-tile", show_default="only if an image does not fit in memory")
    ] = None
    """Encode images larger than a tile in overlapping tiles. --no-tile: never encode in tiles, and reject an image that
    does not fit in memory. A latent from tiles is close to the latent of the whole image, but not equal to it. The
    column tiled marks these rows."""
    tile_size: Annotated[int, Field(ge=64), unit("PIXELS")] = 512
    """Side of a tile, at least 64. Smaller tiles need less memory, but the latent differs more from that of the whole
    image."""
    mask_encoding: Literal["tensor", "packed"] = "tensor"
    """Format of stored masks. tensor: one byte per pixel, for any Parquet reader. packed: one bit per pixel, and a
    third less CPU time for the whole job, not counting the VAE; the Python functions open_latents and iter_rows unpack
    it."""
    deterministic: bool = False
    """Produce bit-identical rows in every run on the same kind of hardware. The batch size is 1, and on a CPU the VAE
    uses one thread, so the job is slower. Images that do not fit in memory are rejected unless --tile is given."""

    @model_validator(mode="after")
    def _validate_combinations(self) -> Self:
        if self.posterior_seed and self.posterior != "sample":
            raise ValueError("--posterior-seed needs --posterior sample; add it")
        if self.scaled and self.posterior == "moments":
            raise ValueError(
                "--scaled cannot be combined with --posterior moments; leave out --scaled, and scale after sampling"
            )
        if self.tile is False and self.tile_size != type(self).model_fields["tile_size"].default:
            raise ValueError("--tile-size cannot be combined with --no-tile; leave out one of the two")
        return self

    def recorded(self) -> dict[str, Any]:
        """Return the fields by their names in `inpaint_encode.metadata.RowMetadata`."""
        return {"compute_dtype" if name == "dtype" else name: value for name, value in self.model_dump().items()}


@section("Output", 5)
class Chunks(Frozen):
    """Size of a chunk, the unit of work, which becomes one data file."""

    chunk_rows: Annotated[int, Field(ge=1, le=100_000), unit("PAIRS")] = 256
    """Maximum number of pairs in a file. The pairs of a file are a chunk, the unit of work. Smaller chunks lose less
    work after a crash, and need more requests. All masks of an image are in one chunk if they fit."""
    chunk_bytes: Annotated[int, Field(ge=1), unit("BYTES")] = 64 * 2**20
    """Maximum total size of the image files of a chunk. A chunk ends before --chunk-rows pairs when its image files
    together reach this size. For photographs, the decoded pixels take about ten times the size of the files. Pixels
    above a task's share of a quarter of the node's memory are decoded later, by the VAE worker, which then waits."""


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

    max_rejected: Annotated[
        str, unit("COUNT|%"), matching(r"\d+|\d+(\.\d+)?%", "a number such as 100 or a percentage such as 1%")
    ] = "1%"
    """Maximum number or percentage of rejects. Give a number of pairs such as 100, or a percentage such as 1%. With
    more rejected pairs, the job ends with exit code 3. A number is checked throughout the job. A percentage is checked
    from the 1,000th pair on, and at the end."""
    limit: Annotated[int, Field(ge=0), unit("PAIRS", "none")] = 0
    """Number of pairs to process in this run, rounded up to whole chunks. The same command without --limit encodes the
    rest."""
    retry_rejected: bool = False
    """Try rejected pairs again. Without --retry-rejected, later runs skip them."""
    refresh: bool = False
    """Encode a pair again if the version of its image or mask has changed: the ETag, or on disk the size or
    modification time. A pair of a list is also encoded again if its line in the list has changed. All other rows are
    kept."""
    drop_vanished: bool = False
    """With --refresh, remove rows whose image or mask is no longer in the source."""
    shard: Annotated[str, unit("I/N"), matching(r"(\d+/[1-9]\d*)?", "two numbers such as 0/4, counted from 0")] = ""
    """Share the output with other runs: N runs with --shard 0/N to N-1/N encode different parts at the same time, each
    on a Ray cluster of its own. Give all of them the same other options. A run that ends takes over what runs that have
    died left. Without --shard, only one run can write to an output."""
    address: Annotated[str, unit("HOST:PORT", "RAY_ADDRESS")] = ""
    """Ray cluster to join. The default is RAY_ADDRESS, which `ray job submit` sets. If neither is set, Ray starts on
    this machine."""

    @model_validator(mode="after")
    def _validate_drop_vanished(self) -> Self:
        if self.drop_vanished and not self.refresh:
            raise ValueError("--drop-vanished needs --refresh; add it")
        if self.shard and not self.shard_numbers[0] < self.shard_numbers[1]:
            raise ValueError(f"--shard {self.shard}: the first number must be less than the second; count from 0")
        if self.shard and (self.refresh or self.retry_rejected or self.limit):
            raise ValueError(
                "--shard cannot be combined with --refresh, --retry-rejected or --limit; run these without --shard "
                "when no other run writes to the output"
            )
        return self

    @property
    def shard_numbers(self) -> tuple[int, int]:
        """Return the two numbers of ``--shard``; (0, 1) without it."""
        number, _, count = (self.shard or "0/1").partition("/")
        return int(number), int(count)

    def allows(self, rejected: int, decided: int, *, finished: bool) -> bool:
        """Return whether ``rejected`` of ``decided`` pairs are at most ``max_rejected``.

        A percentage is checked at the end, and before the end only after 1,000 decided pairs.
        """
        if not self.max_rejected.endswith("%"):
            return rejected <= int(self.max_rejected)
        if not finished and decided < 1_000:
            return True
        return rejected * 100 <= Decimal(self.max_rejected[:-1]) * decided


_CONDITION = r"[\w./-]+=!?(?:in\([\w.-]+(?:, ?[\w.-]+)*\)|[\w.-]+)"
_LABELS = matching(
    rf"(?:{_CONDITION}(?:, ?{_CONDITION})*)?", "key=value, key=!value or key=in(a,b), separated by commas"
)


def label_selector(labels: str) -> dict[str, str] | None:
    """Return the conditions of `Workers.encode_on` or `Workers.fetch_on` by key, for Ray's ``label_selector``.

    Returns:
        None if there are no conditions.
    """
    return dict(one.split("=", 1) for one in re.findall(_CONDITION, labels)) or None


@section("Workers", 6)
class Workers(Frozen):
    """Number of workers, what each does at a time, and the resources of the cluster that they reserve."""

    batch_size: Annotated[Literal["auto"] | Annotated[int, Field(ge=1)], unit("IMAGES")] = "auto"
    """Maximum number of images of one size in a forward pass. Larger batches use a GPU better and need more memory.
    auto: up to 8, fewer if they do not fit in the GPU's free memory; on a CPU, at most half a million pixels in a
    pass."""
    compile: Annotated[bool, Parameter(negative="--no-compile")] = True
    """On a GPU, compile the VAE for frequent batch shapes. This is faster; results differ only by rounding.
    --no-compile: compile none."""
    gpus_per_worker: Annotated[
        str, unit("GPUS"), matching(r"auto|\d+|0\.\d+", "auto, a whole number or a fraction such as 0.5")
    ] = "auto"
    """GPUs per VAE worker, a Ray actor with one VAE. 0: the worker uses the CPU. 0.5: two workers share a GPU. auto: 1
    if the cluster has a GPU now, otherwise 0. Give a number and --max-workers if the cluster starts GPU nodes on
    demand."""
    fetch_threads: Annotated[int, Field(ge=1, le=256), unit("COUNT")] = 16
    """Number of concurrent downloads in a fetch task, 1 to 256."""
    min_workers: Annotated[int, Field(ge=1), unit("WORKERS")] = 1
    """Number of VAE workers to start with."""
    max_workers: Annotated[int, Field(ge=0), unit("WORKERS")] = 0
    """Maximum number of VAE workers; 0: the number that fits the GPUs of the cluster. That is the number of GPUs now in
    the cluster, divided by --gpus-per-worker, or one worker without GPUs. If the cluster starts GPU nodes on demand,
    give a number; the cluster then starts nodes for that many workers."""
    fetch_cpus: Annotated[float, Field(gt=0), unit("CPUS")] = 1.0
    """CPUs to reserve for a task that fetches and decodes a chunk."""
    encode_cpus: Annotated[str, unit("CPUS"), matching(r"auto|\d+|\d+\.\d+", "auto or a number such as 2 or 0.5")] = (
        "auto"
    )
    """CPUs to reserve for a VAE worker. auto: 0 for a worker with a GPU, so that CPU tasks never block it; otherwise
    2."""
    write_cpus: Annotated[float, Field(gt=0), unit("CPUS")] = 0.75
    """CPUs to reserve for a task that writes a chunk."""
    encode_on: Annotated[str, unit("LABELS"), _LABELS] = ""
    """Labels of the nodes for VAE workers, such as ray.io/accelerator-type=in(L4,A10G) or pool=gpu,market=!spot. All
    conditions must hold: key=value, key=!value or key=in(a,b). By default, any node with free resources."""
    fetch_on: Annotated[str, unit("LABELS"), _LABELS] = ""
    """Labels of the nodes for tasks that fetch, decode and write, in the form of --encode-on. By default, any node with
    free CPUs."""

    @model_validator(mode="after")
    def _validate_order(self) -> Self:
        if self.max_workers and self.max_workers < self.min_workers:
            raise ValueError(
                f"--max-workers {self.max_workers} is less than --min-workers {self.min_workers}; raise --max-workers, "
                "or set it to 0"
            )
        return self
