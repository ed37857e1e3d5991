"""A few rows' sources fetched and encoded once more on this machine, and held against what the output has of them."""

from __future__ import annotations

import platform
import random
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from diffusers.utils.logging import set_verbosity_error
from numpy.typing import NDArray

from inpaint_encode.core.chunk import EncodedPair, Pair, Reject, encode_chunk
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.errors import JobFailed
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.resume import metadata_of_job
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import unpack_mask
from inpaint_encode.sources import PairReader
from inpaint_encode.stores import storage
from inpaint_encode.stores.access import Access
from inpaint_encode.vae.recorded import recorded_source

from .checks import DataFile, Problem, Row

__all__ = ["LEAST_TOLERANCE", "SHARES", "Resampled", "draw", "encode_again"]

LEAST_TOLERANCE = 1e-4
"""Difference of a latent value that any two machines may have."""

SHARES = {"float32": 1e-5, "float16": 0.03, "bfloat16": 0.1, "auto": 0.1}
"""Tolerance by the VAE's compute type, as a share of the row's largest value.

Measured on a CPU with random weights on a photograph, as shares of the largest value: float32 in a batch of one and
in one of four differ by 0.000002, float32 and float16 by 0.010, float32 and bfloat16 by 0.037. The tolerances are
three to five times that, for trained weights and other hardware. ``auto`` may have been bfloat16 where the row was
made. A float16 in the file may besides be half a step of float16 from the value that was computed.
"""


@dataclass
class Resampled:
    """What encoding some rows again has shown."""

    rows: int = 0
    """Rows that were encoded again."""
    changed: int = 0
    """Rows whose image or mask is not the one any more that was encoded."""
    largest: float = 0.0
    """Largest absolute difference of a latent value."""
    other_masks: int = 0
    """Rows whose noise_mask is not the same."""
    different: int = 0
    """Rows that have a problem."""
    problems: list[Problem] = field(default_factory=list)


def draw(encoded: Mapping[int, int], count: int, seed: int) -> dict[int, list[int]]:
    """Draw ``count`` rows at random, each as likely as any other; return indices of rows by chunk.

    Args:
        encoded: how many rows each chunk has.
        count: as many, or all there are.
        seed: the same seed draws the same rows.
    """
    chunks = sorted(encoded)
    starts = [0, *accumulate(encoded[chunk] for chunk in chunks)]
    picks = random.Random(seed).sample(range(starts[-1]), min(count, starts[-1]))  # noqa: S311 - not a secret
    drawn: defaultdict[int, list[int]] = defaultdict(list)
    for pick in sorted(picks):
        at = bisect_right(starts, pick) - 1
        drawn[chunks[at]].append(pick - starts[at])
    return dict(drawn)


def encode_again(drawn: Mapping[int, list[int]], state: OutputState, job: Mapping[str, Any], vae: str) -> Resampled:
    """Encode the drawn rows again and compare them; a row whose source has changed is counted and not compared.

    Equal masks are expected of machines with one instruction set: a resized mask may differ by one pixel in a hundred
    thousand between a CPU with AVX2 and one without.

    Args:
        drawn: indices of rows by chunk.
        state: of the output.
        job: the contents of ``_job.json``.
        vae: where the VAE is; by default where the job loaded it from.

    Raises:
        UsageError, JobFailed: the VAE cannot be loaded or is another one, or a source cannot be fetched.
    """
    set_verbosity_error()
    metadata = metadata_of_job(job)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = recorded_source(vae or job["vae_source"], metadata)
    encoder = BatchEncoder.load(source, replace(metadata, samples_dtype="float32"), device, compiled=False)
    reader = PairReader(Access(**job.get("access", {})))
    decoder = PairDecoder.of(metadata, max_pixels=sys.maxsize)
    result = Resampled()
    for chunk, indices in drawn.items():
        file = DataFile(storage.read(state.data_uri(chunk)).data)
        for row in (row for index, row in enumerate(file.read_rows()) if index in indices):
            encoded = _encode_row(row, reader, decoder, encoder)
            if encoded is None:
                result.changed += 1
                continue
            result.rows += 1
            if wrong := "; ".join(_compare(row, encoded, metadata, result)):
                result.different += 1
                sentence = f"{row['key']}: {wrong}{_other_versions(job['versions'])}"
                result.problems.append(Problem("sample", state.data_uri(chunk), sentence, chunk))
    return result


