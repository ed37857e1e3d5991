"""Pairs by their names: images and masks below one prefix or two, put together by path or by ``--mask-pattern``.

Images alone are pairs where their masks are drawn, or are in themselves.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources.found import IMAGE_SUFFIXES
from inpaint_encode.stores import storage
from inpaint_encode.stores.access import Access

from .found import FoundPairs, listed_pages, normalised, uris
from .random_masks import with_random_masks

__all__ = ["from_images", "from_prefixes"]

_SUFFIXES = f"an image's name ends in {', '.join(sorted(IMAGE_SUFFIXES))}"
_STEM_AND_SUFFIX = r"^(?P<key>(?:.*/)?[^/]+)\.(?P<suffix>[^./]+)$"
_PAGES_AT_ONCE = 32
_LISTED = pa.schema([("key", pa.string()), ("suffix", pa.string()), ("version", pa.string()), ("size", pa.int64())])


class _Others(NamedTuple):
    """Objects that are no images, and of these the names that no URI can spell."""

    number: int
    unreadable: list[str]

    def plus(self, more: _Others) -> _Others:
        """Return both together."""
        return _Others(self.number + more.number, self.unreadable + more.unreadable)


def from_images(source: Source, access: Access) -> FoundPairs:
    """List the prefix of the images; each is a pair with itself, or with each of its ``--random-masks``.

    Raises:
        UsageError: the prefix cannot be read, two files claim one key, or there is no image at all.
    """
    prefix = normalised("--images", source.images)
    images, others = _listing("--images", prefix, access)
    ignored = others.number
    _refuse_shared_keys("--images", prefix, images)
    if not images.num_rows:
        raise UsageError(f"--images {source.images} holds no image, but {ignored:,} other files; {_SUFFIXES}")
    columns = {
        "key": images["key"],
        "image": images["key"],
        "image_suffix": images["suffix"],
        "image_version": images["version"],
        "image_bytes": images["size"],
    }
    if not source.random_masks:
        columns |= {"mask_suffix": images["suffix"], "mask_version": images["version"]}
    pairs = with_random_masks(pa.table(columns), source) if source.random_masks else pa.table(columns)
    return FoundPairs(
        pairs=pairs,
        unpaired_images=pa.array([], pa.string()),
        unpaired_masks=pa.array([], pa.string()),
        ignored_files=ignored,
        unreadable=tuple(others.unreadable),
        images_prefix=prefix,
        masks_prefix=prefix,
        listed=images.num_rows + ignored,
        bytes_listed=(pc.sum(images["size"]).as_py(), 0),
    )


def from_prefixes(source: Source, access: Access) -> FoundPairs:
    """List the prefixes and put to each image its masks, by the rule of `inpaint_encode.settings.Source`.

    Raises:
        UsageError: a prefix cannot be read, two files claim one key, or there is no pair at all.
    """
    images_prefix = normalised("--images", source.images)
    masks_prefix = normalised("--masks", source.masks) if source.masks else images_prefix
    together = images_prefix == masks_prefix
    if together and not source.mask_pattern:
        raise UsageError(
            f"--images and --masks are both {source.images}; give each its own prefix, "
            "--mask-pattern to tell a mask by its name, or leave out --masks where each image's alpha is its mask"
        )
    images, others = _listing("--images", images_prefix, access, nested=masks_prefix)
    masks, listed = images, images.num_rows + others.number
    if not together:
        masks, more = _listing("--masks", masks_prefix, access, nested=images_prefix)
        listed, others = listed + masks.num_rows + more.number, others.plus(more)
    masks = _masks_by_pattern(masks, source.mask_pattern) if source.mask_pattern else _masks_by_path(masks)
    if together:
        images, masks = _told_apart(images, masks)
    _refuse_shared_keys("--images", images_prefix, images)
    _refuse_shared_keys("--masks", masks_prefix, _all_or(masks, pc.is_valid(masks["image"])))
    where = _where(masks["image"], images["key"])
    used = np.zeros(images.num_rows, np.bool_)
    used[where.drop_null().to_numpy()] = True
    pairs, mask_bytes = _paired(images, masks, where, source)
    return FoundPairs(
        pairs,
        unpaired_images=_uris_of(images_prefix, images, pa.array(~used)),
        unpaired_masks=_uris_of(masks_prefix, masks, pc.is_null(where)),
        ignored_files=others.number,
        unreadable=tuple(others.unreadable),
        images_prefix=images_prefix,
        masks_prefix=masks_prefix,
        listed=listed,
        bytes_listed=(pc.sum(images["size"].filter(pa.array(used))).as_py(), mask_bytes),
    )


def _listing(option: str, prefix: str, access: Access, nested: str = "") -> tuple[pa.Table, _Others]:
    """The images under ``prefix``, and the other objects; those under ``nested`` are neither."""
    inside = nested.removeprefix(f"{prefix}/") + "/" if nested.startswith(f"{prefix}/") else None
    pages, table, ignored = [], _LISTED.empty_table(), 0
    unreadable: list[str] = []
    for listed in listed_pages(option, prefix, access):
        page, others = _image_batch(listed, inside)
        pages.append(page)
        ignored += others + len(listed.unreadable)
        unreadable += listed.unreadable
        if len(pages) == _PAGES_AT_ONCE:
            table, pages = pa.concat_tables([table, _in_one_piece(pages)]), []
    return pa.concat_tables([table, _in_one_piece(pages)]), _Others(ignored, unreadable)


def _in_one_piece(pages: list[pa.RecordBatch]) -> pa.Table:
    """Small pages lie between what is freed meanwhile, and keep it from the system."""
    return pa.Table.from_batches(pages, _LISTED).combine_chunks()


def _image_batch(listed: storage.Listed, skip: str | None) -> tuple[pa.RecordBatch, int]:
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


def _masks_by_path(files: pa.Table) -> pa.Table:
    """Add ``image``, the stem of the image that a file is the mask of: the mask's own."""
    return files.append_column("image", files["key"])


