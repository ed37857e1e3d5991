"""Encode the sources of some rows again on this machine, and compare the results with the rows."""

from __future__ import annotations

import platform
import random
import sys
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inpaint_encode.core.chunk import EncodedPair, Pair, Reject, encode_chunk
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.core.isolation import DecodingProcess, IsolatedDecoder, IsolatedReader
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.notes import metadata_of_job
from inpaint_encode.output.state import OutputState
from inpaint_encode.reader.output import Row
from inpaint_encode.schema import unpack_mask
from inpaint_encode.settings import Limits, SourceReading
from inpaint_encode.sources import PairReader
from inpaint_encode.sources.part_uris import parse_part
from inpaint_encode.sources.random_masks import RANDOM_MASK
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access
from inpaint_encode.tools.recorded import check_named, source_access, suggest_sources
from inpaint_encode.vae.load import parse_vae_source

from .chunk_checks import DataFile
from .findings import Problem, ReencodeResult

MIN_TOLERANCE = 1e-4
"""Difference of a latent value that is always allowed."""

RELATIVE_TOLERANCES = {"float32": 1e-5, "float16": 0.03, "bfloat16": 0.1, "auto": 0.1}
"""Allowed difference by compute dtype, as a share of the row's largest value.

Measured on a CPU with random weights and a photograph: float32 in a batch of one and in one of four differ by 0.000002,
float32 and float16 by 0.010, float32 and bfloat16 by 0.037. The tolerances are three to five times larger, for trained
weights and other hardware. ``auto`` may have been bfloat16. Values that are stored as float16 may differ by another
half step of float16.
"""


def draw_rows(encoded: Mapping[str, int], count: int, seed: int) -> dict[str, list[int]]:
    """Draw rows at random, each with the same probability; return indices of rows by chunk.

    Args:
        encoded: number of rows of each chunk.
        count: number of rows to draw; all rows if there are fewer.
        seed: the same seed draws the same rows.
    """
    chunks = sorted(encoded)
    starts = [0, *accumulate(encoded[chunk] for chunk in chunks)]
    picks = random.Random(seed).sample(range(starts[-1]), min(count, starts[-1]))  # noqa: S311 - not a secret
    drawn: defaultdict[str, list[int]] = defaultdict(list)
    for pick in sorted(picks):
        at = bisect_right(starts, pick) - 1
        drawn[chunks[at]].append(pick - starts[at])
    return dict(drawn)


def reencode_rows(
    rows: Mapping[str, list[int]], state: OutputState, job: Mapping[str, Any], vae: str, reading: SourceReading
) -> ReencodeResult:
    """Encode rows again and compare them. Rows whose source has changed are counted and not compared.

    A child process reads and decodes the sources: a file may kill the process that decodes it.

    Masks are equal on machines with the same instruction set. Between CPUs with and without AVX2, a resized mask may
    differ in one pixel of a hundred thousand.

    Args:
        rows: indices of rows by chunk.
        state: of the output.
        job: the contents of ``_job.json``.
        vae: path or hub id of the VAE; empty: the job's, if it is a job of this user.
        reading: which sources to read.

    Raises:
        UsageError: the VAE or a source must be named, or the VAE cannot be loaded.
        JobFailed: the VAE is another one, or a source cannot be fetched.
    """
    metadata = metadata_of_job(job)
    check_named(state.output, job, reading, vae)
    source = parse_vae_source(vae or job["vae_source"], metadata)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    encoder = BatchEncoder.load(source, replace(metadata, samples_dtype="float32"), device, compiled=False)
    access = source_access(state.output, job, reading)
    is_own, limits = access.prefixes is None, Limits()
    plain_reader = PairReader(access, sys.maxsize if is_own else limits.max_bytes)
    plain_decoder = PairDecoder.of(metadata, max_pixels=sys.maxsize if is_own else limits.max_pixels)
    versions = [
        f"{name} {made} in the output, {here} now"
        for name, made in job["versions"].items()
        if made != (here := platform.python_version() if name == "python" else version(name))
    ]
    made_with = f" ({'; '.join(versions)})" if versions else ""
    result = ReencodeResult()
    with DecodingProcess(plain_reader, plain_decoder) as process:
        reader, decoder = IsolatedReader(plain_reader, process), IsolatedDecoder.in_process(process)
        for chunk, indices in rows.items():
            file = DataFile(storage.read(state.data_uri(chunk)).data)
            for row in (row for index, row in enumerate(file.read_rows()) if index in indices):
                pair = Pair(row["key"], row["image_uri"], row["mask_uri"], row["mask_index"])
                tile = row.get("tiled", False)
                _check_allowed(row, access, job)
                (encoded,) = encode_chunk([pair], reader, decoder, encoder, batch_size=1, threads=1, tile=tile)
                if _has_changed(row, encoded):
                    result.changed += 1
                    continue
                result.rows += 1
                if differences := "; ".join(_differences(row, encoded, metadata, result)):
                    sentence = f"{row['key']}: {differences}{made_with}"
                    result.problems.append(Problem("reencode", state.data_uri(chunk), sentence, chunk))
    return result


