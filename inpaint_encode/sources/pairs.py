"""The pairs that are found in a source, as an Arrow table: Python objects for 100 million keys would not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import features

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import EXTRA_COLUMNS

_AVIF = {"avif"} if features.check("avif") else set()

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", *_AVIF})
"""File name suffixes, in lower case, of images and masks. Files with another suffix are ignored. ``avif`` is included
if Pillow can decode it."""

SYSTEM_POOL = pa.system_memory_pool()
"""Memory pool for large results of millions of rows: memory that is freed goes back to the system at once. Arrow's
default pool keeps it, 150 MB after a hash table of a million URIs."""

_NO_URIS = pa.nulls(0, pa.string())  # pa.array would import pandas


class FoundPairs(NamedTuple):
    """The pairs of a source, and the files that belong to no pair."""

    pairs: pa.Table
    """Columns ``key, image_version, mask_version, image_bytes``; keys are unique. Other columns depend on the source:

    * Prefixes have ``image_suffix, mask_suffix``, about a hundred bytes a pair. `with_uris` makes URIs of the keys. A
      file whose path without the suffix is not the key has that path in the column ``image`` or ``mask``.
    * Manifests and tars have ``image_uri, mask_uri``, and their other columns in the struct `schema.EXTRA_COLUMNS`. If
      a manifest only has URIs, nothing is listed: versions are empty and ``image_bytes`` is 0. Images are in the order
      of the manifest; all masks of an image follow each other.

    Random masks always have a ``mask_uri``. ``mask_index`` exists if an image can have several masks."""
    unpaired_images: pa.Array = _NO_URIS
    """URIs of images without a mask."""
    unpaired_masks: pa.Array = _NO_URIS
    """URIs of masks without an image."""
    ignored_files: int = 0
    """Number of files without an image's suffix."""
    unreadable_names: tuple[str, ...] = ()
    """Escaped names of ignored files whose names are not valid in a URI."""
    images_prefix: str = ""
    masks_prefix: str = ""
    objects_listed: int = 0
    image_row_groups: int = 0
    """Number of row groups of the Parquet files that hold the images."""
    image_and_mask_bytes: tuple[int, int] | None = None
    """Total bytes of the images that have a mask, each counted once, and of their masks. None if nothing was listed."""

    @property
    def extra_columns(self) -> list[pa.Field]:
        """The fields of `schema.EXTRA_COLUMNS`."""
        at = self.pairs.schema.get_field_index(EXTRA_COLUMNS)
        return [] if at < 0 else list(self.pairs.schema.field(at).type)

    def without_pairs(self) -> FoundPairs:
        """Return a copy with an empty table: once the pairs are in the plan, their memory can be freed."""
        return self._replace(pairs=self.pairs.schema.empty_table())

    def with_uris(self, pairs: pa.Table) -> pa.Table:
        """Add ``image_uri``, ``mask_uri`` and ``mask_index`` to a part of ``pairs``, where they are missing."""
        for side, prefix in (("image", self.images_prefix), ("mask", self.masks_prefix)):
            if f"{side}_uri" not in pairs.column_names:
                stems = pairs[side if side in pairs.column_names else "key"]
                pairs = pairs.append_column(f"{side}_uri", join_uris(prefix, stems, pairs[f"{side}_suffix"]))
        if "mask_index" not in pairs.column_names:
            pairs = pairs.append_column("mask_index", pa.repeat(pa.scalar(0, pa.int32()), pairs.num_rows))
        return pairs


def join_uris(prefix: str, stems: pa.ChunkedArray, suffixes: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return ``prefix/stem.suffix`` of each row."""
    paths = pc.binary_join_element_wise(stems, suffixes, ".")
    return pc.binary_join_element_wise(pa.scalar(prefix), paths, "/")


def repeated_keys(keys: pa.ChunkedArray) -> pa.Array:
    """Return the keys that occur more than once. Keys in ascending order, as in most listings, need no hash table."""
    ascending = pc.all(pc.less(keys.slice(0, max(0, len(keys) - 1)), keys.slice(1))).as_py()
    if ascending or pc.count_distinct(keys, memory_pool=SYSTEM_POOL).as_py() == len(keys):
        return _NO_URIS
    counts = keys.value_counts()
    return counts.filter(pc.greater(counts.field("counts"), 1)).field("values")


def check_unique_keys(where: str, table: pa.Table, uris_of: Callable[[pa.Table], pa.ChunkedArray], advice: str) -> None:
    """Raise UsageError if two rows have the same ``key``.

    Args:
        where: the option, and its value, for the error.
        table: rows with a column ``key``.
        uris_of: returns the URIs of some rows, which the error shows.
        advice: what to do.
    """
    if len(repeated := repeated_keys(table["key"])):
        rivals = sorted(set(uris_of(table.filter(pc.equal(table["key"], repeated[0]))).to_pylist()))
        raise UsageError(
            f"{where}: {len(repeated):,} keys are not unique; the first, {repeated[0]}, is the key of "
            f"{' and '.join(rivals[:3])}; {advice}"
        )
