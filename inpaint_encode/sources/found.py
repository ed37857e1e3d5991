"""What a source holds: its pairs in a table that is small for each of them, and what is no pair."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import features

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import EXTRA_COLUMNS
from inpaint_encode.settings import SourceAccess
from inpaint_encode.stores import storage

__all__ = ["IMAGE_SUFFIXES", "FoundPairs", "listed_pages", "normalised", "uris"]

_AVIF = {"avif"} if features.check("avif") else set()

IMAGE_SUFFIXES = frozenset({"jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", *_AVIF})
"""File name suffixes, in lower case, that make an object an image or a mask; all others are ignored. avif is one of
them where Pillow can decode it."""


class FoundPairs(NamedTuple):
    """The pairs of a source, and the files besides them."""

    pairs: pa.Table
    """``key, image_version, mask_version, image_bytes``; keys are unique. Where the files are:

    * of prefixes ``image_suffix, mask_suffix``, a hundred bytes a pair: URIs are made of the keys where they are
      needed, by `with_uris`. A file whose path without the suffix is not the key has that path in ``image`` or
      ``mask``;
    * of a manifest or of tars ``image_uri, mask_uri``, and its other columns in the struct `schema.EXTRA_COLUMNS`. Where the
      files are only named, versions are empty and ``image_bytes`` 0, since nothing was listed. Images are in the order
      in which they are first named, each with all its masks.

    A mask that is drawn has a ``mask_uri`` in any case.

    ``mask_index`` is there where an image may have several masks."""
    unpaired_images: pa.Array
    """Their URIs."""
    unpaired_masks: pa.Array
    ignored_files: int
    """Objects without an image's suffix."""
    unreadable: tuple[str, ...] = ()
    """Names, escaped, of files among the ignored that no URI can spell."""
    images_prefix: str = ""
    masks_prefix: str = ""
    listed: int = 0
    """Objects that were listed."""
    row_groups: int = 0
    """Of the Parquet files that hold the images."""
    bytes_listed: tuple[int, int] | None = None
    """Of the images that have a mask, each once, and of their masks; None where nothing was listed."""

    @property
    def extra_columns(self) -> list[pa.Field]:
        """The fields of the manifest's own columns."""
        at = self.pairs.schema.get_field_index(EXTRA_COLUMNS)
        return [] if at < 0 else list(self.pairs.schema.field(at).type)

    def without_pairs(self) -> FoundPairs:
        """The rest, once the pairs are planned: they need not lie in memory while the job runs."""
        return self._replace(pairs=self.pairs.schema.empty_table())

    def with_uris(self, pairs: pa.Table) -> pa.Table:
        """Add ``image_uri``, ``mask_uri`` and ``mask_index`` to some of the pairs, as far as they lack them."""
        for side, prefix in (("image", self.images_prefix), ("mask", self.masks_prefix)):
            if f"{side}_uri" not in pairs.column_names:
                stems = pairs[side if side in pairs.column_names else "key"]
                pairs = pairs.append_column(f"{side}_uri", uris(prefix, stems, pairs[f"{side}_suffix"]))
        if "mask_index" not in pairs.column_names:
            pairs = pairs.append_column("mask_index", pa.repeat(pa.scalar(0, pa.int32()), pairs.num_rows))
        return pairs


def uris(prefix: str, stems: pa.ChunkedArray, suffixes: pa.ChunkedArray) -> pa.ChunkedArray:
    """``prefix/stem.suffix`` of each."""
    paths = pc.binary_join_element_wise(stems, suffixes, ".")
    return pc.binary_join_element_wise(pa.scalar(prefix), paths, "/")


def normalised(option: str, uri: str) -> str:
    """`storage.normalise` of what an option was given, its refusal in the words of the command line."""
    try:
        return storage.normalise(uri, storage.READABLE)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def listed_pages(
    option: str, prefix: str, access: SourceAccess, advice: str = "check the spelling"
) -> Iterator[storage.Listed]:
    """`storage.list_objects`, in the words of the command line.

    Raises:
        UsageError: the prefix cannot be listed, or nothing is there.
    """
    if prefix.startswith("http"):
        raise UsageError(f"{option} {prefix}: such a server lists nothing; name its files in a list for --pairs")
    empty = True
    try:
        for page in storage.list_objects(prefix, access):
            empty = empty and not page.paths and not page.unreadable
            yield page
    except OSError as error:
        raise UsageError(
            f"{option} {prefix} cannot be listed: {error.strerror or error}; check the prefix and the credentials, by "
            f"`inpaint-encode doctor {prefix}`"
        ) from error
    if empty:
        raise UsageError(f"{option} {prefix}: {_why_nothing(prefix)}; {advice}")


def _why_nothing(prefix: str) -> str:
    if "://" in prefix:
        return "the bucket is there, and nothing in it whose name begins so"
    if Path(prefix).is_dir():
        return "the folder is empty"
    return "this is a file, not a folder" if Path(prefix).exists() else "there is no such folder"