def _check_allowed(row: Row, access: Access, job: Mapping[str, Any]) -> None:
    """Raise UsageError if the user must name the sources of a row."""
    uris = [row[name] for name in ("image_uri", "mask_uri") if not row[name].startswith(RANDOM_MASK)]
    files = [part.file if (part := parse_part(uri)) else uri for uri in uris]
    if not all(storage.is_allowed(file, access) for file in files):
        options = " ".join(dict.fromkeys(suggest_sources(uri, job) for uri in uris))
        raise UsageError(
            f"--sample reads sources, and those of {row['key']} are not below a prefix that you named; if you trust "
            f"this output, add {options}"
        )


def _has_changed(row: Row, encoded: EncodedPair | Reject) -> bool:
    """Return whether the sources of a row have changed or are gone.

    Raises:
        JobFailed: the sources cannot be fetched, or this machine cannot encode them.
    """
    if isinstance(encoded, EncodedPair):
        found = encoded.pair.image_version, encoded.pair.mask_version
        return found != (row["image_version"], row["mask_version"])
    if encoded.error in ("fetch.not_found", "mask.missing"):
        return True
    if encoded.error.startswith("fetch."):
        raise JobFailed(
            f"--sample cannot fetch {row['image_uri']} or its mask ({encoded.message}); check the credentials, or "
            "leave out --sample"
        )
    if encoded.error in ("encode.out_of_memory", "encode.failed"):
        raise JobFailed(
            f"--sample cannot encode {row['key']} on this machine ({encoded.message}); use a machine like the job's, "
            "or another --seed"
        )
    return False


def _differences(
    row: Row, encoded: EncodedPair | Reject, metadata: RowMetadata, result: ReencodeResult
) -> Iterator[str]:
    """Yield the differences between a row and its sources encoded again, and count them in ``result``."""
    if isinstance(encoded, Reject):
        yield f"its source is rejected now, {encoded.error}: {encoded.message}"
        return
    height, width, _ = encoded.image.pixels.shape
    if row["noise_mask"].shape != [1, height, width]:
        yield f"its source gives a noise_mask of {[1, height, width]}, but the row has {row['noise_mask'].shape}"
        return
    noise_mask = unpack_mask(encoded.noise_mask, height, width)
    if pixels := int((noise_mask != row["noise_mask"].values).sum()):
        result.other_masks += 1
        yield f"{pixels:,} of {noise_mask.size:,} pixels of noise_mask differ from the re-encoded source"
    latent_mask = encoded.latent_mask
    if latent_mask is not None and not np.array_equal(latent_mask.ravel(), row["latent_mask"].values):
        yield "its latent_mask differs from the re-encoded source"
    for name, values in (("samples", encoded.samples), ("original_samples", encoded.original_samples)):
        if values is not None:
            moments = metadata.posterior == "moments"
            stored, dtype = row[name].values, metadata.compute_dtype
            largest, over = latent_difference(stored, values.ravel(), dtype, moments=moments)
            result.largest = max(result.largest, largest)
            if over:
                differing = f"{over:,} of {values.size:,} values of {name}"
                yield f"{differing} differ from the re-encoded source by up to {largest:.3g}"


def latent_difference(
    stored: NDArray[Any], encoded: NDArray[np.float32], dtype: str, *, moments: bool
) -> tuple[float, int]:
    """Return the largest absolute difference of two latents, and the number of values that differ too much.

    Args:
        stored: float16 or float32, flat.
        encoded: flat.
        dtype: of the computation, a key of `RELATIVE_TOLERANCES`.
        moments: whether the latents are means followed by deviations; each half has its own tolerance.
    """
    magnitudes = np.abs(stored)
    halves = magnitudes.reshape(2 if moments else 1, -1)
    largest = halves.max(axis=1, keepdims=True).astype(np.float32)
    allowed = np.broadcast_to(np.maximum(MIN_TOLERANCE, RELATIVE_TOLERANCES[dtype] * largest), halves.shape).ravel()
    if stored.dtype == np.float16:
        with np.errstate(invalid="ignore"):  # infinite values differ in any case
            allowed = allowed + np.spacing(magnitudes).astype(np.float32) / 2
    difference = np.abs(encoded - stored.astype(np.float32))
    return float(difference.max()), int((~(difference <= allowed)).sum())  # counts NaN, too
