"""A trial of the job's work on this machine: sampled pairs are fetched, decoded and encoded against the clock.

The job overlaps these; here they follow one another, so that each is timed alone.
"""

from __future__ import annotations

import platform
import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers.utils.logging import set_verbosity_error
from numpy.typing import NDArray

from inpaint_encode.core.batch import Batch, EncodedBatch
from inpaint_encode.core.decode import DecodedImage, PairDecoder
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.errors import JobFailed, PairRejected, UsageError
from inpaint_encode.job.transfer import ENCODED, table_of
from inpaint_encode.output.parquet import data_table, parquet_bytes
from inpaint_encode.schema import data_schema, pack_mask
from inpaint_encode.settings import PlanOptions, RowSettings
from inpaint_encode.sources import PairReader
from inpaint_encode.sources.random_masks import RandomMask

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["Pair", "Trial", "calibrate"]


class Pair(NamedTuple):
    """What a row of `schema.PAIRS` says of where image and mask are."""

    key: str
    image_uri: str
    mask_uri: str
    image_version: str = ""
    mask_version: str = ""


_Fetched = tuple[bytes, bytes | RandomMask] | None
"""An image and its mask; None if one is not there."""

_Decoded = tuple[DecodedImage, NDArray[np.uint8]]
"""An image and its binary mask, both cropped."""


@dataclass
class Trial:
    """What was measured, a list's item for each batch."""

    device: str
    """What the VAE ran on, in words."""
    images: list[int] = field(default_factory=list)
    megapixels: list[float] = field(default_factory=list)
    """After the crop."""
    fetch_s: list[float] = field(default_factory=list)
    """By the wall clock, with all of ``--fetch-threads``."""
    decode_s: list[float] = field(default_factory=list)
    """On one core."""
    encode_s: list[float] = field(default_factory=list)
    """To the device, through the VAE, and back."""
    mask_bytes: dict[int, int] = field(default_factory=dict)
    """What the masks of a batch take in a Parquet file, by its index; of each pair once."""
    latent_bytes: dict[int, int] = field(default_factory=dict)
    rejected: Counter[str] = field(default_factory=Counter)
    """Pairs that did not come as far as the VAE, by the name of their error."""


def calibrate(
    vae: AutoencoderKL, sizes: Mapping[Pair, tuple[int, int]], options: PlanOptions, decoder: PairDecoder
) -> Trial:
    """Work on sampled pairs, in batches as the job makes them of one chunk, until the time is up.

    When all are through and time is left, they are fetched again. One batch before the clock starts is not counted.

    Args:
        vae: it is moved to the device, and into the type it computes in.
        sizes: the pairs, and their images' sizes after the crop.
        options: of the plan; ``estimation.calibrate`` is the time in seconds.
        decoder: what the job's pairs are decoded by.

    Raises:
        UsageError: a GPU is asked for, and there is none.
        JobFailed: no pair can be encoded, or the store cannot be read.
    """
    device = _device(options.batches.gpus_per_worker)
    encoder = _encoder(vae, options.rows, device)
    batches = _batches(sizes, _images_at_once(options, encoder), options.estimation.seed)
    trial = Trial(_words(device))
    reader = PairReader(options.access)
    with ThreadPoolExecutor(options.batches.fetch_threads) as pool:

        def fetch(batch: Sequence[Pair]) -> list[_Fetched]:
            return list(pool.map(lambda pair: _fetch(reader, pair), batch))

        _run(Trial(""), fetch, batches[0], encoder, decoder)
        ends = time.monotonic() + options.estimation.calibrate
        for number, batch in enumerate(cycle(batches)):
            if number and time.monotonic() >= ends:
                break
            written = _run(trial, fetch, batch, encoder, decoder)
            if written and number < len(batches):
                _weigh(trial, written, options.rows)
    if not trial.images:
        raise JobFailed(f"--calibrate: none of the sampled pairs can be encoded: {_counts(trial.rejected)}")
    return trial


def _encoder(vae: AutoencoderKL, settings: RowSettings, device: torch.device) -> BatchEncoder:
    set_verbosity_error()  # a cast that is meant needs no warning
    unscaled = settings.model_copy(update={"scaled": False})  # which takes no time, and needs no facts
    return BatchEncoder(vae, unscaled, device, compiled=False)


def _device(gpus_per_worker: str) -> torch.device:
    if gpus_per_worker == "0":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if gpus_per_worker == "auto":
        return torch.device("cpu")
    raise UsageError(
        f"--calibrate with --gpus-per-worker {gpus_per_worker} needs a GPU, and this machine has none that torch "
        "can use; run it on a machine like the workers', or with --gpus-per-worker 0"
    )


def _words(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} threads of this machine's {platform.machine()} CPU"


