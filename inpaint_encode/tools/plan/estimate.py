"""Estimate of an encode job: counts from planning its source, a sample of its images' headers, and a finished run."""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.planner import Planner
from inpaint_encode.output.resume import row_metadata, validate_sizes
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import DUPLICATE_KEY, SOURCE_PAIRS, extra_columns_schema
from inpaint_encode.settings import PlanOptions, RunOptions
from inpaint_encode.sources import PairReader, PairSource, open_source
from inpaint_encode.sources.part_uris import ParquetRow, parse_part
from inpaint_encode.tools.inspect.summary import read_report

from .sampling import Estimate, Header, Reservoir, mean, read_header, share, total

_OBJECTS_PER_LIST = 1_000
"""Objects in one answer of S3 to a LIST request."""
_ITEM_BYTES = {"float16": 2, "float32": 4}

_ASSUMED_VAE = VaeMetadata(vae_class="", weights_sha256="", vae_scale_factor=8, crop_multiple=8, latent_channels=4)
"""Without ``--vae``."""

_AFFECTS_RATE = (
    *("config_sha256", "compute_dtype", "also_original", "tile", "tile_size", "deterministic", "mask_encoding"),
    *("resize", "resolution", "buckets", "bucket_step", "upscale"),
)
"""Recorded settings that change the work per pair."""


@dataclass(frozen=True)
class Latents:
    """Shape and type of the stored latents."""

    ratio: int
    """Pixels of a side per latent value."""
    multiple: int
    """Multiple that image sides are cropped to."""
    channels: int
    dtype: str
    assumed: bool
    """Whether the shape is assumed, because ``--vae`` is not given."""


@dataclass(frozen=True)
class Requests:
    """Requests to S3 with an empty output, without retries, lease renewals, receipts and rejects files."""

    list: int
    """For the source."""
    get: int
    """One per image and mask file, or per row group and column of Parquet sources; a few per chunk."""
    put: int
    """One per chunk, the parts and the markers of the plan, and three for the job."""


@dataclass(frozen=True)
class Size:
    """Images of one size after the crop."""

    height: int
    width: int
    images: int
    """In the sample."""
    share: Estimate


@dataclass(frozen=True)
class Rejects:
    """Images that will be rejected with this error, as their headers or their keys show."""

    error: str
    images: int
    """In the sample; of `inpaint_encode.schema.DUPLICATE_KEY`, in the whole source."""
    share: Estimate


@dataclass(frozen=True)
class RateEstimate:
    """Hours and cost at the rate of a finished run."""

    output: str
    """Output of that run, as given to ``--rate-from``."""
    pairs: int
    """Pairs that it encoded or rejected in ``seconds``."""
    seconds: float
    startup_excluded: bool
    """Whether ``seconds`` begin when the first chunk was done, not when the run started."""
    pairs_per_second: float
    hours: float
    """For all planned pairs, without the start of Ray and of the workers if that is excluded."""
    cost: float | None
    """Cost of ``hours``, in the currency of ``--price``; None without it."""
    assumes: str
    differs: list[str]
    """Settings that change the work per pair and differ from those of the output; ``config_sha256`` is the VAE's."""


@dataclass(frozen=True)
class JobEstimate:
    """Counts and estimates of a job before it starts."""

    pairs: int
    duplicate_keys: int
    """Pairs that will be rejected, because an earlier pair has their key."""
    repeated_lines: int
    """Lines that are left out, because an earlier line has the same contents."""
    unpaired_images: int
    unpaired_masks: int
    ignored_files: int
    chunks: int
    """Also the number of data files in the output."""
    source_image_bytes: int | None
    """Each image counted once; None for a manifest, because its files are not listed."""
    source_mask_bytes: int | None
    requests: Requests
    latents: Latents
    sampled: int
    """Images whose headers were read."""
    header_bytes: int
    """Bytes read for the headers."""
    sizes: list[Size]
    """All sizes in the sample, the most frequent first."""
    rejects: list[Rejects]
    rejected: Estimate
    """Share of all images that will be rejected, as far as keys and headers show."""
    megapixels: Estimate
    """Mean per image that is not rejected, after the crop."""
    latent_bytes: Estimate
    """Of the whole output, before compression."""
    mask_bytes: Estimate
    """Of the whole output at one bit per pixel, before compression."""
    rate: RateEstimate | None
    """None without ``--rate-from``."""

    @property
    def all_sampled(self) -> bool:
        """Whether the headers of all images were read, so that no number has a sampling error."""
        return self.sampled == self.pairs - self.duplicate_keys

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "all_sampled": self.all_sampled}


