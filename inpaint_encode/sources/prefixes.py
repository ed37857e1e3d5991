"""Pairs by file name: images and masks below one or two prefixes, matched by path or by ``--mask-pattern``.

Images without mask files are pairs if their masks are random or are their own alpha.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.stores.base import Access

from .pairs import IMAGE_SUFFIXES, SYSTEM_POOL, FoundPairs, check_unique_keys, join_uris, list_pages, normalize_uri
from .random_masks import with_random_masks

_STEM_AND_SUFFIX = r"^(?P<key>(?:.*/)?[^/]+)\.(?P<suffix>[^./]+)$"
_MERGED_PAGES = 8
_FILES = pa.schema([("key", pa.string()), ("suffix", pa.string()), ("version", pa.string()), ("size", pa.int64())])


def from_images(source: Source, access: Access) -> FoundPairs:
    """List the prefix of the images; each is a pair with itself, or with each of its ``--random-masks``.

    Raises:
        UsageError: the prefix cannot be read, two files have the same key, or there is no image.
    """
    prefix = normalize_uri("--images", source.images)
    images, ignored, unreadable_names = _list_images("--images", prefix, access)
    _check_keys("--images", prefix, images)
    columns = {
        "key": images["key"],
        "image": images["key"],
        "image_suffix": images["suffix"],
        "image_version": images["version"],
        "image_bytes": images["size"],
    }
    if source.random_masks:
        pairs = with_random_masks(pa.table(columns), source)
    else:
        pairs = pa.table(columns | {"mask_suffix": images["suffix"], "mask_version": images["version"]})
    return FoundPairs(
        pairs,
        ignored_files=ignored,
        unreadable_names=unreadable_names,
        images_prefix=prefix,
        masks_prefix=prefix,
        objects_listed=images.num_rows + ignored,
        image_and_mask_bytes=(pc.sum(images["size"]).as_py(), 0),
    )


def from_images_and_masks(source: Source, access: Access) -> FoundPairs:
    """List the prefixes and match masks to images by the rule of `inpaint_encode.settings.Source`.

    Raises:
        UsageError: a prefix cannot be read, two files have the same key, or there is no pair.
    """
    images_prefix = normalize_uri("--images", source.images)
    masks_prefix = normalize_uri("--masks", source.masks) if source.masks else images_prefix
    one_prefix = images_prefix == masks_prefix
    if one_prefix and not source.mask_pattern:
        raise UsageError(
            f"--images and --masks are both {source.images}; give each its own prefix, add --mask-pattern to find "
            "masks by their names, or leave out --masks if each image's alpha is its mask"
        )
    images, ignored, unreadable_names = _list_images("--images", images_prefix, access, nested=masks_prefix)
    masks, objects_listed = images, images.num_rows + ignored
    if not one_prefix:
        masks, others, more_names = _list_images("--masks", masks_prefix, access, nested=images_prefix)
        objects_listed += masks.num_rows + others
        ignored, unreadable_names = ignored + others, unreadable_names + more_names
    masks = _with_image_stems(masks, source.mask_pattern)
    if one_prefix:  # a file is a mask if its name makes it the mask of another file
        is_mask = pc.is_in(masks["image"], value_set=images["key"])
        images, masks = images.filter(pc.invert(is_mask)), masks.filter(is_mask)
    _check_keys("--images", images_prefix, images)
    _check_keys("--masks", masks_prefix, _filter(masks, pc.is_valid(masks["image"])))
    if masks["image"].equals(images["key"]):  # needs no hash table
        image_rows = pa.chunked_array([pa.array(np.arange(images.num_rows), pa.int32())])
    else:
        image_rows = pc.index_in(masks["image"], value_set=images["key"])
    if image_rows.null_count == len(image_rows):
        raise UsageError(_explain_no_pairs(source, images, masks))
    paired = np.zeros(images.num_rows, np.bool_)
    paired[image_rows.drop_null().to_numpy()] = True
    pairs, mask_bytes = _pair_table(images, masks, image_rows, source.mask_pattern)
    return FoundPairs(
        pairs,
        unpaired_images=_sorted_uris(images_prefix, images, pa.array(~paired)),
        unpaired_masks=_sorted_uris(masks_prefix, masks, pc.is_null(image_rows)),
        ignored_files=ignored,
        unreadable_names=unreadable_names,
        images_prefix=images_prefix,
        masks_prefix=masks_prefix,
        objects_listed=objects_listed,
        image_and_mask_bytes=(pc.sum(images["size"].filter(pa.array(paired))).as_py(), mask_bytes),
    )


def _list_images(option: str, prefix: str, access: Access, nested: str = "") -> tuple[pa.Table, int, tuple[str, ...]]:
    """List the files below ``prefix``, without those below the prefix ``nested``.

    Returns:
        The images in `_FILES`, the number of other files, and the names of files that no URI can have.

    Raises:
        UsageError: the prefix cannot be listed, or has no image.
    """
    skip = nested.removeprefix(f"{prefix}/") + "/" if nested.startswith(f"{prefix}/") else ""
    pages, table, ignored = [], _FILES.empty_table(), 0
    unreadable_names: list[str] = []
    for page in list_pages(option, prefix, access):
        paths = pa.array(page.paths, pa.string())
        parts = pc.extract_regex(paths, _STEM_AND_SUFFIX)
        is_image = pc.is_in(pc.utf8_lower(pc.struct_field(parts, "suffix")), pa.array(sorted(IMAGE_SUFFIXES)))
        wanted = pc.invert(pc.starts_with(paths, skip)) if skip else pc.true_unless_null(paths)
        columns = [
            pc.struct_field(parts, "key"),
            pc.struct_field(parts, "suffix"),
            pa.array(page.versions, pa.string()),
            pa.array(page.sizes, pa.int64()),
        ]
        pages.append(pa.RecordBatch.from_arrays(columns, schema=_FILES).filter(pc.and_(is_image, wanted)))
        ignored += (pc.sum(pc.and_not(wanted, is_image)).as_py() or 0) + len(page.unreadable)
        unreadable_names += page.unreadable
        if len(pages) == _MERGED_PAGES:
            table, pages = _append(table, pages), []
    table = _append(table, pages)
    if not table.num_rows:
        raise UsageError(
            f"{option} {prefix} contains no image files (other files: {ignored:,}); the name of an image file ends in "
            f"{', '.join(sorted(IMAGE_SUFFIXES))}"
        )
    return table, ignored, tuple(unreadable_names)


def _append(table: pa.Table, pages: list[pa.RecordBatch]) -> pa.Table:
    """Append the pages as one chunk. Small chunks in Arrow's default pool would need twice the memory."""
    merged = pa.Table.from_batches(pages, _FILES).combine_chunks(memory_pool=SYSTEM_POOL)
    return pa.concat_tables([table, merged])


