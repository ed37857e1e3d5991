"""Objects in buckets and files on disks behind one interface: list, read (whole or a range), stat, write, delete.

s3:// and disks support all of them, gs:// is listed and read, http(s):// is only read. A version is an object's ETag;
on a disk it is the file's size and modification time.

Every function retries faults that may pass (5xx, slow-down, reset, time-out, incomplete body) with exponential
backoff for `RETRY_BUDGET_S` seconds, then raises `Unavailable`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from . import disk
from .base import (
    ABSENT,
    DEFAULT_ACCESS,
    Access,
    Blob,
    Changed,
    Conflict,
    Listed,
    Listing,
    NotAllowed,
    Stat,
    Store,
    TooLarge,
    Unavailable,
    check_size,
    is_utf8,
)
from .disk import TEMPORARY
from .redaction import LOGIN
from .retries import RETRY_BUDGET_S, retry, retry_count

__all__ = [
    "ABSENT",
    "DEFAULT_ACCESS",
    "READABLE",
    "RETRY_BUDGET_S",
    "TEMPORARY",
    "Blob",
    "Changed",
    "Conflict",
    "Listed",
    "NotAllowed",
    "Stat",
    "TooLarge",
    "Unavailable",
    "check_size",
    "delete",
    "is_allowed",
    "is_below",
    "is_utf8",
    "join",
    "linked_folders",
    "list_objects",
    "normalize_uri",
    "read",
    "read_range",
    "retry_count",
    "stat",
    "temporary_files",
    "write",
    "write_once",
]

WRITABLE = frozenset({"s3", "file", ""})
"""Schemes of an output; the empty one is a plain path's."""

READABLE = WRITABLE | {"gs", "http", "https"}
"""Schemes of a source."""

_NO_LOGINS = "a URI must not contain credentials; set them in the environment or in a profile"

LISTING_THREADS = 16
"""Number of requests in flight of one listing."""


def normalize_uri(uri: str, schemes: frozenset[str] = WRITABLE) -> str:
    """Return ``uri`` as ``scheme://bucket/path`` or as an absolute path, without a trailing slash.

    Raises:
        ValueError: the scheme is not in ``schemes``, or the URI contains credentials.
    """
    scheme, _, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    if has_login(uri):
        raise ValueError(_NO_LOGINS)
    if scheme in ("", "file"):
        return str(Path(uri.removeprefix("file://")).absolute())
    if scheme in schemes and rest.strip("/"):
        return uri.rstrip("/")
    forms = "s3://bucket/prefix" if schemes == WRITABLE else "s3://bucket/prefix, gs://bucket/prefix, https://host/path"
    raise ValueError(f"{uri} is not supported; use {forms}, file:///path or a path")


def has_login(uri: str) -> bool:
    """Return whether a URI has a name or a password before its host or bucket."""
    return "://" in uri and LOGIN.match(uri, uri.index("://") + 3) is not None


def join(prefix: str, *parts: str) -> str:
    """Append path components to a normalized prefix."""
    return "/".join([prefix, *parts])


def list_objects(prefix: str, access: Access = DEFAULT_ACCESS) -> Iterator[Listed]:
    """List everything under ``prefix``, recursively, in pages of up to a few thousand objects, in no particular order.

    A prefix without objects lists nothing, whether or not the folder exists. On S3, folders are listed in parallel if
    the listing has several pages. The objects of a flat folder, and everything on other stores, are listed one page
    after the other.

    Raises:
        FileNotFoundError: the bucket does not exist.
        PermissionError: the store denies access, or (`NotAllowed`) ``access`` does.
        Unavailable: the store still fails after the last retry.
        OSError: any other error of the store or the disk.
    """
    listing = _store_to_read(prefix, access).listing(prefix, access)
    while page := retry(listing.next_page):
        yield page
        if parts := listing.split():
            yield from _pages_in_parallel([listing, *parts])
            return


def _pages_in_parallel(listings: list[Listing]) -> Iterator[Listed]:
    """Yield the pages of listings and of their parts; each has at most one request in flight.

    The newest listings are read first, so that few wait: a listing that finds folders goes on when these are listed.
    """
    from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait  # registers handlers of forks

    pool = ThreadPoolExecutor(LISTING_THREADS, thread_name_prefix="list")
    running: dict[Future[Listed | None], Listing] = {}
    try:
        while listings or running:
            while listings and len(running) < LISTING_THREADS:
                listing = listings.pop()
                running[pool.submit(retry, listing.next_page)] = listing
            for request in wait(running, return_when=FIRST_COMPLETED).done:
                listing, page = running.pop(request), request.result()
                listings += [listing, *listing.split()] if page else listing.split()
                if page:
                    yield page
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def read(uri: str, access: Access = DEFAULT_ACCESS, max_bytes: int = sys.maxsize) -> Blob:
    """Read a whole object in one request.

    Raises:
        TooLarge: the object has more than ``max_bytes`` bytes; its body is not fetched.
        FileNotFoundError: the object or the bucket does not exist.
        PermissionError: the store denies access.
        Unavailable: the store still fails after the last retry.
        OSError: any other error of the store or the disk.
    """
    return retry(_store_to_read(uri, access).read, uri, access, max_bytes)