class _SourceCounts:
    """Counts of a source, and a random sample of its pairs without a duplicate key."""

    def __init__(self, source: PairSource, options: PlanOptions) -> None:
        """Plan the source, as the job would, into a temporary folder.

        Raises:
            UsageError: the source cannot be read.
            OSError: the disk of the temporary folder is full.
        """
        self.duplicate_keys = 0
        self._images = self._masks = 0
        self._images_in_rows = self._masks_in_rows = False
        self.sample = Reservoir(options.estimation.sample, options.estimation.seed)
        self._source = source
        extra = extra_columns_schema(source.extra_columns)
        with tempfile.TemporaryDirectory(prefix="inpaint-encode-plan-") as folder:
            log = PlanLog(OutputState(folder, job="0" * 8, token="0" * 8), extra)
            for _ in Planner(log, source, options.chunks, RunOptions(), lambda unit: (), self._add).plan():
                pass
        self.pairs, self.repeated_lines, self.chunks = log.pairs, log.repeated, len(log.chunks)
        self._plan_files = sum(1 + len(parts) for unit in log.units for parts in unit.revisions)

    def _add(self, unit: pa.Table) -> None:
        """Count the pairs of a unit.

        An image counts once in a unit, since its pairs are neighbors there. So an image in two units counts twice,
        and is fetched twice.
        """
        readable = unit.filter(pc.is_null(unit["error"])).select(SOURCE_PAIRS.names)
        images, masks = readable["image_uri"], readable["mask_uri"]
        random_masks = pc.starts_with(masks, "random:")
        masks = masks.filter(pc.and_not(pc.not_equal(masks, images), random_masks))
        self.duplicate_keys += unit.num_rows - readable.num_rows
        self._images += pc.count_distinct(images).as_py()
        self._masks += len(masks)
        self._images_in_rows = self._images_in_rows or _is_parquet_row(images)
        self._masks_in_rows = self._masks_in_rows or _is_parquet_row(masks)
        self.sample.add(readable)

    def requests(self) -> Requests:
        """Count one GET per object, tar member, or row group's column in each chunk, and what each chunk needs."""
        row_groups, chunks = self._source.image_row_groups, self.chunks
        gets = 2 * chunks + 2 * chunks * (row_groups > 0)
        for files, in_rows in ((self._images, self._images_in_rows), (self._masks, self._masks_in_rows)):
            gets += row_groups + chunks if row_groups and in_rows else files  # two chunks may both read a row group
        lists = math.ceil(self._source.objects_listed / _OBJECTS_PER_LIST)
        return Requests(list=lists, get=gets, put=chunks + self._plan_files + 3)


def _is_parquet_row(uris: pa.ChunkedArray) -> bool:
    """Return whether the first URI is that of a row of a Parquet file; then the others are too."""
    return len(uris) > 0 and isinstance(parse_part(uris[0].as_py()), ParquetRow)


def estimate(options: PlanOptions, on_status: Callable[[str], None]) -> JobEstimate:
    """Plan the source, read the headers of a sample, and estimate the job.

    Memory is bounded: the plan is written to a temporary folder, which needs about as much space as ``_plan/`` of the
    output.

    Args:
        options: of the command.
        on_status: called with a line of text when a step begins.

    Raises:
        UsageError: the source, the VAE or the report of ``--rate-from`` is missing or does not fit.
        JobFailed: an image cannot be read, or a report is damaged.
    """
    finished = read_finished_run(options.estimation.rate_from) if options.estimation.rate_from else None
    source = open_source(options.source, options.access.to_access())
    vae = _load_vae_metadata(options)
    metadata = row_metadata(options.rows, options.decoding, vae or _ASSUMED_VAE)
    shape = metadata.vae.vae_scale_factor, metadata.vae.crop_multiple, metadata.vae.latent_channels
    latents = Latents(*shape, options.rows.samples_dtype, assumed=vae is None)
    validate_sizes(metadata)
    on_status("reading the list of pairs" if options.source.pairs else "listing the images and the masks")
    counts = _SourceCounts(source, options)
    headers = _read_headers(options, counts.sample, source, metadata, on_status)
    population, sampled = counts.sample.population, len(headers)

    def share_of_all(images: int) -> Estimate:
        return share(images, sampled, population).scaled(population / counts.pairs)

    sizes = Counter(header.size for header in headers if header.size)
    errors = Counter(header.error for header in headers if header.error)
    rejects = [Rejects(error, count, share_of_all(count)) for error, count in errors.most_common()]
    rejected, duplicates = share_of_all(errors.total()), counts.duplicate_keys / counts.pairs
    if duplicates:
        rejects.append(Rejects(DUPLICATE_KEY, counts.duplicate_keys, Estimate(duplicates, 0.0)))
    pixels = [math.prod(header.size) if header.size else 0 for header in headers]
    all_pixels = total(pixels, population)
    image_bytes, mask_bytes = source.image_and_mask_bytes or (None, None)
    return JobEstimate(
        pairs=counts.pairs,
        duplicate_keys=counts.duplicate_keys,
        repeated_lines=counts.repeated_lines,
        unpaired_images=source.left_out.unpaired_images,
        unpaired_masks=source.left_out.unpaired_masks,
        ignored_files=source.left_out.ignored_files,
        chunks=counts.chunks,
        source_image_bytes=image_bytes,
        source_mask_bytes=mask_bytes,
        requests=counts.requests(),
        latents=latents,
        sampled=sampled,
        header_bytes=sum(header.bytes_read for header in headers),
        sizes=[Size(*size, count, share_of_all(count)) for size, count in sizes.most_common()],
        rejects=rejects,
        rejected=replace(rejected, value=rejected.value + duplicates),
        megapixels=mean([count / 1e6 for count in pixels if count], sampled, population),
        latent_bytes=all_pixels.scaled(_bytes_per_position(options, latents) / latents.ratio**2),
        mask_bytes=all_pixels.scaled(1 / 8),
        rate=estimate_hours(finished, options, counts.pairs, vae) if finished else None,
    )