def _encode_row(
    row: Row, reader: PairReader, decoder: PairDecoder, encoder: BatchEncoder
) -> EncodedPair | Reject | None:
    """Encode a row's sources; None if they have changed since.

    Raises:
        JobFailed: the sources cannot be fetched, or this machine cannot encode them.
    """
    pair = Pair(row["key"], row["image_uri"], row["mask_uri"], row["mask_index"])
    (result,) = encode_chunk([pair], reader, decoder, encoder, batch_size=1, threads=1, tile=row.get("tiled", False))
    if isinstance(result, EncodedPair):
        found, then = result.pair, (row["image_version"], row["mask_version"])
        return result if (found.image_version, found.mask_version) == then else None
    if result.error in ("fetch.not_found", "mask.missing"):
        return None
    if result.error.startswith("fetch."):
        raise JobFailed(
            f"--sample cannot fetch {row['image_uri']} or its mask: {result.message}; check the credentials, or leave "
            "--sample out"
        )
    if result.error in ("encode.out_of_memory", "encode.failed"):
        raise JobFailed(
            f"--sample cannot encode {row['key']} here: {result.message}; use a machine like those that encoded, or "
            "another --seed"
        )
    return result


def _compare(row: Row, encoded: EncodedPair | Reject, metadata: RowMetadata, result: Resampled) -> Iterator[str]:
    """Yield the differences between a row and its sources encoded again, and count them in ``result``."""
    if isinstance(encoded, Reject):
        yield f"its source is rejected now: {encoded.error}: {encoded.message}"
        return
    height, width, _ = encoded.image.pixels.shape
    if row["noise_mask"].shape != [1, height, width]:
        yield f"its source gives a noise_mask of {[1, height, width]}, the row has {row['noise_mask'].shape}"
        return
    noise_mask = unpack_mask(encoded.noise_mask, height, width)
    if pixels := int((noise_mask != row["noise_mask"].values).sum()):
        result.other_masks += 1
        yield f"{pixels:,} of {noise_mask.size:,} pixels of noise_mask differ from its source's"
    latent_mask = encoded.latent_mask
    if latent_mask is not None and not np.array_equal(latent_mask.ravel(), row["latent_mask"].values):
        yield "its latent_mask differs from its source's"
    yield from _samples_problems(row["samples"].values, encoded.samples, metadata, result, "latent")
    if encoded.original_samples is not None:
        original = row["original_samples"].values
        yield from _samples_problems(original, encoded.original_samples, metadata, result, "original latent")


def _samples_problems(
    stored: NDArray[Any], again: NDArray[Any], metadata: RowMetadata, result: Resampled, what: str
) -> Iterator[str]:
    difference = np.abs(again.ravel() - stored.astype(np.float32))
    result.largest = max(result.largest, float(difference.max()))
    of_one_kind = np.split(stored, 2 if metadata.posterior == "moments" else 1)
    allowed = np.concatenate([_tolerance(values, metadata.compute_dtype) for values in of_one_kind])
    if over := int((~(difference <= allowed)).sum()):  # of a NaN, too
        size, most = difference.size, float(difference.max())
        yield f"{over:,} of {size:,} {what} values differ from its source's, by up to {most:.3g}"


def _tolerance(stored: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """The difference that each of a row's values may have."""
    magnitudes = np.abs(stored)
    whole = max(LEAST_TOLERANCE, SHARES[dtype] * float(magnitudes.max()))
    with np.errstate(invalid="ignore"):  # of what is not finite, which no difference from it is within
        rounding = np.spacing(magnitudes).astype(np.float32) / 2 if stored.dtype == np.float16 else np.float32(0)
    return np.full(stored.shape, whole, np.float32) + rounding


def _other_versions(made_with: Mapping[str, str]) -> str:
    """Decoders and VAEs differ a little from version to version, so a difference is told with them."""
    here = {name: platform.python_version() if name == "python" else version(name) for name in made_with}
    others = [f"{name} {made_with[name]} there, {here[name]} here" for name in here if here[name] != made_with[name]]
    return f" ({'; '.join(others)})" if others else ""
