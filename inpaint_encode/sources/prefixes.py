"""Pairs by file name: images and masks below one or two prefixes, matched by path or by ``--mask-pattern``.

Images without mask files are pairs if their masks are random or are their own alpha.

Listings may be larger than the memory. Names do not sort like the keys of their images (``a-1.jpg``, ``a.jpg``,
``a/x.jpg``, ``a_mask1.png``), so files are joined by hash: an image and all its masks are in one bucket of
`HashBuckets`.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import SOURCE_PAIRS
from inpaint_encode.settings import Source
from inpaint_encode.stores.base import Access

from .hash_buckets import HashBuckets, Layout
from .image_files import FILES, NAMES, RepeatedKeys, add_examples, list_image_files, paths_of, uris_of
from .pairs import BATCH_PAIRS, LeftOut, PairBatch, PairSource, Slice, list_pages, normalize_uri
from .random_masks import with_random_masks

_IMAGE_FILES = Layout(FILES, ("key",))


def open_prefixes(source: Source, access: Access) -> PairSource:
    """Return the source of ``--images`` and ``--masks``. Of each prefix, the first page is listed.

    Raises:
        UsageError: a URI is not valid, the options name no masks, or a prefix is empty or cannot be listed.
    """
    images = normalize_uri("--images", source.images)
    if source.random_masks or source.is_own_mask:
        next(list_pages("--images", images, access), None)
        return _Images(source, access, images)
    masks = normalize_uri("--masks", source.masks) if source.masks else images
    if images == masks and not source.mask_pattern:
        raise UsageError(
            f"--images and --masks are both {source.images}; give each its own prefix, add --mask-pattern to find "
            "masks by their names, or leave out --masks if each image's alpha is its mask"
        )
    for option, prefix in {"--images": images, "--masks": masks}.items():
        next(list_pages(option, prefix, access), None)
    return _ImagesAndMasks(source, access, images, masks)


class _Prefixes(PairSource):
    """Lists its prefixes into `HashBuckets` and yields the pairs of one bucket after the other.

    In memory there is one bucket, and all pairs are sorted by image, mask index and key. On disk the pairs of a bucket
    are, and the order of the buckets never changes.
    """

    def __init__(self, source: Source, access: Access, images_prefix: str, masks_prefix: str) -> None:
        super().__init__()
        self._source, self._access = source, access
        self._images_prefix, self._masks_prefix = images_prefix, masks_prefix
        self.extra_columns: list[pa.Field] = []
        self._reset()

    def _reset(self) -> None:
        self.left_out = LeftOut()
        self.objects_listed = 0
        self._image_files = self._image_bytes = self._mask_bytes = 0
        self.image_and_mask_bytes = None

    def batches(self, known: Mapping[str, Slice]) -> Generator[PairBatch, None, None]:
        """See `PairSource.batches`. A listing has no lines to skip: all pairs are yielded, whatever is ``known``.

        Raises:
            UsageError: a prefix cannot be read, two files have the same key, or there is no pair. No pair has been
                yielded.
        """
        self._reset()
        with HashBuckets(self._layouts()) as rows:
            self._list_all(rows)
            self._check(rows)
            batch_rows = max(1, BATCH_PAIRS // max(1, self._source.random_masks))
            for bucket in rows.numbers:
                pairs = self._pairs(rows, bucket)
                for start in range(0, pairs.num_rows, batch_rows):
                    yield PairBatch(self._as_source_pairs(pairs.slice(start, batch_rows)))
        self.image_and_mask_bytes = (self._image_bytes, self._mask_bytes)

    @abstractmethod
    def _layouts(self) -> dict[str, Layout]:
        """Return the tables that the listings fill."""

    @abstractmethod
    def _list_all(self, rows: HashBuckets) -> None:
        """List the prefixes; raise UsageError if one has no image file."""

    @abstractmethod
    def _check(self, rows: HashBuckets) -> None:
        """Read the names in all buckets; raise UsageError if two files have the same key, or if there is no pair."""

    @abstractmethod
    def _pairs(self, rows: HashBuckets, bucket: int) -> pa.Table:
        """Return the pairs of a bucket, sorted, and count what belongs to no pair."""

    @abstractmethod
    def _as_source_pairs(self, pairs: pa.Table) -> pa.Table:
        """Return some rows of `_pairs` in `SOURCE_PAIRS`."""

    def _list(self, option: str, prefix: str, nested: str = "") -> Iterator[pa.RecordBatch]:
        """Yield and count what `list_image_files` yields."""
        for files in list_image_files(option, prefix, self._access, self.left_out, nested):
            self._image_files += files.num_rows
            self.objects_listed = self._image_files + self.left_out.ignored_files
            yield files


class _Images(_Prefixes):
    """Images without mask files: each is a pair with itself, or with each of its ``--random-masks``."""

    def __init__(self, source: Source, access: Access, prefix: str) -> None:
        super().__init__(source, access, prefix, prefix)

    def _layouts(self) -> dict[str, Layout]:
        return {"images": _IMAGE_FILES}

    def _list_all(self, rows: HashBuckets) -> None:
        for files in self._list("--images", self._images_prefix):
            rows.add("images", files)

    def _check(self, rows: HashBuckets) -> None:
        repeated = RepeatedKeys(f"--images {self._images_prefix}", self._images_prefix)
        for bucket in rows.numbers:
            repeated.add(rows.read("images", bucket, NAMES))
        repeated.check()

    def _pairs(self, rows: HashBuckets, bucket: int) -> pa.Table:
        images = _sorted(rows.read("images", bucket), "key")
        self._image_bytes += _sum(images["size"])
        return images

    def _as_source_pairs(self, pairs: pa.Table) -> pa.Table:
        uris = uris_of(self._images_prefix, pairs["key"], pairs["suffix"])
        columns = {
            "key": pairs["key"],
            "image_uri": uris,
            "image_version": pairs["version"],
            "image_bytes": pairs["size"],
        }
        if self._source.random_masks:
            return _with_line(with_random_masks(pa.table(columns), self._source))
        return _with_line(pa.table(columns | {"mask_uri": uris, "mask_version": pairs["version"]}))


class _ImagesAndMasks(_Prefixes):
    """Images and masks, matched by the rule of `inpaint_encode.settings.Source`.

    If they share a prefix, a file is a mask if its name makes it the mask of another file. The table ``images`` then
    has all files, and ``masks`` those whose names match the pattern. `_find_masks` writes the names of the masks into
    the buckets of their own keys, so that the images of a bucket are its other files.
    """

    @property
    def _share_prefix(self) -> bool:
        return self._images_prefix == self._masks_prefix

    def _layouts(self) -> dict[str, Layout]:
        masks = _IMAGE_FILES
        if pattern := self._source.mask_pattern:
            schema = FILES.append(pa.field("image", pa.string()))
            schema = schema.append(pa.field("mask_index", pa.int32())) if "{n}" in pattern else schema
            masks = Layout(schema, ("image", "key"))
        names = Layout(pa.schema([FILES.field(name) for name in NAMES]), ("key",))
        return {"images": _IMAGE_FILES, "masks": masks, "names_of_masks": names}

    def _list_all(self, rows: HashBuckets) -> None:
        pattern = self._source.mask_pattern
        for files in self._list("--images", self._images_prefix, nested=self._masks_prefix):
            rows.add("images", files)
            if self._share_prefix:
                is_named_as_mask = pc.match_substring_regex(files["key"], _pattern_regex(pattern))
                masks = _with_image(files.filter(is_named_as_mask), pattern)
                rows.add("masks", masks.filter(pc.is_valid(masks["image"])))
        if self._share_prefix:
            self._find_masks(rows)
            return
        for files in self._list("--masks", self._masks_prefix, nested=self._images_prefix):
            rows.add("masks", _with_image(files, pattern) if pattern else files)

    def _find_masks(self, rows: HashBuckets) -> None:
        for bucket in rows.numbers:
            keys = rows.read("images", bucket, ("key",))["key"]
            masks = rows.read("masks", bucket, (*NAMES, "image"))
            for batch in masks.filter(pc.is_in(masks["image"], value_set=keys)).select(NAMES).to_batches():
                rows.add("names_of_masks", batch)

    def _join(self, rows: HashBuckets, bucket: int, *, names_only: bool = False) -> _Joined:
        """Join the images and the masks of a bucket.

        Args:
            rows: what was listed.
            bucket: number of the bucket.
            names_only: read only the columns of `NAMES` and ``image``.
        """
        stems = ("image",) if self._source.mask_pattern else ()
        images = rows.read("images", bucket, NAMES if names_only else ())
        masks = rows.read("masks", bucket, (*NAMES, *stems) if names_only else ())
        if self._share_prefix:
            masks = masks.filter(pc.is_in(masks["image"], value_set=images["key"]))
            names = paths_of(rows.read("names_of_masks", bucket))
            images = images.filter(pc.invert(pc.is_in(paths_of(images), value_set=names)))
        elif not stems:
            masks = masks.append_column("image", masks["key"])
        return _Joined(images, masks, pc.index_in(masks["image"], value_set=images["key"]))

    def _check(self, rows: HashBuckets) -> None:
        repeated_images = RepeatedKeys(f"--images {self._images_prefix}", self._images_prefix)
        repeated_masks = RepeatedKeys(f"--masks {self._masks_prefix}", self._masks_prefix)
        has_pairs = False
        for bucket in rows.numbers:
            images, masks, image_rows = self._join(rows, bucket, names_only=True)
            repeated_images.add(images)
            repeated_masks.add(masks.filter(pc.is_valid(masks["image"])))
            has_pairs = has_pairs or image_rows.null_count < len(image_rows)
        repeated_images.check()
        repeated_masks.check()
        if not has_pairs:
            raise UsageError(self._explain_no_pairs(rows))

    def _pairs(self, rows: HashBuckets, bucket: int) -> pa.Table:
        images, masks, image_rows = self._join(rows, bucket)
        paired = np.zeros(images.num_rows, np.bool_)
        paired[image_rows.drop_null().to_numpy()] = True
        self._count(images, masks, pa.array(paired), pc.is_valid(image_rows))
        masks = masks.append_column("image_row", image_rows).filter(pc.is_valid(image_rows))
        masks = _sorted(masks, *(name for name in ("image", "mask_index", "key") if name in masks.column_names))
        images = images.take(masks["image_row"])
        pairs = masks.rename_columns({name: f"mask_{name}" for name in ("suffix", "version")})
        pairs = pairs.append_column("image_suffix", images["suffix"])
        pairs = pairs.append_column("image_version", images["version"])
        return pairs.append_column("image_bytes", images["size"])

    def _count(self, images: pa.Table, masks: pa.Table, has_mask: pa.Array, has_image: pa.ChunkedArray) -> None:
        left_out = self.left_out
        left_out.unpaired_images += images.num_rows - _sum(has_mask)
        left_out.unpaired_masks += masks.num_rows - _sum(has_image)
        add_examples(left_out.unpaired_image_uris, self._images_prefix, images.filter(pc.invert(has_mask)))
        add_examples(left_out.unpaired_mask_uris, self._masks_prefix, masks.filter(pc.invert(has_image)))
        self._image_bytes += _sum(images["size"].filter(has_mask))
        self._mask_bytes += _sum(masks["size"].filter(has_image))

    def _as_source_pairs(self, pairs: pa.Table) -> pa.Table:
        columns = {
            "key": pairs["key" if "mask_index" in pairs.column_names else "image"],
            "image_uri": uris_of(self._images_prefix, pairs["image"], pairs["image_suffix"]),
            "mask_uri": uris_of(self._masks_prefix, pairs["key"], pairs["mask_suffix"]),
        }
        same = ("mask_index", "image_version", "mask_version", "image_bytes")
        return _with_line(pa.table(columns | {name: pairs[name] for name in same if name in pairs.column_names}))

    def _explain_no_pairs(self, rows: HashBuckets) -> str:
        source = self._source
        counts, examples = [0, 0], ["", ""]
        for bucket in rows.numbers:
            for side, files in enumerate(self._join(rows, bucket, names_only=True)[:2]):
                counts[side] += files.num_rows
                first = pc.min(paths_of(files)).as_py()
                examples[side] = min(filter(None, (examples[side], first)), default="")
        images, masks = (
            f"{count:,}, for example {example}" if example else f"{count:,}"
            for count, example in zip(counts, examples, strict=True)
        )
        rule = "image and mask must have the same path below their prefixes, apart from the extension"
        if source.mask_pattern:
            name = source.mask_pattern.replace("{stem}", "a").replace("{n}", "0")
            rule = f"the mask of a.png must be named {name} and be in the same folder"
        return (
            f"no image has a mask; {rule} (images in {source.images}: {images}; "
            f"masks in {source.masks or source.images}: {masks})"
        )


class _Joined(NamedTuple):
    images: pa.Table
    masks: pa.Table
    """With the column ``image``, the key of the mask's image; null if the name does not match the pattern."""
    image_rows: pa.ChunkedArray
    """Each mask's row in ``images``; null if it has no image."""