def _bytes_per_position(options: PlanOptions, latents: Latents) -> int:
    """Return the bytes that a row stores for each position of its latent."""
    values = latents.channels * (2 if options.rows.posterior == "moments" else 1)
    values *= 2 if options.rows.also_original else 1
    values += options.rows.latent_mask != "none"
    return values * _ITEM_BYTES[latents.dtype]


def _load_vae_metadata(options: PlanOptions) -> VaeMetadata | None:
    """Load the VAE, if one is given, and check that it fits the settings."""
    if not options.vae.vae:
        return None
    from inpaint_encode.vae.encode import warm_up  # takes seconds, and is not always needed
    from inpaint_encode.vae.latents import check_supported
    from inpaint_encode.vae.load import load_vae
    from inpaint_encode.vae.registry import vae_metadata

    vae = load_vae(options.vae)
    warm_up(vae)
    found = vae_metadata(vae, options.vae)
    check_supported(row_metadata(options.rows, options.decoding, found), vae, found)
    return found


def _read_headers(
    options: PlanOptions,
    sample: Reservoir,
    source: PairSource,
    metadata: RowMetadata,
    on_status: Callable[[str], None],
) -> list[Header]:
    """Read the headers of the sample's images, and compute their sizes as the job would."""
    pairs = sample.rows
    on_status(f"reading the headers of {len(pairs):,} of {sample.population:,} images")
    decoder = PairDecoder.of(metadata, max_pixels=options.limits.max_pixels)
    signed = source.signatures.find(pair["image_uri"] for pair in pairs) if source.signatures else {}
    reader = PairReader(options.access.to_access(), options.limits.max_bytes, signed)
    with ThreadPoolExecutor(options.estimation.fetch_threads) as pool:
        return list(pool.map(lambda pair: read_header(pair, reader, decoder), pairs))


def read_finished_run(output: str) -> dict[str, Any]:
    """Return the ``_report.json`` of an output whose last run encoded pairs.

    Raises:
        UsageError: there is no report, or its run encoded nothing.
        JobFailed: the report is damaged.
    """
    report = read_report(output)
    if not report:
        raise UsageError(f"--rate-from {output}: there is no _report.json; the encode run writes it when it finishes")
    if not report["this_run"]["encoded"]:
        raise UsageError(
            f"--rate-from {output}: its last run encoded no pairs; give an output whose last run encoded some"
        )
    return report


def estimate_hours(
    report: Mapping[str, Any], options: PlanOptions, pairs: int, vae: VaeMetadata | None
) -> RateEstimate:
    """Estimate the hours and the cost of ``pairs`` pairs.

    Args:
        report: of `read_finished_run`.
        options: of the command: ``--rate-from``, ``--price``, and the settings to compare with the report's.
        pairs: number of planned pairs.
        vae: the planned VAE; None without ``--vae``.
    """
    run, asked = report["this_run"], options.estimation
    decided, seconds = run["encoded"] + run["rejected"], run["seconds"]
    marks = run.get("decided_over_time") or [(0.0, 0)]
    (first_time, first_count), (last_time, last_count) = marks[0], marks[-1]
    # In a short run most chunks end soon after the first one, and the rate between them would be far too high.
    startup_excluded = last_count > first_count and last_time - first_time >= seconds / 2
    if startup_excluded:
        decided, seconds = last_count - first_count, last_time - first_time
    rate = decided / max(seconds, 1e-3)
    hours = pairs / rate / 3600
    known = {"config_sha256": vae.config_sha256} if vae else {}
    planned = {**options.rows.recorded(), **options.decoding.recorded(), **known}
    rows = report["job"].get("rows", {})
    return RateEstimate(
        output=asked.rate_from,
        pairs=decided,
        seconds=seconds,
        startup_excluded=startup_excluded,
        pairs_per_second=rate,
        hours=hours,
        cost=hours * asked.price if asked.price else None,
        assumes="the same cluster and images of similar sizes" + ("" if known else ", and the same VAE"),
        differs=[name for name in _AFFECTS_RATE if name in planned and planned[name] != rows.get(name, planned[name])],
    )
