"""What a job is told: every option, its default and its consequence, validated before Ray starts.

One class for each question: where the pairs come from, what a row is, who does the work, how the run behaves.
The command line and TOML files spell the fields the same way: ``grow_mask_by`` is ``--grow-mask-by``.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, Self

from cyclopts import Group, Parameter
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "CONTRACT_VERSION",
    "Batches",
    "Chunks",
    "Decoding",
    "EncodeJob",
    "Labels",
    "Limits",
    "Output",
    "PlanOptions",
    "RowSettings",
    "RunOptions",
    "Source",
    "SourceAccess",
    "VaeSource",
    "VerifyOptions",
    "Workers",
    "selector",
]

CONTRACT_VERSION = 1
"""Version of the transform that `inpaint_encode.transform` and `inpaint_encode.vae` carry out."""


class _Preset(NamedTuple):
    channel: str
    polarity: str
    pattern: str = ""


MASK_PRESETS = {
    "comfy": _Preset("alpha", "transparent"),
    "lama": _Preset("luma", "white", "{stem}_mask{n}.png"),
    "mat": _Preset("luma", "black"),
    "brushnet": _Preset("luma", "black"),
    "iopaint": _Preset("luma", "white"),
    "onetrainer": _Preset("luma", "white", "{stem}-masklabel.png"),
}
"""What each of these tools takes for a mask, and for the name of one."""


def _preset_pattern(given: Any) -> Any:
    """Give a source that is told by prefixes and without a pattern that of the preset."""
    if not isinstance(given, dict) or not isinstance(source := given.get("source"), dict):
        return given
    decoding = given.get("decoding")
    name = decoding.get("mask_preset") if isinstance(decoding, dict) else getattr(decoding, "mask_preset", None)
    if name not in MASK_PRESETS or source.get("pairs") or source.get("mask_pattern"):
        return given
    return {**given, "source": {**source, "mask_pattern": MASK_PRESETS[name].pattern}}


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


def _section(title: str, order: int) -> Parameter:
    return Parameter(name="*", group=Group(title, sort_key=order))


@_section("Where the pairs come from", 1)
class Source(_Frozen):
    """Prefixes that are listed, a manifest that names every pair, or files that hold them.

    Of two prefixes, image and mask belong together when their relative paths agree but for the suffix, or by
    ``mask_pattern``. A manifest gives ``mask_index`` 0, 1, ... to an image's masks in its own order.
    """

    images: str = ""
    """Prefix of the images: s3://bucket/prefix, gs://bucket/prefix, file:///path or a plain path; read recursively."""
    masks: str = ""
    """Prefix of the masks; white is repainted, unless --mask-polarity says otherwise. With --mask-pattern, by default
    that of the images. Without either, and with --mask-channel alpha, each image is its own mask."""
    mask_pattern: str = ""
    """A mask's file name, such as {stem}_mask{n}.png: a file that matches is a mask of the image in the same relative
    folder whose name without the suffix is {stem}. {n}, one to nine digits, allows an image several masks, each a
    pair whose key is the mask's path without the suffix; without {n} the key is the image's. Below one prefix, a file
    that matches and whose {stem} another file has is a mask, everything else an image."""
    pairs: str = ""
    """In the place of prefixes a .parquet, .csv, .jsonl or .tar file, or a prefix of Parquet files or of tars. A list
    has URIs, absolute or relative to its folder; nothing is listed then, and an object that changes in place is not
    noticed, by --refresh neither. Parquet may hold the images themselves, as bytes or struct<bytes, path>. Other
    columns are carried to the output, those of CSV as strings. A tar is a WebDataset: a/042.jpg, a/042.mask.png or
    several a/042.mask0.png, and a/042.json and a/042.txt, which are carried as strings."""
    image_column: str = "image"
    """Column with the images or their URIs."""
    mask_column: str = "mask"
    """Column with the masks or their URIs; in tars what stands between the sample's name and the suffix. Where it is
    --image-column, each image is its own mask."""
    key_column: str = ""
    """Column with a unique key for each pair; by default the image's relative path without the suffix, of rows and tars
    the file's with the row's number or the sample's name after it, and from the image's second mask on its number: a,
    a/1, a/2. Of tars it may be __key__, the sample's name."""
    random_masks: Annotated[int, Field(ge=0, le=1_000)] = 0
    """Masks to draw for each image, in the place of masks that are there: each by --mask-seed, its key and its number
    alone, wherever it is drawn."""
    mask_style: Literal["brush", "box", "mixed"] = "mixed"
    """What is drawn: brush is 1 to 4 strokes, S/25 to S/6 wide, of an image whose shorter side is S; box is 1 to 4
    boxes, each side an eighth to a half of the image's; mixed is one or the other."""
    mask_seed: Annotated[int, Field(ge=0)] = 0
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


