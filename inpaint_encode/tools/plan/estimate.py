"""Estimate of an encode job: counts from the source's listing, a sample of its images' headers, and a finished run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.output import plan
from inpaint_encode.output.resume import row_metadata, validate_sizes
from inpaint_encode.schema import PAIRS
from inpaint_encode.settings import PlanOptions
from inpaint_encode.sources import FoundPairs, PairReader, find_pairs
from inpaint_encode.sources.part_uris import ParquetRow, parse_part
from inpaint_encode.tools.inspect.summary import read_report

from .sampling import Estimate, Header, draw, mean, read_header, share, total

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
    """One per chunk, the parts of the plan, and three for the job."""


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
    """Images whose headers show that they will be rejected with this error."""

    error: str
    images: int
    """In the sample."""
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
    """Share of all images that will be rejected, as far as headers show."""
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
        return self.sampled == self.pairs

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "all_sampled": self.all_sampled}


def estimate(options: PlanOptions, on_status: Callable[[str], None]) -> JobEstimate:
    """List the source, read the headers of a sample, and estimate the job.

    Args:
        options: of the command.
        on_status: called with a line of text when a step begins.

    Raises:
        UsageError: the source, the VAE or the report of ``--rate-from`` is missing or does not fit.
        JobFailed: an image cannot be read, or a report is damaged.
    """
    asked, of_rows = options.estimation, options.rows
    finished = read_finished_run(asked.rate_from) if asked.rate_from else None
    on_status("listing the images and the masks")
    found = find_pairs(options.source, options.access.to_access())
    vae = _load_vae_metadata(options)
    metadata = row_metadata(of_rows, options.decoding, vae or _ASSUMED_VAE)
    shape = metadata.vae.vae_scale_factor, metadata.vae.crop_multiple, metadata.vae.latent_channels
    latents = Latents(*shape, of_rows.samples_dtype, assumed=vae is None)
    validate_sizes(metadata)
    pairs = found.with_uris(plan.added(PAIRS.empty_table(), found.pairs))
    chunks = (
        1
        + pc.max(plan.split_into_chunks(pairs, options.chunks.chunk_rows, options.chunks.chunk_bytes)["chunk"]).as_py()
    )
    headers = _sample_headers(options, pairs, metadata, on_status)
    population, sampled = pairs.num_rows, len(headers)
    sizes = Counter(header.size for header in headers if header.size)
    errors = Counter(header.error for header in headers if header.error)
    pixels = [math.prod(header.size) if header.size else 0 for header in headers]
    all_pixels = total(pixels, population)
    values_per_position = latents.channels * (2 if of_rows.posterior == "moments" else 1)
    values_per_position *= 2 if of_rows.also_original else 1
    values_per_position += of_rows.latent_mask != "none"
    bytes_per_position = values_per_position * _ITEM_BYTES[latents.dtype]
    image_bytes, mask_bytes = found.image_and_mask_bytes or (None, None)
    return JobEstimate(
        pairs=population,
        unpaired_images=len(found.unpaired_images),
        unpaired_masks=len(found.unpaired_masks),
        ignored_files=found.ignored_files,
        chunks=chunks,
        source_image_bytes=image_bytes,
        source_mask_bytes=mask_bytes,
        requests=_count_requests(found, pairs, chunks),
        latents=latents,
        sampled=sampled,
        header_bytes=sum(header.bytes_read for header in headers),
        sizes=[Size(*size, count, share(count, sampled, population)) for size, count in sizes.most_common()],
        rejects=[Rejects(error, count, share(count, sampled, population)) for error, count in errors.most_common()],
        rejected=share(errors.total(), sampled, population),
        megapixels=mean([count / 1e6 for count in pixels if count], sampled, population),
        latent_bytes=all_pixels.scaled(bytes_per_position / latents.ratio**2),
        mask_bytes=all_pixels.scaled(1 / 8),
        rate=estimate_hours(finished, options, population, vae) if finished else None,
    )


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


def _sample_headers(
    options: PlanOptions, pairs: pa.Table, metadata: RowMetadata, on_status: Callable[[str], None]
) -> list[Header]:
    """Read the headers of randomly drawn images, and compute their sizes as the job would."""
    decoder = PairDecoder.of(metadata, max_pixels=options.limits.max_pixels)
    drawn = draw(pairs.num_rows, options.estimation.sample, options.estimation.seed)
    on_status(f"reading the headers of {len(drawn):,} of {pairs.num_rows:,} images")
    sample = pairs.take(pa.array(drawn, pa.int64())).to_pylist()
    reader = PairReader(options.access.to_access(), options.limits.max_bytes)
    with ThreadPoolExecutor(options.estimation.fetch_threads) as pool:
        return list(pool.map(lambda pair: read_header(pair, reader, decoder), sample))


def _count_requests(found: FoundPairs, pairs: pa.Table, chunks: int) -> Requests:
    """Count one GET per object, tar member, or row group's column in each chunk, and what each chunk needs."""
    random_masks = pc.starts_with(pairs["mask_uri"], "random:")
    own_files = pc.and_not(pc.not_equal(pairs["mask_uri"], pairs["image_uri"]), random_masks)
    gets = 2 * chunks + 2 * chunks * (found.image_row_groups > 0)
    for uris in (pairs["image_uri"].unique(), pairs["mask_uri"].filter(own_files)):
        in_rows = found.image_row_groups and len(uris) and isinstance(parse_part(uris[0].as_py()), ParquetRow)
        gets += found.image_row_groups + chunks if in_rows else len(uris)  # two chunks may both read a row group
    parts = math.ceil(chunks / plan.CHUNKS_PER_PART)
    return Requests(list=math.ceil(found.objects_listed / _OBJECTS_PER_LIST), get=gets, put=chunks + parts + 3)


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
    rate = decided / seconds
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
