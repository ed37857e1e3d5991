"""Rejected pairs of an output: how many for each reason, what the reasons mean, and examples."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.output.parquet import translate_errors
from inpaint_encode.schema import REJECTS
from inpaint_encode.stores import storage

from .summary import list_paths

__all__ = ["MAX_EXAMPLES", "REASONS", "RejectedPairs", "read_rejects", "read_rejects_file"]

MAX_EXAMPLES = 5
"""Examples of each reason."""

_MAX_FILES = 100
"""Files of rejects that are read."""

_NOT_AN_IMAGE = "its first bytes match no supported format; the suffix is ignored"
_TRUNCATED = "the file ends before its last pixel"
_CORRUPT = "its header or data are damaged"
_UNSUPPORTED = "its levels are 32-bit or floating-point, without a known range"
_TOO_LARGE = "its header states more pixels than --max-pixels"

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "fetch.not_found": "the object was deleted after the listing, or the list of pairs names a missing object",
        "fetch.denied": "the store denies access to this object",
        "fetch.changed": "the file that contains it has changed since it was planned; --refresh plans it again",
        "fetch.too_large": "it is larger than --max-bytes",
        "fetch.unavailable": "the store did not return the whole object within 25 s of retries",
        "fetch.failed": "the store returned another error, which the message quotes",
        "image.not_an_image": f"image: {_NOT_AN_IMAGE}",
        "mask.not_an_image": f"mask: {_NOT_AN_IMAGE}",
        "image.truncated": f"image: {_TRUNCATED}",
        "mask.truncated": f"mask: {_TRUNCATED}",
        "image.corrupt": f"image: {_CORRUPT}",
        "mask.corrupt": f"mask: {_CORRUPT}",
        "image.unsupported": f"image: {_UNSUPPORTED}",
        "mask.unsupported": f"mask: {_UNSUPPORTED}; or one of its 16-bit colors is transparent",
        "image.too_large": f"image: {_TOO_LARGE}",
        "mask.too_large": f"mask: {_TOO_LARGE}",
        "mask.missing": "the row of the Parquet file has no mask",
        "mask.no_alpha": "--mask-channel is alpha, and the mask has no alpha channel",
        "mask.ambiguous": "the mask has an alpha channel, and --mask-channel does not say whether it is the mask",
        "orientation.mismatch": "EXIF rotates only the image or only the mask, and one is upright, the other across",
        "size.too_small": "a side is shorter than the VAE's multiple, or the image would have to be enlarged",
        "size.too_large": "after enlarging it would exceed --max-pixels",
        "encode.failed": "the VAE fails on this image, also alone",
        "encode.not_finite": "its latent has NaN or infinite values, in float32 too",
        "encode.too_large": "its latent has values beyond float16; --samples-dtype float32 stores them",
        "encode.out_of_memory": "it does not fit into the device alone, nor in tiles where they are allowed",
    }
)
"""What each reason means; the README explains the same reasons."""


@dataclass(frozen=True)
class RejectedPairs:
    """Contents of the files of rejects that were read."""

    files: int
    """Files that were read."""
    of_files: int
    counts: Counter[str]
    """Pairs by reason, in the files that were read."""
    examples: dict[str, list[dict[str, Any]]]
    """Rows of `schema.REJECTS` by reason, at most `MAX_EXAMPLES` each."""


def read_rejects(output: str, rng: random.Random) -> RejectedPairs:
    """Read up to 100 files below ``_rejected``, which ``rng`` draws.

    Raises:
        JobFailed: a file is damaged.
        PermissionError, OSError: from the store.
    """
    prefix = storage.join(output, "_rejected")
    paths = sorted(list_paths(prefix, ".parquet"))
    drawn = rng.sample(paths, min(_MAX_FILES, len(paths)))
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(lambda path: read_rejects_file(storage.join(prefix, path)), drawn))
    counts: Counter[str] = Counter()
    examples: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in tables:
        for reject in table.to_pylist():
            counts[reject["error"]] += 1
            if len(examples[reject["error"]]) < MAX_EXAMPLES:
                examples[reject["error"]].append(reject)
    return RejectedPairs(len(drawn), len(paths), counts, dict(examples))


def read_rejects_file(uri: str) -> pa.Table:
    """Read one file of rejects, a table of `schema.REJECTS`.

    Raises:
        JobFailed: the file is damaged.
        PermissionError, OSError: from the store.
    """
    data = storage.read(uri).data
    with translate_errors(uri):
        return pq.read_table(pa.BufferReader(data), columns=REJECTS.names)
