"""What the URIs of a pair stand for: an object, a part of one, or a mask that is drawn."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from inpaint_encode.sources.random_mask import DRAWING_VERSION, Drawing
from inpaint_encode.stores import storage
from inpaint_encode.stores.access import Access
from inpaint_encode.stores.ranged_file import Changed

from . import locators
from .parquet import RowGroups

__all__ = ["Content", "Drawn", "PairReader", "store_of"]


class Drawn(NamedTuple):
    """In the place of a mask's `storage.Blob`."""

    data: Drawing
    version: str


Content = storage.Blob | Drawn
"""An image or a mask before it is decoded, and the version it is of."""


class PairReader:
    """Reads images and masks for one chunk, or one sample; threads may share it.

    Every method raises FileNotFoundError, PermissionError, `storage.Unavailable` and OSError by what the store said.
    """

    def __init__(self, access: Access = storage.DEFAULT_ACCESS, max_bytes: int = sys.maxsize) -> None:
        self._access = access
        self.max_bytes = max_bytes
        self._row_groups = RowGroups(access)

    def image(self, pair: Mapping[str, Any]) -> storage.Blob:
        """Read the image of a row of `schema.PAIRS`.

        Raises:
            Changed: it is a part of an object that has another version than ``image_version``, if the pair has one.
        """
        return self.read(pair["image_uri"], pair.get("image_version") or "")

    def mask(self, pair: Mapping[str, Any]) -> Content:
        """Read the mask of a row of `schema.PAIRS`, or say how it is drawn; raises what `image` does."""
        if drawn := locators.DRAWN_URI.match(pair["mask_uri"]):
            drawing = Drawing(drawn["style"], int(drawn["seed"]), pair["key"], int(drawn["index"]))
            return Drawn(drawing, DRAWING_VERSION)
        return self.read(pair["mask_uri"], pair.get("mask_version") or "")

    def read(self, uri: str, version: str = "") -> storage.Blob:
        """Read what ``uri`` names: a whole object, or a part of the object that has this version.

        Raises:
            storage.TooLarge: it has more than ``max_bytes``; of a row that is known only when its row group is read.
        """
        part = locators.parsed(uri)
        if isinstance(part, locators.Row):
            blob = self._row_groups.read(part, version, self.max_bytes)
            storage.check_size(len(blob.data), self.max_bytes)
            return blob
        if isinstance(part, locators.Member):
            storage.check_size(part.size, self.max_bytes)
            return self._member(part, version, part.size)
        return storage.read(uri, self._access, self.max_bytes)

    def probe(self, uri: str) -> None:
        """Ask the store for a byte of the object that ``uri`` names, or names a part of, whatever is kept of it."""
        part = locators.parsed(uri)
        storage.read_range(part.file if part else uri, 0, 1, self._access)

    def probe_listing(self, store: str) -> None:
        """Ask for a page of all that a bucket holds; raises what `storage.list_objects` does."""
        next(storage.list_objects(store, self._access), None)

    def start(self, pair: Mapping[str, Any], length: int) -> bytes:
        """Read the first ``length`` bytes of the pair's image, or all where no less can be had."""
        uri, version = pair["image_uri"], pair.get("image_version") or ""
        part = locators.parsed(uri)
        if isinstance(part, locators.Row):
            return self._row_groups.read(part, version, self.max_bytes).data
        if isinstance(part, locators.Member):
            return self._member(part, version, min(length, part.size)).data
        return storage.read_range(uri, 0, length, self._access).data

    def _member(self, member: locators.Member, version: str, length: int) -> storage.Blob:
        if not length:
            return storage.Blob(b"", version)
        blob = storage.read_range(member.file, member.offset, length, self._access)
        if version and version != blob.version:
            raise Changed(errno.ESTALE, "the tar has changed since it was planned")
        if len(blob.data) < length:
            raise FileNotFoundError(errno.ENOENT, "the tar ends before this member")
        return blob


def store_of(uri: str) -> str:
    """Return the bucket or the host that holds what ``uri`` names, with its scheme; empty of a disk's files."""
    scheme, separator, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}" if separator and not uri.startswith("/") else ""
