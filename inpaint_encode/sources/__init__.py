"""Finds the pairs of a source: prefixes that are listed, a manifest, Parquet files with images, or tars.

`find_pairs` returns one table of pairs for every kind of source. `PairReader` reads their images and masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.stores.base import DEFAULT_ACCESS, Access
from inpaint_encode.stores.ranged_file import Changed

from .manifest import from_manifest
from .pair_reader import PairReader, SourceFile, store_of
from .pairs import FoundPairs, PairFiles, find_pair_files
from .parquet import NullValue
from .prefixes import from_images, from_images_and_masks
from .tars import from_tars

__all__ = [
    "Changed",
    "FoundPairs",
    "NullValue",
    "PairReader",
    "SourceFile",
    "find_pairs",
    "store_of",
]

_FORMATS: dict[str, Callable[[Source, PairFiles, Access], FoundPairs]] = {
    "parquet": from_manifest,
    "csv": from_manifest,
    "jsonl": from_manifest,
    "tar": from_tars,
}
"""The formats of ``--pairs``: the suffix of a file's name, and the function that reads such files.

To add a format:

1. Write its function in a module of its own and add it here. `manifest` reads the formats of lists of pairs.
2. Add the format to the help of ``--pairs`` in `inpaint_encode.settings.source`.
3. If ``--pairs`` may name a prefix with many of its files, add the suffix to ``_PREFIX_SUFFIXES`` in `pairs`.
4. If images are parts of its files, add their URIs to `part_uris`. Read whole images in `PairReader.read`, and their
   first bytes in `PairReader.read_start`.
"""


def find_pairs(source: Source, access: Access = DEFAULT_ACCESS) -> FoundPairs:
    """Read the manifest, index the tars, or list the prefixes; return all pairs.

    Raises:
        UsageError: something cannot be read, two files or lines have the same key, or there is no pair.
    """
    if source.pairs:
        files = find_pair_files(source.pairs, access, _FORMATS)
        found = _FORMATS[files.suffix](source, files, access)
        _check_access(access, pa.chunked_array([[source.pairs]]), found.pairs["image_uri"], found.pairs["mask_uri"])
        return found
    _check_access(access, pa.chunked_array([[source.images, source.masks]]))
    if source.random_masks or source.is_own_mask:
        return from_images(source, access)
    return from_images_and_masks(source, access)


def _check_access(access: Access, *uris: pa.ChunkedArray) -> None:
    """Raise UsageError if there are options for buckets, but no URI of a bucket."""
    options = [f"--{name.replace('_', '-')}" for name, value in asdict(access).items() if value]
    if options and not any(pc.any(pc.match_substring_regex(one, "^(?:s3|gs)://")).as_py() for one in uris):
        raise UsageError(
            f"only s3:// and gs:// accept {' and '.join(options)}, and the source has no such URI; leave this out"
        )