@_section("Where the pairs come from", 1)
class SourceAccess(_Frozen):
    """How the source's store is asked; that of the output is asked as the environment says."""

    anonymous: bool = False
    """Ask s3:// and gs:// for the source without credentials, as public buckets allow."""
    requester_pays: bool = False
    """Accept that the requests for the source on s3:// are charged to you."""
    endpoint_url: str = ""
    """Server of the source's s3:// or gs://, if it is another than the environment's AWS_ENDPOINT_URL says."""

    @field_validator("endpoint_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if value and not re.fullmatch(r"https?://[^/@]+/?", value):
            raise ValueError(f"--endpoint-url {value!r} is no http://host:port or https://host")
        return value.rstrip("/")


@_section("The VAE", 2)
class VaeSource(_Frozen):
    """Which VAE to load, and from where."""

    vae: str
    """A diffusers folder, local or s3://, a single .safetensors file, local or s3://, also a whole checkpoint, or a
    Hugging Face hub id; weights in safetensors only."""
    subfolder: str = ""
    """Folder of the VAE inside a whole pipeline, usually "vae"."""
    revision: str = ""
    """Branch, tag or commit on the hub; a commit keeps a long job from changing under you."""
    vae_family: Literal["", "sd1", "sdxl", "sd3", "flux1"] = ""
    """The model that a single file's VAE is of, where its names and shapes are those of several: settles the scaling in
    the metadata and for --scaled. SD 1.x and SD 2 are one: sd1."""
    flux2_latents: Literal["packed", "plain"] = "packed"
    """How Flux.2's latents are stored: packed and normalised, 128 channels at 1/16, as ComfyUI has them, or plain, 32
    channels at 1/8. Both are cropped to multiples of 16."""


@_section("How files are read", 3)
class Decoding(_Frozen):
    """How an image's and a mask's file become pixels; like `RowSettings`, the same for all rows of an output."""

    mask_channel: Literal["auto", "red", "green", "blue", "alpha", "luma"] = "auto"
    """What of a mask file is the mask. luma is grey as it is, colour by its luma, whatever its alpha says; auto is the
    same, but rejects a file whose alpha is not opaque everywhere, since it might be the mask. Grey is red, green and
    blue alike; alpha rejects a file that has none."""
    mask_polarity: Literal["white", "black", "transparent", "opaque"] = "white"
    """What is repainted: white or black, with --mask-channel alpha transparent (its default) or opaque. Levels of 128
    and more are white or opaque, those up to 127 black or transparent; a mask of another size is first inverted, then
    resized."""
    mask_preset: Literal["comfy", "lama", "mat", "brushnet", "iopaint", "onetrainer"] | None = None
    """A tool whose masks these are: sets --mask-channel, --mask-polarity and for lama and onetrainer --mask-pattern,
    where they are not given."""
    icc: Literal["srgb", "ignore"] = "srgb"
    """Convert an image by its embedded colour profile to sRGB, or ignore the profile."""
    resize: Annotated[int, Field(ge=0)] = 0
    """Length in pixels that an image's shorter side is brought to, before the crop; 0 leaves it."""
    resolution: str = ""
    """WIDTHxHEIGHT that every image gets: resized to cover it, then cropped at the centre."""
    buckets: Annotated[int, Field(ge=0)] = 0
    """A budget of pixels, 1048576 for SDXL: every image is brought, as by --resolution, to the one of the sizes of at
    most so many that is nearest to its proportions. Their sides are from half to twice the square's."""
    bucket_step: Annotated[int, Field(ge=1)] = 64
    """What the sides of --buckets are multiples of."""
    upscale: bool = False
    """With one of these three, enlarge images that are too small; without it they are rejected as size.too_small."""

    @model_validator(mode="before")
    @classmethod
    def _conventions(cls, given: Any) -> Any:
        """Let the preset, and then the channel, say what the command does not."""
        if not isinstance(given, dict):
            return given
        preset = MASK_PRESETS.get(given.get("mask_preset") or "")
        channel = given.get("mask_channel", preset.channel if preset else "auto")
        polarity = "transparent" if channel == "alpha" else "white"
        if preset and (preset.channel == "alpha") == (channel == "alpha"):
            polarity = preset.polarity
        return {"mask_channel": channel, "mask_polarity": polarity, **given}

    @field_validator("resolution")
    @classmethod
    def _width_x_height(cls, value: str) -> str:
        if value and not re.fullmatch(r"[1-9]\d{0,5}x[1-9]\d{0,5}", value):
            sides = re.findall(r"[1-9]\d*", value) or ["1024"]
            nearest = f"{sides[0]}x{sides[-1]}"
            raise ValueError(f"--resolution {value} is not WIDTHxHEIGHT in pixels; did you mean {nearest}?")
        return value

    @model_validator(mode="after")
    def _polarity_of_channel(self) -> Self:
        of_alpha = self.mask_polarity in ("transparent", "opaque")
        if of_alpha == (self.mask_channel == "alpha"):
            return self
        has = "is transparent or opaque" if self.mask_channel == "alpha" else "is white or black; alpha has the others"
        raise ValueError(f"--mask-polarity {self.mask_polarity}: --mask-channel {self.mask_channel} {has}")

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        given = {"--resize": self.resize, "--resolution": self.resolution, "--buckets": self.buckets}
        named = [name for name, value in given.items() if value]
        if len(named) > 1:
            raise ValueError(f"{' and '.join(named)} each decide an image's size; give one of them")
        if self.upscale and not named:
            raise ValueError("--upscale says how to resize; add --resize, --resolution or --buckets")
        if self.bucket_step != 64 and not self.buckets:
            raise ValueError("--bucket-step is of --buckets; give both")
        return self

    def recorded(self) -> dict[str, Any]:
        """What of this an output keeps: a preset is the channel and the polarity that it stands for."""
        return self.model_dump(exclude={"mask_preset"})


def _refuse_masks_that_disagree(source: Source, decoding: Decoding) -> None:
    if source.is_own_mask and decoding.mask_channel != "alpha":
        raise ValueError(
            "images alone are no pairs; add --masks, --mask-pattern where masks lie beside images, "
            "--mask-channel alpha where each image's alpha is its mask, or --random-masks 1 to draw some"
        )
    if source.random_masks and (decoding.mask_channel, decoding.mask_polarity) != ("auto", "white"):
        raise ValueError(
            "--mask-channel, --mask-polarity and --mask-preset say how mask files are read, and --random-masks draws "
            "them; leave out one or the other"
        )


@_section("How files are read", 3)
class Limits(_Frozen):
    """What is not read at all; they leave no trace in the rows, and may differ from run to run."""

    max_pixels: Annotated[int, Field(ge=1)] = 64_000_000
    """An image or mask whose header says more is rejected before it is decoded."""
    max_bytes: Annotated[int, Field(ge=1)] = 256 * 2**20
    """A file of more is rejected and not fetched; 64 megapixels of uncompressed RGB are less."""


@_section("What a row is", 4)
class RowSettings(_Frozen):
    """Settings that shape every row; an output holds rows of one such set only."""

    grow_mask_by: Annotated[int, Field(ge=0, le=64)] = 6
    """Side in pixels of the square that dilates the mask: a larger one hides more of the seam."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The VAE's compute type; auto is bfloat16 on GPUs of compute capability 8.0 and up, else float32."""
    samples_dtype: Literal["float16", "float32"] = "float16"
    """How latents are stored; float32 doubles their bytes."""
    posterior: Literal["mean", "sample", "moments"] = "mean"
    """What of the VAE's posterior is stored: its mean; a draw, which is the same for a key and a seed on any cluster;
    or the means and then the log-variances, twice as many channels."""
    posterior_seed: int = 0
    """Which draw --posterior sample takes: another seed, another draw of every row."""
    scaled: bool = False
    """Store latents as diffusion models take them, scaled and shifted as the VAE's configuration says."""
    also_original: bool = False
    """Add original_samples, the latent of the image as it is, not greyed; each row is encoded twice."""
    latent_mask: Literal["none", "comfyui", "diffusers"] = "none"
    """Add latent_mask, a mask at the latent's size: noise_mask by ComfyUI's bilinear rule, 0 to 1, or the mask that was
    not grown by diffusers' nearest rule, 0 or 1."""
    tile: Annotated[bool | None, Parameter(negative="--no-tile")] = None
    """Encode images larger than a tile in tiles that overlap, or never; by default only where memory holds not even
    one image. A tiled latent is near the whole one, and not equal to it; the column tiled says which is which."""
    tile_size: Annotated[int, Field(ge=64)] = 512
    """Side of a tile in pixels: smaller ones need less memory, and are farther from the whole latent."""
    mask_encoding: Literal["tensor", "packed"] = "tensor"
    """How masks are stored: a tensor that every reader takes, or packed bits, which cost a sixth as much to write."""
    deterministic: bool = False
    """The same bits for the same pair on the same kind of hardware, by batches of one: slower on GPUs. Nothing is tiled
    for want of memory then."""

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.posterior_seed and self.posterior != "sample":
            raise ValueError("--posterior-seed says which draw --posterior sample takes; add that")
        if self.scaled and self.posterior == "moments":
            raise ValueError("--scaled is of a latent, and moments are not one yet; scale what you draw from them")
        if self.tile is False and self.tile_size != type(self).model_fields["tile_size"].default:
            raise ValueError("--tile-size is of tiles, and --no-tile forbids them; leave out one of the two")
        return self

    @property
    def tiles(self) -> bool | None:
        """Whether to tile: always, never, or where memory forces it, which is no rule that bits could depend on."""
        return False if self.tile is None and self.deterministic else self.tile


@_section("The output", 5)
class Chunks(_Frozen):
    """In what pieces rows go."""

    chunk_rows: Annotated[int, Field(ge=1, le=100_000)] = 256
    """Pairs in one file, the unit of work: fewer lose less when a worker dies, and cost more requests. An image's masks
    stay in one, unless it has more of them than this."""
    chunk_bytes: Annotated[int, Field(ge=1)] = 64 * 2**20
    """Bytes of image files after which a chunk ends early: a task holds a chunk's pixels, some ten times as much. A
    manifest tells no sizes: lower --chunk-rows for large images."""


@_section("The output", 5)
class Output(Chunks):
    """Where rows go and in what pieces."""

    output: str
    """Folder or prefix of the output; everything in it that is not data begins with "_"."""
    overwrite: bool = False
    """Start anew: remove what an earlier job wrote there, then encode every pair."""


_SELECTOR = r"[\w./-]+=!?(?:in\([\w.-]+(?:, ?[\w.-]+)*\)|[\w.-]+)"
Labels = Annotated[str, Field(pattern=rf"^(?:{_SELECTOR}(?:, ?{_SELECTOR})*)?$")]
"""Conditions on a node's labels, all of which must hold: ``key=value``, ``key=!value``, ``key=in(one,two)``."""


def selector(labels: Labels) -> dict[str, str] | None:
    """Take the conditions apart, by key, as Ray is told them; None if there are none."""
    return dict(one.split("=", 1) for one in re.findall(_SELECTOR, labels)) or None


@_section("Who does the work", 6)
class Batches(_Frozen):
    """What one worker does at once, and on what."""

    batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Most images of one size in one forward pass: more fill a GPU better and need more of its memory. auto is 8, or
    as many as will fit into a GPU's free memory; on a CPU, as many as have half a million pixels."""
    compile: Annotated[bool, Parameter(negative="--no-compile")] = True
    """On a GPU, compile the VAE for batch shapes that come often: faster, equal but for rounding."""
    gpus_per_worker: Annotated[str, Field(pattern=r"^(auto|\d+|0\.\d+)$")] = "auto"
    """GPUs of one VAE worker: 0 is the CPU, 0.5 lets two share a GPU, auto is 1 where the cluster has one now."""
    fetch_threads: Annotated[int, Field(ge=1, le=256)] = 16
    """Downloads under way at once in each fetch task."""


@_section("Who does the work", 6)
class Workers(Batches):
    """How much of the cluster the job asks for."""

    min_workers: Annotated[int, Field(ge=1)] = 1
    """VAE workers that the job starts with."""
    max_workers: Annotated[int, Field(ge=0)] = 0
    """Most VAE workers; 0 is one for each share of a GPU the cluster has now, or one without GPUs. A cluster that
    starts GPU nodes on demand starts as many as these workers need."""
    fetch_cpus: Annotated[float, Field(gt=0)] = 1.0
    """CPUs that a task takes which fetches and decodes a chunk, of those a node says it has."""
    encode_cpus: Annotated[str, Field(pattern=r"^(auto|\d+|\d+\.\d+)$")] = "auto"
    """CPUs that a VAE worker takes: auto is 0 beside a GPU, so that no other task keeps it from its GPU, else 2."""
    write_cpus: Annotated[float, Field(gt=0)] = 0.75
    """CPUs that a task takes which writes a chunk."""
    encode_on: Labels = ""
    """Labels of the nodes for VAE workers, such as ray.io/accelerator-type=in(L4,A10G) or pool=gpu,market=!spot;
    by default every node with what a worker takes."""
    fetch_on: Labels = ""
    """Labels of the nodes on which files are fetched, decoded and written; by default every node with free CPUs."""

    @model_validator(mode="after")
    def _order(self) -> Self:
        if self.max_workers and self.max_workers < self.min_workers:
            raise ValueError(
                f"--max-workers {self.max_workers} is below --min-workers {self.min_workers}; raise it or set 0"
            )
        return self


@_section("How the run behaves", 7)
class RunOptions(_Frozen):
    """Limits and manners of one run; they leave no trace in the rows."""

    max_rejected: str = "1%"
    """Rejected pairs to accept, a count or a percentage; with more the job ends with exit code 3."""
    retry_rejected: bool = False
    """Try the rejected pairs again; without it a rejection is a decision like any other."""
    refresh: bool = False
    """Encode again the pairs whose image or mask has changed since, by the listing's versions, or whose line in the
    manifest has; every other row stays."""
    drop_vanished: bool = False
    """With --refresh, drop the rows whose image or mask is gone from the source."""
    address: str = ""
    """Ray cluster to join; by default the one this process runs in, else one is started on this machine."""

    @field_validator("max_rejected")
    @classmethod
    def _count_or_percentage(cls, value: str) -> str:
        if not re.fullmatch(r"\d+|\d+(\.\d+)?%", value):
            raise ValueError(f"--max-rejected {value!r} is neither a count such as 100 nor a percentage such as 1%")
        return value

    @model_validator(mode="after")
    def _drop_needs_refresh(self) -> Self:
        if self.drop_vanished and not self.refresh:
            raise ValueError("--drop-vanished is a part of --refresh; give both")
        return self

    def allows(self, rejected: int, decided: int, *, finished: bool) -> bool:
        """Whether ``rejected`` of ``decided`` pairs are acceptable.

        A percentage is judged at the end, and before the end only after 1,000 decided pairs.
        """
        if not self.max_rejected.endswith("%"):
            return rejected <= int(self.max_rejected)
        if not finished and decided < 1_000:
            return True
        return rejected * 100 <= Decimal(self.max_rejected[:-1]) * decided


class EncodeJob(_Frozen):
    """Everything that ``inpaint-encode encode`` can be told."""

    source: Source = Field(default_factory=Source)
    access: SourceAccess = SourceAccess()
    vae: VaeSource
    output: Output
    decoding: Decoding = Decoding()
    limits: Limits = Limits()
    rows: RowSettings = RowSettings()
    workers: Workers = Workers()
    run: RunOptions = RunOptions()

    _preset = model_validator(mode="before")(_preset_pattern)

    @model_validator(mode="after")
    def _masks_agree(self) -> Self:
        _refuse_masks_that_disagree(self.source, self.decoding)
        return self


@_section("What to verify", 1)
class VerifyOptions(_Frozen):
    """Everything that ``inpaint-encode verify`` can be told."""

    output: str
    """Folder or prefix that an encode command wrote."""
    sample: Annotated[int, Field(ge=0)] = 0
    """Rows, drawn at random, to fetch, encode again on this machine and compare; 0 loads no VAE."""
    seed: int = 0
    """Which rows --sample draws: the same seed draws the same rows of the same output."""
    vae: str = ""
    """Where --sample loads the VAE from, if not from where the job did; its weights must be the same."""
    repair: bool = False
    """Remove what is damaged or left over, so that the same encode command makes it again."""
    address: str = ""
    """Ray cluster to join; by default the one this process runs in, else one is started on this machine."""


@_section("The VAE", 2)
class PlannedVae(VaeSource):
    """Which VAE the job will have, if that is known yet."""

    vae: str = ""
    """A folder in the diffusers layout, a single .safetensors file or a Hugging Face hub id; without one, 8 pixels a
    latent and 4 channels."""


@_section("How to estimate", 7)
class Estimation(_Frozen):
    """How much is looked at, and how it is told."""

    sample: Annotated[int, Field(ge=1)] = 256
    """Images, drawn at random, whose headers are read; four times as many halve the errors."""
    seed: int = 0
    """Which images --sample draws: the same seed draws the same ones of the same source."""
    calibrate: Annotated[float, Field(ge=0)] = 0.0
    """Seconds to fetch, decode and encode sampled pairs on this machine, to tell the job's hours; needs --vae."""
    price: Annotated[float, Field(ge=0)] = 0.0
    """What an hour of this machine's device costs, in any currency; needs --calibrate."""
    as_json: bool = False
    """Print JSON instead of a table."""


class PlanOptions(_Frozen):
    """Everything that ``inpaint-encode plan`` can be told."""

    source: Source
    access: SourceAccess = SourceAccess()
    vae: PlannedVae = PlannedVae()
    decoding: Decoding = Decoding()
    limits: Limits = Limits()
    rows: RowSettings = RowSettings()
    chunks: Chunks = Chunks()
    batches: Batches = Batches()
    estimation: Estimation = Estimation()

    _preset = model_validator(mode="before")(_preset_pattern)

    @model_validator(mode="after")
    def _masks_agree(self) -> Self:
        _refuse_masks_that_disagree(self.source, self.decoding)
        return self

    @model_validator(mode="after")
    def _needs(self) -> Self:
        if self.estimation.calibrate and not self.vae.vae:
            raise ValueError("--calibrate encodes, so it needs --vae")
        if self.estimation.price and not self.estimation.calibrate:
            raise ValueError("--price is of hours, which only --calibrate measures; give both")
        if not self.vae.vae and self.vae != PlannedVae():
            raise ValueError("--subfolder, --revision, --vae-family and --flux2-latents say more of --vae; give it too")
        return self
