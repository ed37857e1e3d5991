"""Reads the images and masks of pairs by their URIs: an object, a part of an object, or a random mask."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, overload

from inpaint_encode.stores import storage
from inpaint_encode.stores.base import DEFAULT_ACCESS, Access
from inpaint_encode.stores.ranged_file import Changed

from .parquet import ParquetRowReader
from .part_uris import ParquetRow, TarMember, parse_part
from .random_masks import RANDOM_MASK, RANDOM_MASK_VERSION, RandomMask


class RandomMaskFile(NamedTuple):
    """A random mask that is not drawn yet, and its version; stands for the `storage.Blob` of a mask."""

    data: RandomMask
    version: str


SourceFile = storage.Blob | RandomMaskFile
"""An image or a mask before it is decoded: ``data`` and ``version``."""


@dataclass
class PairReader:
    """Reads the images and masks of one chunk or one sample. Threads may share it.

    Every method raises FileNotFoundError, PermissionError, `storage.Unavailable` or OSError if the store refuses the
    request or does not answer.
    """

    access: Access = DEFAULT_ACCESS
    max_bytes: int = sys.maxsize
    """Limit for the size of an image or a mask."""
    signed: Mapping[str, str] = field(default_factory=dict)
    """Signed URLs by the URLs that are planned, see `inpaint_encode.sources.signatures`."""
    _parquet_rows: ParquetRowReader = field(default_factory=ParquetRowReader)

    @overload
    def read(self, uri: str, version: str = ...) -> storage.Blob: ...

    @overload
    def read(self, uri: str, version: str = ..., *, key: str) -> SourceFile: ...

    def read(self, uri: str, version: str = "", *, key: str | None = None) -> SourceFile:
        """Read an image or a mask; a random mask is returned without being drawn.

        Args:
            uri: an object, a part of an object, or a random mask.
            version: expected version of the object that ``uri`` names a part of; empty: any.
            key: of the pair, if ``uri`` may be a random mask.

        Raises:
            Changed: ``uri`` names a part of an object, and the object has another version.
            storage.TooLarge: it has more than ``max_bytes``. For a Parquet row this is known after its row group is
                read.
        """
        if key is not None and uri.startswith(RANDOM_MASK):
            return RandomMaskFile(RandomMask.from_uri(uri, key), RANDOM_MASK_VERSION)
        match part := parse_part(uri):
            case ParquetRow():
                blob = self._parquet_rows.read(part, version, self.access, self.max_bytes)
                storage.check_size(len(blob.data), self.max_bytes)
                return blob
            case TarMember():
                storage.check_size(part.size, self.max_bytes)
                return self._read_member(part, version, part.size)
        try:
            return storage.read(self.signed.get(uri, uri), self.access, self.max_bytes)
        except PermissionError as error:
            if not self.signed or not uri.startswith(("http://", "https://")):
                raise
            reason = "its signature may have expired" if uri in self.signed else "the list has no signed URL for it now"
            advice = "sign the URLs of the list again, and run with --retry-rejected"
            raise PermissionError(error.errno, f"{error.strerror}; {reason}; {advice}") from error

    def refetch(self, row: Mapping[str, Any]) -> tuple[storage.Blob, SourceFile] | None:
        """Read the image and the mask of a row of an output; None if one was deleted or has another version now.

        Args:
            row: ``key``, ``image_uri``, ``mask_uri``, ``image_version`` and ``mask_version``, as in the data files.
        """
        try:
            image = self.read(row["image_uri"])
            own_mask = row["mask_uri"] == row["image_uri"]
            mask: SourceFile = image if own_mask else self.read(row["mask_uri"], key=row["key"])
        except FileNotFoundError:
            return None
        same = (image.version, mask.version) == (row["image_version"], row["mask_version"])
        return (image, mask) if same else None

    def read_start(self, pair: Mapping[str, Any], length: int) -> bytes:
        """Read the first ``length`` bytes of the pair's image; of a Parquet row, read the whole image."""
        uri, version = pair["image_uri"], pair.get("image_version") or ""
        match part := parse_part(uri):
            case ParquetRow():
                return self._parquet_rows.read(part, version, self.access, self.max_bytes).data
            case TarMember():
                return self._read_member(part, version, min(length, part.size)).data
        return storage.read_range(self.signed.get(uri, uri), 0, length, self.access).data

    def probe(self, uri: str) -> None:
        """Request one byte of the object, or of the file that the URI names a part of. No cache is used."""
        part = parse_part(uri)
        storage.read_range(part.file if part else self.signed.get(uri, uri), 0, 1, self.access)

    def probe_listing(self, store: str) -> None:
        """Request the first page of a bucket's listing; raises the errors of `storage.list_objects`."""
        next(storage.list_objects(store, self.access), None)

    def _read_member(self, member: TarMember, version: str, length: int) -> storage.Blob:
        if not length:
            return storage.Blob(b"", version)
        blob = storage.read_range(member.file, member.offset, length, self.access)
        if version and version != blob.version:
            raise Changed(errno.ESTALE, "the tar has changed since it was planned")
        if len(blob.data) < length:
            raise FileNotFoundError(errno.ENOENT, "the tar ends before this member")
        return blob


def store_of(uri: str) -> str:
    """Return scheme and bucket, or scheme and host, of a URI; an empty string for a file on disk."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if separator and not uri.startswith("/") else ""
