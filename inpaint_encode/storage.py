"""Objects in buckets and files on disks behind four verbs: list, read (or read the start), write, delete.

A version is an object's ETag on S3, and its size and modification time on a disk. A fault that may pass (5xx,
slow-down, reset, time-out, a cut body) is tried again with exponential backoff and jitter for `RETRY_BUDGET_S`
seconds, here and nowhere else, and is then raised as `Unavailable`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import stamina

__all__ = [
    "ABSENT",
    "RETRY_BUDGET_S",
    "TEMPORARY",
    "Blob",
    "Conflict",
    "Listed",
    "Unavailable",
    "delete",
    "download",
    "head",
    "join",
    "list_objects",
    "normalise",
    "read",
    "read_start",
    "retries",
    "write",
]

ABSENT = ""
"""As an expected version: there must be no such object yet."""

RETRY_BUDGET_S = 25.0
"""How long one request is tried again; the last wait, and the last try up to its own time-out, come on top."""

TEMPORARY = "_tmp-"
"""How the names of unfinished files on disks begin; readers and listings skip them, `verify --repair` removes them."""

_PIECE = 64 * 2**20
"""So that one piece is there well within the time-out of a request, and memory holds no more."""

_T = TypeVar("_T")


class Blob(NamedTuple):
    """An object's bytes and the version they are of."""

    data: bytes
    version: str


class Listed(NamedTuple):
    """Up to a few thousand objects, column by column; ``paths`` are relative to the listed prefix."""

    paths: list[str]
    sizes: list[int]
    versions: list[str]


class Conflict(Exception):
    """A conditional write found another version than the expected one."""


class Unavailable(OSError):
    """The store went on answering with a fault that may pass until the retry budget was spent."""


def normalise(uri: str) -> str:
    """Spell ``uri`` in the package's one way: ``s3://bucket/path`` or an absolute path, without a last slash.

    Raises:
        ValueError: the scheme is none of ``s3://``, ``file://`` and a plain path.
    """
    scheme, _, rest = uri.rpartition("://")
    if scheme and "@" in rest.partition("/")[0]:
        raise ValueError("a URI must not hold credentials; put them into the environment or a profile")
    if scheme == "s3" and rest.strip("/"):
        return uri.rstrip("/")
    if scheme not in ("", "file"):
        raise ValueError(f"{uri}: only s3://bucket, file:// and plain paths can be read and written")
    return str(Path(uri.removeprefix("file://")).absolute())


def join(prefix: str, *parts: str) -> str:
    """Append path components to a normalised prefix."""
    return "/".join([prefix, *parts])


def list_objects(prefix: str) -> Iterator[Listed]:
    """List everything under ``prefix``, recursively, a few thousand objects at a time.

    A prefix without objects lists nothing, whether or not it is there.

    Raises:
        FileNotFoundError: there is no such bucket.
        PermissionError, Unavailable: the store refuses, or does not answer.
    """
    if not prefix.startswith("s3://"):
        yield from _list_disk(Path(prefix))
        return
    listing = _s3().Listing(prefix)
    while page := _retrying(listing.next_page):
        yield page


def read(uri: str) -> Blob:
    """Read a whole object in one request.

    Raises:
        FileNotFoundError, PermissionError, Unavailable, OSError: by what the store said.
    """
    if uri.startswith("s3://"):
        return _retrying(lambda: Blob(*_s3().read(uri)))
    with Path(uri).open("rb") as file:
        return Blob(file.read(), _disk_version(os.fstat(file.fileno())))


def read_start(uri: str, length: int) -> bytes:
    """Read the first ``length`` bytes of an object, or all of a shorter one, in one request.

    Raises:
        FileNotFoundError, PermissionError, Unavailable, OSError: by what the store said.
    """
    if uri.startswith("s3://"):
        return _retrying(lambda: bytes(_s3().read_start(uri, length)))
    with Path(uri).open("rb") as file:
        return file.read(length)


def head(uri: str) -> tuple[int, str]:
    """Return an object's size in bytes and its version, without reading it.

    Raises:
        FileNotFoundError, PermissionError, Unavailable, OSError: by what the store said.
    """
    if uri.startswith("s3://"):
        size, version = _retrying(lambda: _s3().head(uri))
        return int(size), str(version)
    stat = os.stat(uri)  # noqa: PTH116
    return stat.st_size, _disk_version(stat)