def _with_image(masks: pa.RecordBatch, pattern: str) -> pa.RecordBatch:
    """Add ``image``, the key of the mask's image, and ``mask_index`` if the pattern has ``{n}``.

    ``image`` is null if the name does not match the pattern. A name matches in one way only, because `Source` requires
    a text between ``{stem}`` and ``{n}``.
    """
    suffix = pattern.rpartition(".")[2]
    parts = pc.extract_regex(masks["key"], _pattern_regex(pattern))
    stems = pc.binary_join_element_wise(pc.struct_field(parts, "folder"), pc.struct_field(parts, "stem"), "")
    matches = pc.equal(pc.utf8_lower(masks["suffix"]), suffix.lower())
    masks = masks.append_column("image", pc.if_else(matches, stems, pa.scalar(None, pa.string())))
    if "{n}" not in pattern:
        return masks
    return masks.append_column("mask_index", pc.struct_field(parts, "n").cast(pa.int32()))


def _pattern_regex(pattern: str) -> str:
    """Return the regular expression of the keys of masks, with the groups ``folder``, ``stem`` and ``n``."""
    escaped = re.escape(pattern.rpartition(".")[0])
    escaped = escaped.replace(r"\{stem\}", "(?P<stem>[^/]+)").replace(r"\{n\}", "(?P<n>[0-9]{1,9})")
    return f"^(?P<folder>(?:.*/)?){escaped}$"


def _with_line(pairs: pa.Table) -> pa.Table:
    """Return pairs in `SOURCE_PAIRS`: their line is 0, and so is their ``mask_index`` if they have none."""
    zeros = pa.repeat(pa.scalar(0, pa.int32()), pairs.num_rows)
    for name in ("mask_index", "line"):
        if name not in pairs.column_names:
            pairs = pairs.append_column(name, zeros)
    return pairs.select(SOURCE_PAIRS.names).cast(SOURCE_PAIRS)


def _sorted(table: pa.Table, *names: str) -> pa.Table:
    return table.take(pc.sort_indices(table.select(names), [(name, "ascending") for name in names]))


def _sum(numbers: pa.Array | pa.ChunkedArray) -> int:
    total: int = pc.sum(numbers).as_py() or 0
    return total