def _with_image_stems(masks: pa.Table, pattern: str) -> pa.Table:
    """Add ``image``, the key of the mask's image, and ``mask_index`` if the pattern has ``{n}``.

    Without a pattern the image has the mask's key. ``image`` is null if the name does not match the pattern. A name
    matches in one way only, because `Source` requires a text between ``{stem}`` and ``{n}``.
    """
    if not pattern:
        return masks.append_column("image", masks["key"])
    name, _, suffix = pattern.rpartition(".")
    escaped = re.escape(name).replace(r"\{stem\}", "(?P<stem>[^/]+)").replace(r"\{n\}", "(?P<n>[0-9]{1,9})")
    parts = pc.extract_regex(masks["key"], f"^(?P<folder>(?:.*/)?){escaped}$")
    stems = pc.binary_join_element_wise(pc.struct_field(parts, "folder"), pc.struct_field(parts, "stem"), "")
    matches = pc.equal(pc.utf8_lower(masks["suffix"]), suffix.lower())
    masks = masks.append_column("image", pc.if_else(matches, stems, pa.scalar(None, pa.string())))
    if "{n}" not in pattern:
        return masks
    return masks.append_column("mask_index", pc.struct_field(parts, "n").cast(pa.int32()))


def _pair_table(images: pa.Table, masks: pa.Table, image_rows: pa.ChunkedArray, pattern: str) -> tuple[pa.Table, int]:
    """Return `FoundPairs.pairs` of the masks that have an image, and the total bytes of these masks."""
    masks, rows = _filter(masks, pc.is_valid(image_rows)), image_rows.drop_null().to_numpy()
    if len(rows) != images.num_rows or not np.array_equal(rows, np.arange(len(rows))):  # else save the copy
        images = images.take(rows)
    columns = {
        "key": masks["image"],
        "image_suffix": images["suffix"],
        "mask_suffix": masks["suffix"],
        "image_version": images["version"],
        "mask_version": masks["version"],
        "image_bytes": images["size"],
    }
    if "{n}" in pattern:
        columns |= {"key": masks["key"], "image": masks["image"], "mask_index": masks["mask_index"]}
    elif pattern:
        columns |= {"mask": masks["key"]}
    return pa.table(columns), pc.sum(masks["size"]).as_py() or 0


def _filter(table: pa.Table, wanted: pa.ChunkedArray) -> pa.Table:
    """Filter without a copy if all rows are wanted."""
    return table if pc.all(wanted).as_py() else table.filter(wanted)


def _sorted_uris(prefix: str, files: pa.Table, wanted: pa.Array | pa.ChunkedArray) -> pa.Array:
    some = files.select(["key", "suffix"]).filter(wanted)
    return join_uris(prefix, some["key"], some["suffix"]).combine_chunks().sort()


def _check_keys(option: str, prefix: str, files: pa.Table) -> None:
    advice = "a key is the path without the extension, so rename or move all files but one"
    check_unique_keys(f"{option} {prefix}", files, lambda some: join_uris(prefix, some["key"], some["suffix"]), advice)


def _explain_no_pairs(source: Source, images: pa.Table, masks: pa.Table) -> str:
    def example(files: pa.Table) -> str:
        return f", for example {files['key'][0]}.{files['suffix'][0]}" if files.num_rows else ""

    rule = "image and mask must have the same path below their prefixes, apart from the extension"
    if source.mask_pattern:
        name = source.mask_pattern.replace("{stem}", "a").replace("{n}", "0")
        rule = f"the mask of a.png must be named {name} and be in the same folder"
    return (
        f"no image has a mask; {rule} (images in {source.images}: {images.num_rows:,}{example(images)}; "
        f"masks in {source.masks or source.images}: {masks.num_rows:,}{example(masks)})"
    )
