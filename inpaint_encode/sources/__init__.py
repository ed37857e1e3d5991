"""Where pairs come from: prefixes that are listed, a manifest that names them, or files that hold them.

One table of pairs either way, and `PairReader`, which reads what they name. Everything stays in Arrow columns: a
Python object for each of a hundred million keys would not fit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.stores.access import DEFAULT_ACCESS, Access
from inpaint_encode.stores.ranged_file import Changed

from .files import named_by
from .found import FoundPairs
from .manifest import from_manifest
from .pair_reader import Content, PairReader, store_of
from .parquet import MissingValue
from .prefixes import from_images, from_prefixes
from .refetch import Sources, fetch_again
from .tars import from_tars

__all__ = [
    "Changed",
    "Content",
    "FoundPairs",
    "MissingValue",
    "PairReader",
    "Sources",
    "fetch_again",
    "find_pairs",
    "store_of",
]


@contextmanager
def _freed_at_once() -> Iterator[None]:
    """Arrow's own allocator keeps what is freed, 150 MB of a million lines; the system's gives it back."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(pa.system_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


@_freed_at_once()
def find_pairs(source: Source, access: Access = DEFAULT_ACCESS) -> FoundPairs:
    """Read the manifest, index the tars, or list the prefixes, and return every pair that they make.

    Raises:
        UsageError: something cannot be read, two files or lines claim one key, or there is no pair at all.
    """
    if source.pairs:
        files = named_by(source.pairs, access)
        found = (from_tars if files.kind == "tar" else from_manifest)(source, files, access)
        _refuse_idle(access, source.pairs, *(found.pairs[side] for side in ("image_uri", "mask_uri")))
        return found
    _refuse_idle(access, source.images, source.masks)
    alone = source.random_masks or source.is_own_mask
    return (from_images if alone else from_prefixes)(source, access)


def _refuse_idle(access: Access, *uris: str | pa.ChunkedArray) -> None:
    """Refuse options of buckets where none is read."""
    given = [f"--{name.replace('_', '-')}" for name, value in asdict(access).items() if value]
    if given and not any(pc.any(pc.match_substring_regex(one, "^(?:s3|gs)://")).as_py() for one in map(_column, uris)):
        raise UsageError(f"{', '.join(given)}: such is said to s3:// and gs:// alone, and the source names neither")


def _column(uris: str | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    return pa.array([uris]) if isinstance(uris, str) else uris
