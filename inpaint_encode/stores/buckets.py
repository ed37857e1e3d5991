"""Objects in buckets: s3:// and gs:// are read and listed by obstore, s3:// is written by s3fs.

obstore needs a tenth of s3fs's CPU time for a read or a listing. Its threads do not survive a fork: in a process that
was forked after obstore was used, such as torch's DataLoader workers, botocore reads s3:// instead.

To add a provider, write a module with ``connect`` as `gcs` has, and call it in `_connect`.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from itertools import compress
from typing import Any

import obstore
from obstore.exceptions import InvalidPathError

from . import gcs, s3
from .base import Access, Blob, Listed, Stat, check_size
from .clients import RangeNotSatisfiable, translate_errors

_PAGE_SIZE = 1_000
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


def pages(prefix: str, access: Access) -> Callable[[], Listed | None]:
    """List in the store's order."""
    return _Listing(prefix, access).next_page


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
    """The objects under a prefix. After an error, the next call lists on after the last complete page.

    obstore returns a folder marker, the empty object ``folder/``, without its slash. A listing that starts after that
    name would repeat or skip objects, so a page ends with an object that is not empty. obstore's listing fails at a
    key that obstore does not accept; from there on botocore lists, and such keys are returned as unreadable.
    """

    def __init__(self, prefix: str, access: Access) -> None:
        self._uri, self._access = prefix, access
        self._bucket, _, path = prefix.partition("://")[2].partition("/")
        self._prefix = f"{path}/" if path else ""
        self._after: str | None = None
        self._stream: Any = None
        self._pending: list[Any] = []
        self._next = self._page_by_obstore

    def next_page(self) -> Listed | None:
        """Return the next objects, or None at the end."""
        try:
            with translate_errors():
                client, _, _ = _connect(self._uri, self._access)
                return self._page_by_botocore() if client is None else self._next()
        except BaseException as error:
            self._stream, self._pending = None, []
            if isinstance(error.__cause__, InvalidPathError) and self._uri.startswith("s3://"):
                self._next = self._page_by_botocore
                return self.next_page()
            raise

    def _page_by_obstore(self) -> Listed | None:
        if self._stream is None:
            client, _, _ = _connect(self._uri, self._access)
            self._stream = obstore.list(client, self._prefix or None, offset=self._after, chunk_size=_PAGE_SIZE)
        entries = self._pending
        for chunk in self._stream:
            entries = [*entries, *chunk]
            end = max((number for number, entry in enumerate(entries, 1) if entry["size"]), default=0)
            if end:
                self._after, self._pending = entries[end - 1]["path"], entries[end:]
                return self._listed(entries[:end])
        self._pending = []
        return self._listed(entries) if entries else None

    def _listed(self, entries: list[Any]) -> Listed:
        entries = [entry for entry in entries if entry["path"].startswith(self._prefix)]  # not the prefix's own marker
        return Listed(
            paths=[entry["path"][len(self._prefix) :] for entry in entries],
            sizes=[entry["size"] for entry in entries],
            versions=[entry["e_tag"] or "" for entry in entries],
        )

    def _page_by_botocore(self) -> Listed | None:
        wanted = {"Bucket": self._bucket, "Prefix": self._prefix, "MaxKeys": _PAGE_SIZE}
        wanted |= {"StartAfter": self._after} if self._after else {}
        objects = s3.request("list_objects_v2", self._access, **wanted).get("Contents", [])
        if not objects:
            return None
        self._after = objects[-1]["Key"]
        entries = [
            {"path": entry["Key"].removesuffix("/"), "size": entry["Size"], "e_tag": entry.get("ETag")}
            for entry in objects
        ]
        names = [entry["path"].removeprefix(self._prefix) for entry in entries]
        valid = [bool(_VALID_KEY.fullmatch(name)) for name in names]
        unreadable = [ascii(name) for name, ok in zip(names, valid, strict=True) if not ok and name]
        return self._listed(list(compress(entries, valid)))._replace(unreadable=tuple(unreadable))


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
