"""The forecast of a job: what the listing counts, what a sample of headers estimates, what a trial measures."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.core.batch import CPU_PIXELS, images_at_once
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.output import plan
from inpaint_encode.output.resume import refuse_sizes
from inpaint_encode.schema import PAIRS
from inpaint_encode.settings import PlanOptions, RowSettings
from inpaint_encode.sources import FoundPairs, PairReader, find_pairs
from inpaint_encode.sources.part_uris import ParquetRow, parse_part

from .headers import Header, draw, read_headers
from .numbers import Figure, Passes, mean, passes, product, ratio, share, total

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from .calibrate import Trial

__all__ = ["Calibration", "Forecast", "Latents", "Rejects", "Requests", "Size", "estimate"]

_LISTED = 1_000
"""Objects in one answer of S3 to a listing."""
_ITEM_BYTES = {"float16": 2, "float32": 4}


@dataclass(frozen=True)
class Latents:
    """What the VAE makes of an image."""

    ratio: int
    multiple: int
    """Of an image's sides, after the crop."""
    channels: int
    dtype: str
    """As stored."""
    assumed: bool
    """Without ``--vae``."""


@dataclass(frozen=True)
class Requests:
    """On S3, into an empty output; retries, a lease's renewals, receipts and rejects files come on top."""

    list: int
    """For the source."""
    get: int
    """Two a pair, or one for each row group and column of images; a few a chunk, for its part of the plan, the lease,
    and the footer of such a file."""
    put: int
    """One a chunk, the parts of the plan, and three more for the whole job."""


@dataclass(frozen=True)
class Size:
    """Images of one size after the crop."""

    height: int
    width: int
    images: int
    """In the sample."""
    share: Figure


@dataclass(frozen=True)
class Rejects:
    """Images that will be rejected, as far as headers tell."""

    error: str
    images: int
    """In the sample."""
    share: Figure


@dataclass(frozen=True)
class Calibration:
    """What a trial on this machine says of the whole job; errors are of the spread between batches."""

    device: str
    batches: int
    images: int
    images_per_second: Figure
    """On the device, while it encodes."""
    megapixels_per_second: Figure
    decode_megapixels_per_second: Figure
    """On one core."""
    fetch_megapixels_per_second: Figure
    """With all of ``--fetch-threads``."""
    hours: Figure
    """Of this machine's device for the whole job, if it never waits for pairs."""
    price: Figure | None
    latent_bytes: Figure
    """Of the whole output, as files hold them."""
    mask_bytes: Figure
    rejected: dict[str, int]
    """Pairs of the trial that did not come as far as the VAE."""


