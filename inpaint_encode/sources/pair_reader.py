"""Reads the images and masks of pairs by their URIs: an object, a part of an object, or a random mask."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from inpaint_encode.stores import storage
from inpaint_encode.stores.access import DEFAULT_ACCESS, Access
from inpaint_encode.stores.ranged_file import Changed

from .parquet import ParquetRowReader
from .part_uris import ParquetRow, TarMember, parse_part
from .random_masks import RANDOM_MASK_VERSION, RandomMask

__all__ = ["PairReader", "RandomMaskFile", "SourceFile", "store_of"]


class RandomMaskFile(NamedTuple):
    """A random mask that is not drawn yet, and its version; stands for the `storage.Blob` of a mask."""

    data: RandomMask
    version: str


SourceFile = storage.Blob | RandomMaskFile
"""An image or a mask before it is decoded: ``data`` and ``version``."""


class PairReader:
    """Reads the images and masks of one chunk or one sample. Threads may share it.

    Every method raises FileNotFoundError, PermissionError, `storage.Unavailable` or OSError if the store refuses the
    request or does not answer.
    """

    def __init__(self, access: Access = DEFAULT_ACCESS, max_bytes: int = sys.maxsize) -> None:
        self._access = access
        self.max_bytes = max_bytes
        self._parquet_rows = ParquetRowReader(access)

    def image(self, pair: Mapping[str, Any]) -> storage.Blob:
        """Read the image of a row of `schema.PAIRS`.

        Raises:
            Changed: the image is part of a file, and that file no longer has the pair's ``image_version``.
        """
        return self.read(pair["image_uri"], pair.get("image_version") or "")

    def mask(self, pair: Mapping[str, Any]) -> SourceFile:
        """Read the mask of a row of `schema.PAIRS`, or return the random mask; raises the errors of `image`."""
        if mask := RandomMask.from_uri(pair["mask_uri"], pair["key"]):
            return RandomMaskFile(mask, RANDOM_MASK_VERSION)
        return self.read(pair["mask_uri"], pair.get("mask_version") or "")

    def refetch(self, row: Mapping[str, Any]) -> tuple[storage.Blob, SourceFile] | None:
        """Read the image and the mask of a row of an output; None if one was deleted or has another version now.

        Args:
            row: ``key``, ``image_uri``, ``mask_uri``, ``image_version`` and ``mask_version``, as in the data files.
        """
        pair = {name: row[name] for name in ("key", "image_uri", "mask_uri")}
        try:
            image = self.image(pair)
            mask: SourceFile = image if pair["mask_uri"] == pair["image_uri"] else self.mask(pair)
        except FileNotFoundError:
            return None
        same = (image.version, mask.version) == (row["image_version"], row["mask_version"])
        return (image, mask) if same else None

    def read(self, uri: str, version: str = "") -> storage.Blob:
        """Read a whole object, or a part of the object that has this version.

        Raises:
            storage.TooLarge: it has more than ``max_bytes``. For a Parquet row this is known after its row group is
                read.
        """
        match part := parse_part(uri):
            case ParquetRow():
                blob = self._parquet_rows.read(part, version, self.max_bytes)
                storage.check_size(len(blob.data), self.max_bytes)
                return blob
            case TarMember():
                storage.check_size(part.size, self.max_bytes)
                return self._read_member(part, version, part.size)
        return storage.read(uri, self._access, self.max_bytes)

    def read_start(self, pair: Mapping[str, Any], length: int) -> bytes:
        """Read the first ``length`` bytes of the pair's image; of a Parquet row, read the whole image."""
        uri, version = pair["image_uri"], pair.get("image_version") or ""
        match part := parse_part(uri):
            case ParquetRow():
                return self._parquet_rows.read(part, version, self.max_bytes).data
            case TarMember():
                return self._read_member(part, version, min(length, part.size)).data
        return storage.read_range(uri, 0, length, self._access).data

    def probe(self, uri: str) -> None:
        """Request one byte of the object, or of the file that the URI names a part of. No cache is used."""
        part = parse_part(uri)
        storage.read_range(part.file if part else uri, 0, 1, self._access)

    def probe_listing(self, store: str) -> None:
        """Request the first page of a bucket's listing; raises the errors of `storage.list_objects`."""
        next(storage.list_objects(store, self._access), None)

    def _read_member(self, member: TarMember, version: str, length: int) -> storage.Blob:
        if not length:
            return storage.Blob(b"", version)
        blob = storage.read_range(member.file, member.offset, length, self._access)
        if version and version != blob.version:
            raise Changed(errno.ESTALE, "the tar has changed since it was planned")
        if len(blob.data) < length:
            raise FileNotFoundError(errno.ENOENT, "the tar ends before this member")
        return blob


def store_of(uri: str) -> str:
    """Return scheme and bucket, or scheme and host, of a URI; an empty string for a file on disk."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if separator and not uri.startswith("/") else ""
