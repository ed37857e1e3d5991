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
_LISTED = pa.schema([("key", pa.string()), ("suffix", pa.string()), ("version", pa.string()), ("size", pa.int64())])


class FoundPairs(NamedTuple):
    """What the two prefixes hold."""

    pairs: pa.Table
    """``key, image_suffix, mask_suffix, image_version, mask_version, image_bytes``; keys are unique, in no order.
    A hundred bytes a pair: URIs are made of the keys where they are needed, by `with_uris`."""
    unpaired_images: pa.Array
    """Their URIs."""
    unpaired_masks: pa.Array
    ignored_files: int
    """Objects without an image's suffix."""
    images_prefix: str
    masks_prefix: str
    mask_bytes: int
    """Of the masks that have an image."""

    def with_uris(self, pairs: pa.Table) -> pa.Table:
        """Add ``image_uri`` and ``mask_uri`` to some of the pairs."""
        images = _uris(self.images_prefix, pairs["key"], pairs["image_suffix"])
        masks = _uris(self.masks_prefix, pairs["key"], pairs["mask_suffix"])
        return pairs.append_column("image_uri", images).append_column("mask_uri", masks)


def find_pairs(source: Source) -> FoundPairs:
    """List both prefixes and pair images with masks by their relative paths without the suffix.

    Raises:
        UsageError: a prefix cannot be read, two files claim one key, or there is no pair at all.
    """
    images_prefix, masks_prefix = _prefix("--images", source.images), _prefix("--masks", source.masks)
    if images_prefix == masks_prefix:
        raise UsageError(f"--images and --masks are both {source.images}; give each its own prefix")
    images, ignored_images = _listing("--images", images_prefix, nested=masks_prefix)
    masks, ignored_masks = _listing("--masks", masks_prefix, nested=images_prefix)
    pairs, mask_bytes = _paired(images, masks)
    if not pairs.num_rows:
        raise UsageError(_no_pairs(source, images, masks))
    return FoundPairs(
        pairs=pairs,
        unpaired_images=_unpaired(images_prefix, images, masks),
        unpaired_masks=_unpaired(masks_prefix, masks, images),
        ignored_files=ignored_images + ignored_masks,
        images_prefix=images_prefix,
        masks_prefix=masks_prefix,
        mask_bytes=mask_bytes,
    )


def _prefix(option: str, uri: str) -> str:
    try:
        return storage.normalise(uri)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _listing(option: str, prefix: str, nested: str) -> tuple[pa.Table, int]:
    """The images under ``prefix``, and how many other objects there are; those under ``nested`` are neither."""
    try:
        batches = _image_batches(prefix, nested)
    except OSError as error:
        raise UsageError(
            f"{option} {prefix} cannot be listed: {error.strerror or error}; check the prefix and the credentials"
        ) from error
    table = pa.Table.from_batches([batch for batch, _ in batches], _LISTED).combine_chunks()
    if pc.count_distinct(table["key"]).as_py() < table.num_rows:
        raise UsageError(_shared_keys(option, prefix, table))
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
        pc.struct_field(parts, "suffix"),
        pa.array(listed.versions, pa.string()),
        pa.array(listed.sizes, pa.int64()),
    ]
    batch = pa.RecordBatch.from_arrays(columns, schema=_LISTED).filter(pc.and_(is_image, mine))
    ignored = pc.sum(pc.and_(pc.invert(is_image), mine)).as_py() or 0
    return batch, ignored


def _uris(prefix: str, keys: pa.ChunkedArray, suffixes: pa.ChunkedArray) -> pa.ChunkedArray:
    paths = pc.binary_join_element_wise(keys, suffixes, ".")
    return pc.binary_join_element_wise(pa.scalar(prefix), paths, "/")


def _paired(images: pa.Table, masks: pa.Table) -> tuple[pa.Table, int]:
    """Put to each image the mask of its key, where there is one; and the bytes of those masks."""
    where = pc.index_in(images["key"], value_set=masks["key"])
    images, masks = images.filter(pc.is_valid(where)), masks.take(where.drop_null())
    columns = {
        "key": images["key"],
        "image_suffix": images["suffix"],
        "mask_suffix": masks["suffix"],
        "image_version": images["version"],
        "mask_version": masks["version"],
        "image_bytes": images["size"],
    }
    return pa.table(columns), pc.sum(masks["size"]).as_py() or 0


def _unpaired(prefix: str, files: pa.Table, others: pa.Table) -> pa.Array:
    alone = files.filter(pc.invert(pc.is_in(files["key"], value_set=others["key"])))
    return _uris(prefix, alone["key"], alone["suffix"]).combine_chunks().sort()


def _shared_keys(option: str, prefix: str, table: pa.Table) -> str:
    counts = table.group_by("key").aggregate([("key", "count")])
    shared = counts.filter(pc.greater(counts["key_count"], 1))["key"]
    rivals = table.filter(pc.equal(table["key"], shared[0]))
    uris = sorted(_uris(prefix, rivals["key"], rivals["suffix"]).to_pylist())
    return (
        f"{option}: {len(shared)} keys are claimed by more than one file, the first by {' and '.join(uris[:3])}; "
        "move or rename all but one of each, so that a key means one file"
    )


def _no_pairs(source: Source, images: pa.Table, masks: pa.Table) -> str:
    def examples(table: pa.Table) -> str:
        return f"{table.num_rows:,} files" + (
            f" such as {table['key'][0]}.{table['suffix'][0]}" if table.num_rows else ""
        )

    return (
        f"no image has a mask: --images {source.images} holds {examples(images)}, "
        f"--masks {source.masks} holds {examples(masks)}; "
        "a pair has the same path below its prefix but for the suffix"
    )
