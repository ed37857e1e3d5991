"""Where pairs come from: two prefixes become one sorted table of pairs, and nothing is left unsaid.

Everything stays in Arrow columns: a Python object for each of a hundred million keys would not fit.
"""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from . import storage
from .errors import UsageError
from .images import IMAGE_SUFFIXES
from .settings import Source

__all__ = ["FoundPairs", "find_pairs"]

_STEM_AND_SUFFIX = r"^(?P<key>.+)\.(?P<suffix>[^./]+)$"
_LISTED = pa.schema([("key", pa.string()), ("uri", pa.string()), ("version", pa.string()), ("size", pa.int64())])


class FoundPairs(NamedTuple):
    """What the two prefixes hold."""

    pairs: pa.Table
    """``key, image_uri, mask_uri, image_version, mask_version, image_bytes``, sorted by key; keys are unique."""
    unpaired_images: pa.Array
    """Their URIs."""
    unpaired_masks: pa.Array
    ignored_files: int
    """Objects without an image's suffix."""


def find_pairs(source: Source) -> FoundPairs:
    """List both prefixes and pair images with masks by their relative paths without the suffix.

    Raises:
        UsageError: a prefix cannot be read, two files claim one key, or there is no pair at all.
    """
    images_prefix, masks_prefix = storage.normalise(source.images), storage.normalise(source.masks)
    if images_prefix == masks_prefix:
        raise UsageError(f"--images and --masks are both {source.images}; give each its own prefix")
    images, ignored_images = _listing("--images", images_prefix, nested=masks_prefix)
    masks, ignored_masks = _listing("--masks", masks_prefix, nested=images_prefix)
    pairs = _join(images, masks, "inner")
    if not pairs.num_rows:
        raise UsageError(_no_pairs(source, images, masks))
    return FoundPairs(
        pairs=_as_pairs(pairs).sort_by("key"),
        unpaired_images=_join(images, masks, "left anti")["uri"].combine_chunks().sort(),
        unpaired_masks=_join(masks, images, "left anti")["uri"].combine_chunks().sort(),
        ignored_files=ignored_images + ignored_masks,
    )


def _listing(option: str, prefix: str, nested: str) -> tuple[pa.Table, int]:
    """The images under ``prefix``, and how many other objects there are; those under ``nested`` are neither."""
    try:
        batches = _image_batches(prefix, nested)
    except OSError as error:
        raise UsageError(
            f"{option} {prefix} cannot be listed: {error.strerror or error}; check the prefix and the credentials"
        ) from error
    table = pa.Table.from_batches([batch for batch, _ in batches], _LISTED)
    _refuse_shared_keys(option, table)
    return table, sum(ignored for _, ignored in batches)


def _image_batches(prefix: str, nested: str) -> list[tuple[pa.RecordBatch, int]]:
    inside = nested.removeprefix(f"{prefix}/") + "/" if nested.startswith(f"{prefix}/") else None
    return [_image_batch(prefix, listed, inside) for listed in storage.list_objects(prefix)]


def _image_batch(prefix: str, listed: storage.Listed, skip: str | None) -> tuple[pa.RecordBatch, int]:
    paths = pa.array(listed.paths, pa.string())
    parts = pc.extract_regex(paths, _STEM_AND_SUFFIX)
    suffixes = pa.array(sorted(IMAGE_SUFFIXES))
    is_image = pc.is_in(pc.utf8_lower(pc.struct_field(parts, "suffix")), suffixes)
    mine = pc.invert(pc.starts_with(paths, skip)) if skip else pc.true_unless_null(paths)
    columns = [
        pc.struct_field(parts, "key"),
        pc.binary_join_element_wise(pa.scalar(prefix), paths, "/"),
        pa.array(listed.versions, pa.string()),
        pa.array(listed.sizes, pa.int64()),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=_LISTED).filter(pc.and_(is_image, mine))
    ignored = pc.sum(pc.and_(pc.invert(is_image), mine)).as_py() or 0
    return batch, ignored


def _refuse_shared_keys(option: str, table: pa.Table) -> None:
    counts = table.group_by("key").aggregate([("key", "count")])
    shared = counts.filter(pc.greater(counts["key_count"], 1))["key"]
    if len(shared):
        uris = sorted(table.filter(pc.equal(table["key"], shared[0]))["uri"].to_pylist())
        raise UsageError(
            f"{option}: {len(shared)} keys are claimed by more than one file, the first by {' and '.join(uris[:3])}; "
            "move or rename all but one of each, so that a key means one file"
        )


def _join(left: pa.Table, right: pa.Table, kind: str) -> pa.Table:
    return left.join(right, "key", join_type=kind, left_suffix="", right_suffix="_of_mask")


def _as_pairs(joined: pa.Table) -> pa.Table:
    names = {
        "key": "key",
        "uri": "image_uri",
        "uri_of_mask": "mask_uri",
        "version": "image_version",
        "version_of_mask": "mask_version",
        "size": "image_bytes",
    }
    return joined.select(list(names)).rename_columns(list(names.values()))


def _no_pairs(source: Source, images: pa.Table, masks: pa.Table) -> str:
    def examples(table: pa.Table) -> str:
        return f"{table.num_rows:,} files" + (f" such as {table['uri'][0]}" if table.num_rows else "")

    return (
        f"no image has a mask: --images {source.images} holds {examples(images)}, "
        f"--masks {source.masks} holds {examples(masks)}; "
        "a pair has the same path below its prefix but for the suffix"
    )