def _images_at_once(options: PlanOptions, encoder: BatchEncoder) -> Callable[[int, int], int]:
    """How many images of a size the job would put into a batch."""
    batch_size = 1 if options.rows.deterministic else options.batches.batch_size
    return encoder.images_at_once if batch_size == "auto" else lambda _height, _width: batch_size


def _batches(
    sizes: Mapping[Pair, tuple[int, int]], images_at_once: Callable[[int, int], int], seed: int
) -> list[list[Pair]]:
    """Pairs of one size together, in random order: the first ones must not be all of one size."""
    groups: defaultdict[tuple[int, int], list[Pair]] = defaultdict(list)
    for pair, size in sizes.items():
        groups[size].append(pair)
    batches = [
        group[start : start + at_once]
        for size, group in groups.items()
        for at_once in [images_at_once(*size)]
        for start in range(0, len(group), at_once)
    ]
    random.Random(seed).shuffle(batches)  # noqa: S311 - not a secret
    return batches


def _run(
    trial: Trial,
    fetch: Callable[[Sequence[Pair]], list[_Fetched]],
    batch: Sequence[Pair],
    encoder: BatchEncoder,
    decoder: PairDecoder,
) -> EncodedBatch | None:
    """Take one batch through, and add what it took to ``trial``; None if none of its pairs came through."""
    begun = time.perf_counter()
    files = fetch(batch)
    fetched = time.perf_counter()
    decoded = list(_decoded(trial, files, decoder))
    decoded_at = time.perf_counter()
    if not decoded:
        return None
    result = _encoded(encoder, [one for one in decoded if one[1].shape == decoded[0][1].shape])
    trial.encode_s.append(time.perf_counter() - decoded_at)
    trial.decode_s.append(decoded_at - fetched)
    trial.fetch_s.append(fetched - begun)
    trial.images.append(len(result.noise_mask))
    trial.megapixels.append(result.noise_mask.size / 1e6)
    return result


def _fetch(reader: PairReader, pair: Pair) -> _Fetched:
    about = pair._asdict()
    try:
        image = reader.image(about)
        return image.data, image.data if pair.mask_uri == pair.image_uri else reader.mask(about).data
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JobFailed(f"--calibrate cannot fetch {pair.image_uri} or its mask: {error.strerror or error}") from error


def _decoded(trial: Trial, files: Sequence[_Fetched], decoder: PairDecoder) -> Iterator[_Decoded]:
    for pair in files:
        try:
            if pair is None:
                raise PairRejected("fetch.not_found", "")
            image = decoder.image(pair[0])
            yield image, decoder.mask(pair[1], image)
        except PairRejected as rejection:
            trial.rejected[rejection.error] += 1


def _encoded(encoder: BatchEncoder, decoded: Sequence[_Decoded]) -> EncodedBatch:
    height, width = decoded[0][1].shape
    pixels, masks = [image.pixels.reshape(-1) for image, _ in decoded], [pack_mask(mask) for _, mask in decoded]
    keys = [str(number) for number in range(len(decoded))]
    try:
        return encoder.launch(Batch(height, width, pixels, masks, keys)).result()
    except RuntimeError as error:  # torch's, out of memory included
        raise JobFailed(
            f"--calibrate: the VAE fails on {len(pixels)} images of {height} x {width} pixels: "
            f"{str(error).splitlines()[0]}; a smaller --batch-size needs less memory"
        ) from error


def _weigh(trial: Trial, batch: EncodedBatch, settings: RowSettings) -> None:
    """Write the batch's rows as the job would, in memory, and see what their tensors take."""
    height, width = batch.noise_mask.shape[1:]
    size = {"height": height, "width": width}
    extra = {
        name: values for name in ("original_samples", "latent_mask") if (values := getattr(batch, name)) is not None
    }
    encoded = [
        {
            **{**size, "samples": samples, "samples_shape": samples.shape, "noise_mask": pack_mask(mask)},
            **{name: values[index] for name, values in extra.items()},
        }
        for index, (samples, mask) in enumerate(zip(batch.samples, batch.noise_mask, strict=True))
    ]
    schema = data_schema(settings.model_dump())
    data = parquet_bytes(data_table(table_of(encoded, ENCODED), schema))
    metadata = pq.read_metadata(pa.BufferReader(data))
    taken: Counter[str] = Counter()
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            about = metadata.row_group(group).column(column)
            taken[about.path_in_schema.partition(".")[0]] += about.total_compressed_size
    index = len(trial.images) - 1
    trial.mask_bytes[index] = taken["noise_mask"]
    trial.latent_bytes[index] = sum(taken[name] for name in ("samples", *extra))


def _counts(rejected: Counter[str]) -> str:
    return ", ".join(f"{count:,} {error}" for error, count in rejected.most_common())