def _masks_by_pattern(files: pa.Table, pattern: str) -> pa.Table:
    """Add ``image``, null where the name does not match, and, if the pattern has ``{n}``, ``mask_index``.

    A name matches in one way at most, since `Source` asks for a text between ``{stem}`` and ``{n}``.
    """
    name, _, suffix = pattern.rpartition(".")
    escaped = re.escape(name).replace(r"\{stem\}", "(?P<stem>[^/]+)").replace(r"\{n\}", "(?P<n>[0-9]{1,9})")
    parts = pc.extract_regex(files["key"], f"^(?P<folder>(?:.*/)?){escaped}$")
    stems = pc.binary_join_element_wise(pc.struct_field(parts, "folder"), pc.struct_field(parts, "stem"), "")
    matched = pc.equal(pc.utf8_lower(files["suffix"]), suffix.lower())
    files = files.append_column("image", pc.if_else(matched, stems, pa.scalar(None, pa.string())))
    if "{n}" not in pattern:
        return files
    return files.append_column("mask_index", pc.struct_field(parts, "n").cast(pa.int32()))


def _told_apart(files: pa.Table, as_masks: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Of files in one place, the images, and the masks: those whose name makes them the mask of a file there."""
    is_mask = pc.is_in(as_masks["image"], value_set=files["key"])
    return files.filter(pc.invert(is_mask)), as_masks.filter(is_mask)


def _paired(images: pa.Table, masks: pa.Table, where: pa.ChunkedArray, source: Source) -> tuple[pa.Table, int]:
    """Put to each mask the image of its stem, where there is one; and the bytes of these masks."""
    if where.null_count == len(where):
        raise UsageError(_no_pairs(source, images, masks))
    masks, images = _all_or(masks, pc.is_valid(where)), _in_order(images, where.drop_null())
    columns = {
        "key": masks["image"],
        "image_suffix": images["suffix"],
        "mask_suffix": masks["suffix"],
        "image_version": images["version"],
        "mask_version": masks["version"],
        "image_bytes": images["size"],
    }
    if "{n}" in source.mask_pattern:
        columns |= {"key": masks["key"], "image": masks["image"], "mask_index": masks["mask_index"]}
    elif source.mask_pattern:
        columns |= {"mask": masks["key"]}
    return pa.table(columns), pc.sum(masks["size"]).as_py() or 0


def _where(wanted: pa.ChunkedArray, keys: pa.ChunkedArray) -> pa.ChunkedArray:
    """The number of each wanted key among ``keys``, or null; where both are the same, no table of hashes is made."""
    if wanted.equals(keys):
        return pa.chunked_array([pa.array(np.arange(len(keys)), pa.int32())])
    return pc.index_in(wanted, value_set=keys)


def _all_or(table: pa.Table, wanted: pa.ChunkedArray) -> pa.Table:
    """The wanted rows, without a copy where that is all."""
    return table if pc.all(wanted).as_py() else table.filter(wanted)


def _in_order(table: pa.Table, rows: pa.ChunkedArray) -> pa.Table:
    """The rows of these numbers, without a copy where they are so already."""
    numbers = rows.to_numpy()
    same = len(numbers) == table.num_rows and np.array_equal(numbers, np.arange(len(numbers)))
    return table if same else table.take(rows)


def _uris_of(prefix: str, files: pa.Table, wanted: pa.Array | pa.ChunkedArray) -> pa.Array:
    alone = files.select(["key", "suffix"]).filter(wanted)
    return uris(prefix, alone["key"], alone["suffix"]).combine_chunks().sort()


def _refuse_shared_keys(option: str, prefix: str, table: pa.Table) -> None:
    keys = table["key"]
    if pc.all(pc.less(keys.slice(0, max(0, len(keys) - 1)), keys.slice(1))).as_py():
        return  # in the order of a listing, as a rule, and so without a table of hashes
    if pc.count_distinct(keys).as_py() == len(keys):
        return
    counts = table.group_by("key").aggregate([("key", "count")])
    shared = counts.filter(pc.greater(counts["key_count"], 1))["key"]
    rivals = table.filter(pc.equal(table["key"], shared[0]))
    examples = sorted(uris(prefix, rivals["key"], rivals["suffix"]).to_pylist())
    raise UsageError(
        f"{option}: {len(shared)} keys are claimed by more than one file, the first by {' and '.join(examples[:3])}; "
        "move or rename all but one of each, so that a key means one file"
    )


def _no_pairs(source: Source, images: pa.Table, masks: pa.Table) -> str:
    def examples(table: pa.Table) -> str:
        return f"{table.num_rows:,} files" + (
            f" such as {table['key'][0]}.{table['suffix'][0]}" if table.num_rows else ""
        )

    rule = (
        f"a mask of a.png is named {source.mask_pattern.replace('{stem}', 'a').replace('{n}', '0')}, in the same folder"
        if source.mask_pattern
        else "a pair has the same path below its prefix but for the suffix"
    )
    return (
        f"no image has a mask: --images {source.images} holds {examples(images)}, "
        f"--masks {source.masks or source.images} holds {examples(masks)}; {rule}"
    )