def download(uri: str, path: Path, size: int, version: str) -> None:
    """Copy an object of S3 to a new file, in pieces of `_PIECE` bytes, each a request that is tried again by itself.

    Raises:
        Conflict: the object is not of ``version`` any more.
        FileNotFoundError, PermissionError, Unavailable, OSError: by what the store said.
    """
    with path.open("xb") as file:
        for start in range(0, size, _PIECE):
            length = min(_PIECE, size - start)
            file.write(_retrying(partial(_s3().read_range, uri, start, length, version)))


def write(uri: str, data: bytes, *, expect: str | None = None) -> str:
    """Write a whole object in one step, so that no reader ever sees a part of it; return its version.

    Args:
        uri: where to.
        data: the whole object.
        expect: `ABSENT` or a version: write only over that, as decided by the store itself. On a store that
            ignores conditions the last writer wins.

    Raises:
        Conflict: something else than ``expect`` is there.
        PermissionError, Unavailable, OSError: by what the store or the disk said.
    """
    if uri.startswith("s3://"):
        return _retrying(lambda: str(_s3().write(uri, data, expect)))
    return _write_disk(Path(uri), data, expect)


def delete(uri: str) -> None:
    """Remove an object; one that is not there is as good as removed."""
    if uri.startswith("s3://"):
        _retrying(lambda: _s3().delete(uri))
    else:
        Path(uri).unlink(missing_ok=True)


def retries() -> int:
    """How many requests this process has tried again so far."""
    return _retries


_retries = 0


def _s3() -> Any:
    from . import s3  # a job on disks needs no S3 client

    return s3


def _count_retry(details: stamina.instrumentation.RetryDetails) -> None:
    global _retries
    _retries += 1


def _retrying(call: Callable[[], _T]) -> _T:
    stamina.instrumentation.set_on_retry_hooks([_count_retry])
    for attempt in stamina.retry_context(Unavailable, attempts=None, timeout=RETRY_BUDGET_S, wait_max=5.0):
        with attempt:
            return call()
    raise AssertionError("a retry context ends by an answer or an error")


def _list_disk(prefix: Path) -> Iterator[Listed]:
    for folder, _, names in os.walk(prefix, onerror=_raise_unless_gone):
        found = [(name, _stat(f"{folder}/{name}")) for name in sorted(names) if not name.startswith(TEMPORARY)]
        files = {name: stat for name, stat in found if stat}
        where = "" if folder == str(prefix) else f"{folder[len(str(prefix)) + 1 :]}/"
        sizes = [stat.st_size for stat in files.values()]
        yield Listed([where + name for name in files], sizes, [_disk_version(stat) for stat in files.values()])


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _stat(path: str) -> os.stat_result | None:
    """None if the file has gone since its folder was read, or is a link to nothing."""
    try:
        return os.stat(path)  # noqa: PTH116 - a Path a file is slow in millions
    except FileNotFoundError:
        return None


def _disk_version(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def _write_disk(path: Path, data: bytes, expect: str | None) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    try:
        version = _write_synced(temporary, data)
        _publish(temporary, path, expect)
    finally:
        temporary.unlink(missing_ok=True)
    with _opened(path.parent, os.O_DIRECTORY) as folder:
        os.fsync(folder)
    return version


def _write_synced(path: Path, data: bytes) -> str:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        now = time.time_ns()
        os.utime(file.fileno(), ns=(now, now))  # the file system's own clock stands still for milliseconds
        os.fsync(file.fileno())
        return _disk_version(os.fstat(file.fileno()))


def _publish(temporary: Path, path: Path, expect: str | None) -> None:
    """Give the finished file its name, if what is there now is what the caller expects."""
    if expect is None:
        temporary.replace(path)
    elif expect == ABSENT:
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            raise Conflict(f"{path} is already there") from None
    else:
        with _opened(path.parent, os.O_DIRECTORY) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX)  # a disk has no conditional rename: the folder is the lock
            if not path.exists() or _disk_version(path.stat()) != expect:
                raise Conflict(f"{path} has changed")
            temporary.replace(path)


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