def read_range(uri: str, start: int, length: int, access: Access = DEFAULT_ACCESS) -> Blob:
    """Read up to ``length`` bytes from byte ``start`` on in one request; fewer if the object ends before.

    Raises:
        FileNotFoundError, PermissionError, Unavailable, OSError: as `read`.
    """
    return retry(_store_to_read(uri, access).read_range, uri, start, length, access)


def stat(uri: str, access: Access = DEFAULT_ACCESS) -> Stat:
    """Return an object's size and version without reading it.

    Raises:
        FileNotFoundError, PermissionError, Unavailable, OSError: as `read`.
    """
    return retry(_store_to_read(uri, access).stat, uri, access)


def write(uri: str, data: bytes, *, expect: str | None = None) -> str:
    """Write a whole object atomically, so that no reader sees a part of it, and return its version.

    Args:
        uri: the object's URI or path.
        data: the whole content.
        expect: write only if the object has this version, or if it does not exist (`ABSENT`). The store itself
            decides; where a store ignores conditions, the last writer wins.

    Raises:
        Conflict: the object has another version than ``expect``. If the answer to an earlier attempt was lost, this
            can be the caller's own write, see `write_once`.
        PermissionError: the store denies access.
        Unavailable: the store still fails after the last retry.
        OSError: any other error of the store or the disk.
    """
    return retry(_store_of(uri).write, uri, data, expect)


def write_once(uri: str, data: bytes, *, expect: str = ABSENT) -> str:
    """Write a whole object if it has the version ``expect``, and return its new version.

    If the object already has these contents, return its version: an earlier attempt wrote them, and its answer was
    lost. Contents that name the writer, such as a token, cannot come from another one.

    Args:
        uri: the object's URI or path.
        data: the whole content.
        expect: see `write`; by default the object must not exist.

    Raises:
        Conflict: the object has another version and other contents.
        PermissionError, Unavailable, OSError: as `write`.
    """
    try:
        return write(uri, data, expect=expect)
    except Conflict:
        with contextlib.suppress(FileNotFoundError):
            found = read(uri)
            if found.data == data:
                return found.version
        raise


def delete(uri: str) -> None:
    """Delete an object if it exists.

    Raises:
        PermissionError, Unavailable, OSError: as `write`.
    """
    retry(_store_of(uri).delete, uri)


def temporary_files(prefix: str) -> Iterator[str]:
    """Yield the unfinished files under ``prefix``, also those of running processes; buckets have none."""
    return iter(()) if "://" in prefix else disk.temporary_files(prefix)


def linked_folders(prefix: str, *, recursive: bool = False) -> Iterator[str]:
    """Yield the links to folders under ``prefix``. What is written or deleted below them is elsewhere.

    Args:
        prefix: a folder, which may be a link itself. Buckets have no links.
        recursive: look in all subfolders, not only in ``prefix``.
    """
    return iter(()) if "://" in prefix else disk.linked_folders(prefix, recursive=recursive)


def is_below(uri: str, prefix: str) -> bool:
    """Return whether an object is the normalized ``prefix`` or below it; on a disk, after links are followed."""
    if "://" not in uri and "://" not in prefix:
        return Path(os.path.realpath(uri)).is_relative_to(os.path.realpath(prefix))
    path = re.split("[?#]", uri, maxsplit=1)[0] if uri.startswith("http") else uri  # in a bucket they are part of a key
    parts = re.split(r"[/\\]", unquote(unquote(path)))
    return ".." not in parts and f"{uri}/".startswith(f"{prefix.rstrip('/')}/")


def is_allowed(uri: str, access: Access) -> bool:
    """Return whether ``access`` allows to read an object."""
    return access.prefixes is None or any(is_below(uri, prefix) for prefix in access.prefixes)


def _store_to_read(uri: str, access: Access) -> Store:
    """Return the module for a URI's scheme.

    Raises:
        NotAllowed: the URI is not below the prefixes of ``access``.
    """
    if access.prefixes is not None and not is_allowed(uri, access):
        raise NotAllowed(errno.EACCES, "it is not below a prefix that you named with --sources")
    return _store_of(uri)


def _store_of(uri: str) -> Store:
    """Return the module for a URI's scheme. It is imported at first use: a job on disks needs no client of S3.

    Raises:
        PermissionError: the URI has a login, which a request would send as a part of the host or the bucket.
    """
    if "://" not in uri:
        return disk
    if has_login(uri):
        raise PermissionError(errno.EACCES, _NO_LOGINS)
    if uri.startswith(("http://", "https://")):
        from . import http

        return http
    from . import buckets

    return buckets
