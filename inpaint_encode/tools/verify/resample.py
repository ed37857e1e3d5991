"""A few rows' sources fetched and encoded once more on this machine, and held against what the output has of them."""

from __future__ import annotations

import platform
import random
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from diffusers.utils.logging import set_verbosity_error
from numpy.typing import NDArray

from inpaint_encode.core.batch import Batch, EncodedBatch
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.errors import JobFailed, PairRejected
from inpaint_encode.output.state import Ledger
from inpaint_encode.settings import RowSettings, SourceAccess
from inpaint_encode.sources import PairReader, SourcePair
from inpaint_encode.stores import storage
from inpaint_encode.vae.recorded import recorded_facts, recorded_source

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


def encode_again(drawn: Mapping[int, list[int]], ledger: Ledger, job: Mapping[str, Any], vae: str) -> Resampled:
    """Encode the drawn rows and compare them; a source that has changed since is counted, and no more.

    Equal masks are expected of machines with one instruction set: a resized mask may differ by a pixel in a
    hundred thousand between a CPU with AVX2 and one without.

    Args:
        drawn: indices of rows by chunk.
        ledger: whose files.
        job: ``_job.json``.
        vae: where the VAE is; by default where the job had it.

    Raises:
        UsageError, JobFailed: the VAE cannot be loaded, or is another; a source cannot be fetched.
    """
    set_verbosity_error()  # a cast that is meant needs no warning
    made_by = job["rows"]
    names = (RowSettings.model_fields.keys() - {"samples_dtype"}) & made_by.keys()
    settings = RowSettings(**{name: made_by[name] for name in names}, samples_dtype="float32")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    source = recorded_source(vae or job["vae_source"], made_by)
    encoder = BatchEncoder.load(source, settings, recorded_facts(made_by), device, compiled=False)
    reader = PairReader(SourceAccess(**job.get("access", {})))
    result = Resampled()
    for chunk, indices in drawn.items():
        file = DataFile(storage.read(ledger.data_uri(chunk)).data)
        for row in (row for index, row in enumerate(file.read_rows()) if index in indices):
            wrong = "; ".join(_compare(row, reader, encoder, made_by, result))
            if wrong:
                result.different += 1
                sentence = f"{row['key']}: {wrong}{_other_versions(job['versions'])}"
                result.problems.append(Problem("sample", ledger.data_uri(chunk), sentence, chunk))
    return result


def _compare(
    row: Row, reader: PairReader, encoder: BatchEncoder, made_by: Mapping[str, Any], result: Resampled
) -> Iterator[str]:
    """Encode one row again, count it in ``result``, and yield what is wrong with it."""
    sources = _fetch(reader, row)
    if sources is None:
        result.changed += 1
        return
    result.rows += 1
    decoder = PairDecoder.of(made_by, max_pixels=sys.maxsize)
    try:
        decoded = decoder.image(sources.image.data)
        binary = decoder.mask(sources.mask.data, decoded)
    except PairRejected as rejection:
        yield f"its source is rejected now: {rejection.error}: {rejection.message}"
        return
    size = decoded.crop.height, decoded.crop.width
    batch = Batch(*size, [decoded.pixels.reshape(-1)], [np.packbits(binary)], [row["key"]])
    again = _encoded(encoder, batch, tile=row.get("tiled", False))
    if not again.finite.all():
        yield "its source gives a latent that is not finite"
    if [*again.noise_mask.shape] != row["noise_mask"].shape:
        yield f"its source gives a noise_mask of {[*again.noise_mask.shape]}, the row has {row['noise_mask'].shape}"
        return
    if pixels := int((again.noise_mask.ravel() != row["noise_mask"].values).sum()):
        result.other_masks += 1
        yield f"{pixels:,} of {again.noise_mask.size:,} pixels of noise_mask are not what its source gives"
    if again.latent_mask is not None and not np.array_equal(again.latent_mask.ravel(), row["latent_mask"].values):
        yield "its latent_mask is not what its source gives"
    yield from _samples_problems(row["samples"].values, again.samples, made_by, result, "latent")
    if again.original_samples is not None:
        yield from _samples_problems(
            row["original_samples"].values, again.original_samples, made_by, result, "ungreyed latent"
        )


def _samples_problems(
    stored: NDArray[Any], again: NDArray[Any], made_by: Mapping[str, Any], result: Resampled, what: str
) -> Iterator[str]:
    difference = np.abs(again.ravel() - stored.astype(np.float32))
    result.largest = max(result.largest, float(difference.max()))
    of_one_kind = np.split(stored, 2 if made_by["posterior"] == "moments" else 1)
    allowed = np.concatenate([_tolerance(values, made_by["dtype"]) for values in of_one_kind])
    if over := int((~(difference <= allowed)).sum()):  # of a NaN, too
        size, most = difference.size, float(difference.max())
        yield f"{over:,} of {size:,} {what} values are not what its source gives, by up to {most:.3g}"


def _encoded(encoder: BatchEncoder, batch: Batch, *, tile: bool) -> EncodedBatch:
    try:
        return encoder.launch(batch, tile=tile).result()
    except RuntimeError as error:  # torch's, out of memory included
        size = f"{batch.height} x {batch.width}"
        raise JobFailed(
            f"--sample cannot encode {batch.keys[0]} of {size} pixels here: {str(error).splitlines()[0]}; run it on a "
            "machine like those that encoded, or draw others by --seed"
        ) from error


def _fetch(reader: PairReader, row: Row) -> SourcePair | None:
    try:
        return reader.refetch(row)
    except OSError as error:
        raise JobFailed(
            f"--sample cannot fetch {row['image_uri']} or its mask: {error}; "
            "check the credentials, or leave --sample out"
        ) from error


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
