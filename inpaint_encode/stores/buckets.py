"""Objects in buckets: s3:// and gs:// are read and listed by obstore, s3:// is written by s3fs.

obstore needs a tenth of s3fs's CPU time for a read or a listing. Its threads do not survive a fork: in a process that
was forked after obstore was used, such as torch's DataLoader workers, botocore reads s3:// instead.

To add a provider, write a module with ``connect`` as `gcs` has, and call it in `_connect`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Sequence
from itertools import compress
from typing import Any

import obstore
from obstore.exceptions import InvalidPathError

from . import gcs, s3
from .base import Access, Blob, Listed, Stat, check_size
from .clients import RangeNotSatisfiable, translate_errors

_PAGE_SIZE = 1_000
_GROUPS = 64
"""Largest number of groups of the up to 1,000 folders of a page."""
_PAGES_OF_GROUP = 8
"""Number of pages of a group of small folders, estimated. Each group needs two more requests."""
_OBJECTS_OF_FOLDER = 4
"""Smallest average number of objects of a folder: with fewer, finding the folders needs too many requests."""
_DIRECTORY_BUCKET = "--x-s3"
"""End of the names of S3's directory buckets. They list the objects of a folder in no order, and among others."""
_VALID_KEY = re.compile(r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+(?:/(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+)*")
"""Keys that obstore accepts: no segment is empty, ``.`` or ``..``, and there are no control characters."""

_obstore_process = 0
"""ID of the process that used obstore first; 0: none has."""


@translate_errors()
def read(uri: str, access: Access, max_bytes: int) -> Blob:
    """See `storage.read`."""
    client, bucket, key = _connect(uri, access)
    if client is None:
        answer = s3.request("get_object", access, Bucket=bucket, Key=key)
        check_size(answer["ContentLength"], max_bytes)
        return Blob(answer["Body"].read(), answer.get("ETag", ""))
    result = obstore.get(client, key)
    check_size(result.meta["size"], max_bytes)
    return Blob(bytes(result.bytes()), result.meta["e_tag"] or "")


def read_range(uri: str, start: int, length: int, access: Access) -> Blob:
    """See `storage.read_range`."""
    try:
        with translate_errors():
            client, bucket, key = _connect(uri, access)
            if client is None:
                wanted = f"bytes={start}-{start + length - 1}"
                answer = s3.request("get_object", access, Bucket=bucket, Key=key, Range=wanted)
                return Blob(answer["Body"].read(), answer.get("ETag", ""))
            result = obstore.get(client, key, options={"range": (start, start + length)})
            return Blob(bytes(result.bytes()), result.meta["e_tag"] or "")
    except RangeNotSatisfiable:
        return Blob(b"", "")


@translate_errors()
def stat(uri: str, access: Access) -> Stat:
    """See `storage.stat`."""
    client, bucket, key = _connect(uri, access)
    if client is None:
        answer = s3.request("head_object", access, Bucket=bucket, Key=key)
        return Stat(answer["ContentLength"], answer.get("ETag", ""))
    meta = obstore.head(client, key)
    return Stat(meta["size"], meta["e_tag"] or "")


def listing(prefix: str, access: Access) -> _Listing:
    """List one page after the other, or folders in parallel: see `_Listing`."""
    path = prefix.partition("://")[2].partition("/")[2]
    return _Listing(prefix, access, f"{path}/" if path else "", len(path) + 1 if path else 0)


def write(uri: str, data: bytes, expect: str | None) -> str:
    """See `storage.write`."""
    if not uri.startswith("s3://"):
        raise OSError(errno.ENOTSUP, "gs:// can only be read")
    return s3.write(uri, data, expect)


def delete(uri: str) -> None:
    """See `storage.delete`."""
    if not uri.startswith("s3://"):
        raise OSError(errno.ENOTSUP, "gs:// can only be read")
    s3.delete(uri)


class _Listing:
    """The objects in a folder and in all folders below it.

    After an error, the next call lists on after the last complete page. obstore returns a folder marker, the empty
    object ``folder/``, without its slash. A listing that starts after that name would repeat or skip objects, so a page
    ends with an object that is not empty. obstore's listing fails at a key that obstore does not accept; from there on
    botocore lists, and such keys are returned as unreadable.

    If the first page is full and most of its objects are in folders, the other pages come from LIST requests with a
    delimiter. They have the folder's own objects and the names of its folders, whose listings `split` returns. Small
    folders are listed together, see `_NeighborFolders`. A folder without folders is listed one page after the other.
    """

    _after: str | None = None
    """Key of the last object that was listed and is not empty."""

    def __init__(self, uri: str, access: Access, folder: str, cut: int, skipped: frozenset[str] = frozenset()) -> None:
        """Lists nothing yet.

        Args:
            uri: any URI in the bucket.
            access: how to read the store.
            folder: start of the keys, empty or with a slash at its end.
            cut: number of characters to remove from the keys.
            skipped: keys that were listed before.
        """
        self._uri, self._access, self._folder, self._cut, self._skipped = uri, access, folder, cut, skipped
        self._bucket = uri.partition("://")[2].partition("/")[0]
        self._stream: Any = None
        self._pending: list[Any] = []
        self._next = self._page_by_obstore
        self._folders: list[str] = []
        self._folders_per_page = 0
        self._token: str | None = None

    def next_page(self) -> Listed | None:
        """Return the next objects, or None at the end."""
        try:
            with translate_errors():
                client, _, _ = _connect(self._uri, self._access)
                if client is None and self._next == self._page_by_obstore:
                    self._next = self._page_by_botocore
                return self._next()
        except BaseException as error:
            self._stream, self._pending = None, []
            if isinstance(error.__cause__, InvalidPathError) and self._uri.startswith("s3://"):
                self._next = self._page_by_botocore
                return self.next_page()
            raise

    def split(self) -> Sequence[_Listing]:
        """Return the listings of the folders that the last page had."""
        folders, self._folders = self._folders, []
        size = max(1, len(folders) // _GROUPS, _PAGES_OF_GROUP * (self._folders_per_page - 1))
        groups = [folders[start : start + size] for start in range(0, len(folders), size)]
        return [_NeighborFolders(self, group) if group[1:] else self._part(group[0]) for group in groups]

    def _part(self, folder: str) -> _Listing:
        part = _Listing(self._uri, self._access, folder, self._cut, self._skipped)
        if not _VALID_KEY.fullmatch(folder.removesuffix("/")):
            part._next = part._page_by_botocore
        return part

    def _page_by_obstore(self) -> Listed | None:
        if self._stream is None:
            client, _, _ = _connect(self._uri, self._access)
            self._stream = obstore.list(client, self._folder or None, offset=self._after, chunk_size=_PAGE_SIZE)
        entries = self._pending
        for chunk in self._stream:
            entries = [*entries, *chunk]
            end = max((number for number, entry in enumerate(entries, 1) if entry["size"]), default=0)
            if end:
                is_first, self._after = self._after is None, entries[end - 1]["path"]
                self._pending, entries = entries[end:], entries[:end]
                page = self._listed([entry for entry in entries if self._is_wanted(entry["path"])])
                if is_first and len(chunk) == _PAGE_SIZE:
                    self._list_by_folders(entries)
                return page
        self._pending = []
        return self._listed([entry for entry in entries if self._is_wanted(entry["path"])]) if entries else None

    def _list_by_folders(self, entries: list[Any]) -> None:
        """Continue with `_page_of_folder` if most objects of the first page are in folders with several objects."""
        ends = [(entry["path"], entry["path"].find("/", len(self._folder))) for entry in entries]
        folders = [path[:end] for path, end in ends if end > 0]
        self._folders_per_page = len(set(folders))
        is_general_purpose = self._uri.startswith("s3://") and not self._bucket.endswith(_DIRECTORY_BUCKET)
        is_deep = 2 * len(folders) > len(entries) and len(folders) >= _OBJECTS_OF_FOLDER * self._folders_per_page
        if is_general_purpose and is_deep:
            self._skipped |= {path for path, _ in ends}
            self._stream, self._pending = None, []
            self._next = self._page_of_folder

    def _is_wanted(self, key: str) -> bool:
        """Whether to list an object. It is called once for each object of a page, in order."""
        return key.startswith(self._folder) and key not in self._skipped  # obstore returns the folder's own marker

    def _page_of_folder(self) -> Listed | None:
        """Return a page of the objects that are in the folder itself; add its folders to those of `split`."""
        if self._token == "":
            return None
        wanted = {"Bucket": self._bucket, "Prefix": self._folder, "Delimiter": "/", "MaxKeys": _PAGE_SIZE}
        wanted |= {"ContinuationToken": self._token} if self._token else {}
        answer = s3.request("list_objects_v2", self._access, **wanted)
        self._folders += [entry["Prefix"] for entry in answer.get("CommonPrefixes", [])]
        self._token = answer["NextContinuationToken"] if answer.get("IsTruncated") else ""
        return self._listed_by_botocore(answer.get("Contents", []))

    def _page_by_botocore(self) -> Listed | None:
        wanted = {"Bucket": self._bucket, "Prefix": self._folder, "MaxKeys": _PAGE_SIZE}
        wanted |= {"StartAfter": self._after} if self._after else {}
        objects = s3.request("list_objects_v2", self._access, **wanted).get("Contents", [])
        if not objects:
            return None
        self._after = objects[-1]["Key"]
        return self._listed_by_botocore(objects)

    def _listed_by_botocore(self, objects: list[Any]) -> Listed:
        entries = [
            {"path": entry["Key"].removesuffix("/"), "size": entry["Size"], "e_tag": entry.get("ETag")}
            for entry in objects
            if self._is_wanted(entry["Key"].removesuffix("/"))
        ]
        names = [entry["path"][self._cut :] for entry in entries]
        valid = [bool(_VALID_KEY.fullmatch(name)) for name in names]
        unreadable = [ascii(name) for name, ok in zip(names, valid, strict=True) if not ok and name]
        return self._listed(list(compress(entries, valid)))._replace(unreadable=tuple(unreadable))

    def _listed(self, entries: list[Any]) -> Listed:
        return Listed(
            paths=[entry["path"][self._cut :] for entry in entries],
            sizes=[entry["size"] for entry in entries],
            versions=[entry["e_tag"] or "" for entry in entries],
        )


class _NeighborFolders(_Listing):
    """The objects in several folders of one folder: the first is listed, and then what follows it.

    The listing ends at the first object of another folder. No order of keys is assumed, because not all servers sort
    them alike: folders that were not found until then are listed one by one.
    """

    def __init__(self, parent: _Listing, folders: list[str]) -> None:
        super().__init__(parent._uri, parent._access, parent._folder, parent._cut, parent._skipped)
        self._first = folders[0]
        self._listing_of_first: _Listing | None = parent._part(self._first)
        self._missing = dict.fromkeys(folders[1:])
        self._members = frozenset(self._missing)
        self._is_complete = False

    def next_page(self) -> Listed | None:
        """Return the next objects, or None at the end."""
        if first := self._listing_of_first:
            if page := first.next_page():
                return page
            self._listing_of_first, self._after = None, first._after
            self._is_complete = self._after is None or first._token is not None  # nothing to start after
            if first._next == first._page_by_botocore:  # obstore may not accept the key
                self._next = self._page_by_botocore
        page = None if self._is_complete else super().next_page()
        self._is_complete = self._is_complete or page is None
        return page

    def split(self) -> Sequence[_Listing]:
        """Return the listings of folders that were not found."""
        if first := self._listing_of_first:
            return first.split()
        missing = list(self._missing) if self._is_complete else []
        self._missing = {} if self._is_complete else self._missing
        return [self._part(folder) for folder in missing]

    def _is_wanted(self, key: str) -> bool:
        if self._is_complete:
            return False
        end = key.find("/", len(self._folder)) + 1
        if key[:end] in self._members:
            self._missing.pop(key[:end], None)
            return super()._is_wanted(key)
        self._is_complete = end > 0 and key[:end] != self._first
        return False


def _connect(uri: str, access: Access) -> tuple[Any, str, str]:
    """Return obstore's client, the bucket and the key. The client is None in a forked process, where botocore reads.

    Raises:
        ValueError: the process was forked from one that had used obstore, and the bucket is not on S3.
    """
    global _obstore_process
    bucket, _, key = uri.partition("://")[2].partition("/")
    if _obstore_process not in (0, os.getpid()):
        if not uri.startswith("s3://"):
            raise ValueError(f"{uri} cannot be read in a forked process; start the process with spawn or forkserver")
        return None, bucket, key
    _obstore_process = os.getpid()
    return (gcs.connect if uri.startswith("gs://") else s3.connect)(bucket, access), bucket, key