@dataclass(frozen=True)
class Forecast:
    """Everything that is known of a job before it begins."""

    pairs: int
    unpaired_images: int
    unpaired_masks: int
    ignored_files: int
    chunks: int
    """Files of the output."""
    source_image_bytes: int | None
    """Each image once; None where a manifest names the files, and nothing was listed."""
    source_mask_bytes: int | None
    requests: Requests
    latents: Latents
    batch_size: int
    sampled: int
    """Images whose headers were read."""
    header_bytes: int
    """What that took."""
    sizes: list[Size]
    """All that the sample has, the most frequent first."""
    rejects: list[Rejects]
    rejected: Figure
    """Their share in all."""
    megapixels: Figure
    """Mean of an image that is not rejected, after the crop."""
    passes: Passes
    latent_bytes: Figure
    """Of the whole output, before compression."""
    mask_bytes: Figure
    """At one bit a pixel, before compression."""
    calibration: Calibration | None

    @property
    def is_whole(self) -> bool:
        """Whether every image was looked at."""
        return self.sampled == self.pairs

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, where an unknown error is null."""
        plain: dict[str, Any] = _without_nan({**asdict(self), "all_sampled": self.is_whole})
        return plain


def estimate(options: PlanOptions, say: Callable[[str], None]) -> Forecast:
    """List the source, sample it, with ``--calibrate`` try it, and say what the job will be.

    Raises:
        UsageError: the source or the VAE is not there, or cannot be used so.
        JobFailed: the store stops answering, or a trial fails.
    """
    say("listing the images and the masks")
    found = find_pairs(options.source, options.access)
    vae, latents = _vae(options)
    refuse_sizes(options.decoding, latents.multiple)
    made_by = {**options.decoding.recorded(), "crop_multiple": latents.multiple}
    decoder = PairDecoder.of(made_by, max_pixels=options.limits.max_pixels)
    pairs = found.with_uris(plan.added(PAIRS.empty_table(), found.pairs))
    chunks = plan.cut(pairs, options.chunks.chunk_rows, options.chunks.chunk_bytes)["chunk"].to_numpy()
    drawn = draw(pairs.num_rows, options.estimation.sample, options.estimation.seed)
    sample = pairs.take(pa.array(drawn, pa.int64()))
    say(f"reading the headers of {len(drawn):,} of {pairs.num_rows:,} images")
    reader = PairReader(options.access, options.limits.max_bytes)
    headers = read_headers(sample.to_pylist(), reader, decoder, options.batches.fetch_threads)
    trial = _trial(vae, sample, headers, options, decoder, say) if vae is not None else None
    requests = _requests(found, pairs, len(np.bincount(chunks)))
    return _forecast(options, found, requests, np.bincount(chunks), latents, np.array(drawn), headers, trial)


def _vae(options: PlanOptions) -> tuple[AutoencoderKL | None, Latents]:
    """The VAE, if one is named, and the shape of its latents."""
    dtype = options.rows.samples_dtype
    if not options.vae.vae:
        return None, Latents(8, 8, 4, dtype, assumed=True)
    from inpaint_encode.vae import load_vae, vae_facts, warm_up  # costs seconds, which not every plan need take
    from inpaint_encode.vae.latent_values import refuse_unfit

    vae = load_vae(options.vae)
    warm_up(vae)
    facts = vae_facts(vae, options.vae)
    refuse_unfit(options.rows, vae, facts)
    return vae, Latents(facts.ratio, facts.crop_multiple, facts.latent_channels, dtype, assumed=False)


def _trial(
    vae: AutoencoderKL,
    sample: pa.Table,
    headers: Sequence[Header],
    options: PlanOptions,
    decoder: PairDecoder,
    say: Callable[[str], None],
) -> Trial | None:
    if not options.estimation.calibrate or not any(header.size for header in headers):
        return None
    from .calibrate import Pair, calibrate

    pairs = [Pair(**pair) for pair in sample.select(Pair._fields).to_pylist()]
    good = {pair: header.size for pair, header in zip(pairs, headers, strict=True) if header.size}

    say(f"encoding sampled pairs for {options.estimation.calibrate:g} s")
    return calibrate(vae, good, options, decoder)


def _forecast(
    options: PlanOptions,
    found: FoundPairs,
    requests: Requests,
    lengths: NDArray[np.int64],
    latents: Latents,
    drawn: NDArray[np.int64],
    headers: Sequence[Header],
    trial: Trial | None,
) -> Forecast:
    population, sizes = found.pairs.num_rows, Counter(header.size for header in headers if header.size)
    pixels = [header.size[0] * header.size[1] if header.size else 0 for header in headers]
    all_pixels = total(pixels, population)
    numbers = {size: number for number, size in enumerate(sizes)}
    kinds = np.array([numbers[header.size] if header.size else -1 for header in headers])
    batch_sizes = [_images_at_once(options, *size) for size in sizes]
    return Forecast(
        pairs=population,
        unpaired_images=len(found.unpaired_images),
        unpaired_masks=len(found.unpaired_masks),
        ignored_files=found.ignored_files,
        chunks=len(lengths),
        source_image_bytes=found.image_and_mask_bytes and found.image_and_mask_bytes[0],
        source_mask_bytes=found.image_and_mask_bytes and found.image_and_mask_bytes[1],
        requests=requests,
        latents=latents,
        batch_size=max(batch_sizes, default=1),
        sampled=len(headers),
        header_bytes=sum(header.bytes_read for header in headers),
        sizes=[Size(*size, count, share(count, len(headers), population)) for size, count in sizes.most_common()],
        rejects=_rejects(headers, population),
        rejected=share(sum(not header.size for header in headers), len(headers), population),
        megapixels=mean([count / 1e6 for count in pixels if count], len(headers), population),
        passes=passes(lengths, drawn, kinds, batch_sizes, options.estimation.seed),
        latent_bytes=all_pixels.scaled(_values(options.rows, latents) * _ITEM_BYTES[latents.dtype] / latents.ratio**2),
        mask_bytes=all_pixels.scaled(1 / 8),
        calibration=_calibration(trial, all_pixels.scaled(1e-6), options.estimation.price) if trial else None,
    )


def _images_at_once(options: PlanOptions, height: int, width: int) -> int:
    """How many images of a size go into a batch, on a GPU if its memory holds them."""
    if options.rows.deterministic or options.batches.batch_size != "auto":
        return 1 if options.rows.deterministic else int(options.batches.batch_size)
    on_cpu = options.batches.gpus_per_worker == "0"
    return images_at_once(height, width, CPU_PIXELS if on_cpu else math.inf)


def _values(settings: RowSettings, latents: Latents) -> int:
    """How many values a row stores for each place of its latent."""
    of_one = latents.channels * (2 if settings.posterior == "moments" else 1)
    return of_one * (2 if settings.also_original else 1) + (settings.latent_mask != "none")


def _requests(found: FoundPairs, pairs: pa.Table, chunks: int) -> Requests:
    parts = math.ceil(chunks / plan.CHUNKS_PER_PART)
    return Requests(
        list=math.ceil(found.objects_listed / _LISTED),
        get=_objects(found, pairs, chunks) + 2 * chunks,
        put=chunks + parts + 3,
    )


def _objects(found: FoundPairs, pairs: pa.Table, chunks: int) -> int:
    """Requests for images and masks: one an object or member, one for a row group's column in each chunk."""
    drawn = pc.starts_with(pairs["mask_uri"], "random:")
    others = pairs["mask_uri"].filter(pc.and_not(pc.not_equal(pairs["mask_uri"], pairs["image_uri"]), drawn))
    of_rows = found.image_row_groups + chunks  # a group that two chunks share is read by both
    count = 0
    for uris in (pairs["image_uri"].unique(), others):
        in_rows = found.image_row_groups and len(uris) and isinstance(parse_part(uris[0].as_py()), ParquetRow)
        count += of_rows if in_rows else len(uris)
    return count + 2 * chunks * (found.image_row_groups > 0)


def _rejects(headers: Sequence[Header], population: int) -> list[Rejects]:
    errors = Counter(header.error for header in headers if header.error)
    return [Rejects(error, count, share(count, len(headers), population)) for error, count in errors.most_common()]


def _calibration(trial: Trial, megapixels: Figure, price: float) -> Calibration:
    hours = product(ratio(trial.encode_s, trial.megapixels), megapixels).scaled(1 / 3600)
    weighed = [trial.megapixels[index] for index in trial.mask_bytes]
    return Calibration(
        device=trial.device,
        batches=len(trial.images),
        images=sum(trial.images),
        images_per_second=ratio(trial.images, trial.encode_s),
        megapixels_per_second=ratio(trial.megapixels, trial.encode_s),
        decode_megapixels_per_second=ratio(trial.megapixels, trial.decode_s),
        fetch_megapixels_per_second=ratio(trial.megapixels, trial.fetch_s),
        hours=hours,
        price=hours.scaled(price) if price else None,
        latent_bytes=product(ratio([*trial.latent_bytes.values()], weighed), megapixels),
        mask_bytes=product(ratio([*trial.mask_bytes.values()], weighed), megapixels),
        rejected=dict(trial.rejected),
    )


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
