"""Pairs that did not become rows: how many for which reason, what the reason means, and some of them."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.output.parquet import damage_named
from inpaint_encode.schema import REJECTS
from inpaint_encode.stores import storage

__all__ = ["EXAMPLES", "REASONS", "Rejects", "read_file", "read_rejects"]

EXAMPLES = 5
"""Pairs that are named for each reason."""

_FILES = 100
"""Files of rejects that are read at most."""

_UNREADABLE = "the first bytes are of no format that is read, whatever the suffix says"
_ENDS = "it ends before its pixels do"
_DAMAGED = "header or data are damaged"
_LEVELS = "its levels are 32-bit or floating-point, of no stated range"
_LARGE = "its header says more than --max-pixels"

REASONS: Mapping[str, str] = MappingProxyType(
    {
        "fetch.not_found": "the object has gone since it was listed, or the list names one that is not there",
        "fetch.denied": "the store does not allow this object",
        "fetch.changed": "the file that holds it is not the one any more that was planned; --refresh plans it again",
        "fetch.too_large": "it is over --max-bytes",
        "fetch.unavailable": "the store gave no whole answer within 25 s of trying again",
        "fetch.failed": "the store answered with another error, which is named",
        "image.not_an_image": f"image: {_UNREADABLE}",
        "mask.not_an_image": f"mask: {_UNREADABLE}",
        "image.truncated": f"image: {_ENDS}",
        "mask.truncated": f"mask: {_ENDS}",
        "image.corrupt": f"image: {_DAMAGED}",
        "mask.corrupt": f"mask: {_DAMAGED}",
        "image.unsupported": f"image: {_LEVELS}",
        "mask.unsupported": f"mask: {_LEVELS}; or one of its 16-bit colours is transparent",
        "image.too_large": f"image: {_LARGE}",
        "mask.too_large": f"mask: {_LARGE}",
        "mask.missing": "the row of a Parquet file has no mask",
        "mask.no_alpha": "--mask-channel alpha was given, and the mask has none",
        "mask.ambiguous": "the mask has alpha, and no --mask-channel says whether that is the mask",
        "orientation.mismatch": "only the image or only the mask is turned by EXIF, and they lie across",
        "size.too_small": "a side is below the VAE's multiple, or it would have to be enlarged",
        "size.too_large": "enlarged, it would be over --max-pixels",
        "encode.failed": "the VAE failed on it alone",
        "encode.not_finite": "its latent has values that are not finite, in float32 either",
        "encode.too_large": "its latent has values that float16 does not hold; --samples-dtype float32 stores them",
        "encode.out_of_memory": "not even it alone fits into the device, in tiles where they are allowed",
    }
)
"""What each name of a reason means; a test holds the names against those that the README explains."""


@dataclass(frozen=True)
class Rejects:
    """What some or all files of rejects hold."""

    files: int
    """That were read."""
    of_files: int
    counts: Counter[str] = field(default_factory=Counter)
    """Of the files that were read, by reason."""
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """`schema.REJECTS` by reason, at most `EXAMPLES` each."""


def read_rejects(output: str, rng: random.Random) -> Rejects:
    """Read what ``_rejected`` holds, of at most a hundred files, which ``rng`` draws.

    Raises:
        JobFailed: one of them is damaged.
        PermissionError, OSError: by what the store said.
    """
    prefix = storage.join(output, "_rejected")
    paths = sorted(
        path for listed in storage.list_objects(prefix) for path in listed.paths if path.endswith(".parquet")
    )
    drawn = rng.sample(paths, min(_FILES, len(paths)))
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(lambda path: read_file(storage.join(prefix, path)), drawn))
    examples: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for table in tables:
        for reject in table.to_pylist():
            if len(examples[reject["error"]]) < EXAMPLES:
                examples[reject["error"]].append(reject)
    counts = Counter(error for table in tables for error in table["error"].to_pylist())
    return Rejects(len(drawn), len(paths), counts, dict(examples))


def read_file(uri: str) -> pa.Table:
    """Read one file of rejects, a table of `schema.REJECTS`.

    Raises:
        JobFailed: it is damaged.
        PermissionError, OSError: by what the store said.
    """
    data = storage.read(uri).data
    with damage_named(uri):
        return pq.read_table(pa.BufferReader(data), columns=REJECTS.names)
