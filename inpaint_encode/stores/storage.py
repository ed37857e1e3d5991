"""Objects in buckets and files on disks behind four verbs: list, read (whole or a range), write, delete.

s3:// and disks have all four, gs:// can be listed and read, http(s):// can be read.
A version is an object's ETag, and on a disk its size and modification time. A fault that may pass (5xx,
slow-down, reset, time-out, a cut body) is tried again with exponential backoff and jitter for `RETRY_BUDGET_S`
seconds, here and nowhere else, and is then raised as `Unavailable`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import stamina

from inpaint_encode.settings import SourceAccess

__all__ = [
    "ABSENT",
    "DIRECT",
    "READABLE",
    "RETRY_BUDGET_S",
    "TEMPORARY",
    "Blob",
    "Conflict",
    "Listed",
    "Stat",
    "TooLarge",
    "Unavailable",
    "delete",
    "is_text",
    "join",
    "list_objects",
    "normalise",
    "read",
    "read_range",
    "refuse_more",
    "retries",
    "stat",
    "unfinished",
    "write",
]

ABSENT = ""
"""As an expected version: there must be no such object yet."""

RETRY_BUDGET_S = 25.0
"""How long one request is tried again; the last wait, and the last try up to its own time-out, come on top."""

TEMPORARY = "_tmp-"
"""How the names of unfinished files on disks begin; readers and listings skip them, `verify --repair` removes them."""

DIRECT = SourceAccess()
"""As the environment says: how an output is asked for, always."""

WRITABLE = frozenset({"s3", "file", ""})
"""Schemes that an output may have; the empty one is a plain path's."""

READABLE = WRITABLE | {"gs", "http", "https"}
"""Schemes that a source may have."""

_T = TypeVar("_T")


class Blob(NamedTuple):
    """An object's bytes and the version they are of."""

    data: bytes
    version: str


class Stat(NamedTuple):
    """An object's size in bytes and its version."""

    size: int
    version: str


class Listed(NamedTuple):
    """Up to a few thousand objects, column by column; ``paths`` are relative to the listed prefix."""

    paths: list[str]
    sizes: list[int]
    versions: list[str]
    unreadable: tuple[str, ...] = ()
    """Of objects besides, the escaped names, which no URI can spell."""


class Conflict(Exception):
    """A conditional write found another version than the expected one."""


class TooLarge(OSError):
    """An object has more bytes than may be read of it."""


class Unavailable(OSError):
    """The store went on answering with a fault that may pass until the retry budget was spent."""


def normalise(uri: str, schemes: frozenset[str] = WRITABLE) -> str:
    """Spell ``uri`` in the package's one way: ``scheme://bucket/path`` or an absolute path, without a last slash.

    Raises:
        ValueError: the scheme is none of ``schemes``, or the URI holds credentials.
    """
    scheme, _, rest = uri.partition("://") if "://" in uri else ("", "", uri)
    if scheme and "@" in rest.partition("/")[0]:
        raise ValueError("a URI must not hold credentials; put them into the environment or a profile")
    if scheme in schemes - {"", "file"} and rest.strip("/"):
        return uri.rstrip("/")
    if scheme not in ("", "file"):
        raise ValueError(f"{uri}: {_can_be(schemes)}")
    return str(Path(uri.removeprefix("file://")).absolute())


def _can_be(schemes: frozenset[str]) -> str:
    named = ", ".join(f"{scheme}://" for scheme in sorted(schemes - {"", "file"}))
    verb = "written" if schemes == WRITABLE else "read"
    return f"only {named} with a name after it, file:// and plain paths can be {verb}"


def join(prefix: str, *parts: str) -> str:
    """Append path components to a normalised prefix."""
    return "/".join([prefix, *parts])


def list_objects(prefix: str, access: SourceAccess = DIRECT) -> Iterator[Listed]:
    """List everything under ``prefix``, recursively, a few thousand objects at a time.

    A prefix without objects lists nothing, whether or not it is there.

    Raises:
        FileNotFoundError: there is no such bucket.
        PermissionError, Unavailable: the store refuses, or does not answer.
    """
    if "://" not in prefix:
        yield from _list_disk(Path(prefix))
        return
    listing = _client(prefix).Listing(prefix, access)
    while page := _retrying(listing.next_page):
        yield page


def read(uri: str, access: SourceAccess = DIRECT, at_most: int = sys.maxsize) -> Blob:
    """Read a whole object of ``at_most`` so many bytes in one request.

    Raises:
        TooLarge: it has more, as the head of the answer says; its bytes are not fetched.
        FileNotFoundError, PermissionError, Unavailable, OSError: by what the store said.
    """
    if "://" in uri:
        return _retrying(lambda: Blob(*_client(uri).read(uri, access, at_most)))
    with Path(uri).open("rb") as file:
        stat = os.fstat(file.fileno())
        refuse_more(stat.st_size, at_most)
        return Blob(file.read(), _disk_version(stat))


def refuse_more(size: int, at_most: int) -> None:
    """Raise `TooLarge` if an object has more bytes than it may."""
    if size > at_most:
        raise TooLarge(errno.EFBIG, f"it has {size:,} bytes, of which --max-bytes allows {at_most:,}")


def read_range(uri: str, start: int, length: int, access: SourceAccess = DIRECT) -> Blob:
    """Read ``length`` bytes from ``start`` on, or as many as there are, in one request.

    Raises:
        FileNotFoundError, PermissionError, Unavailable, OSError: by what the store said.
    """
    if "://" in uri:
        return _retrying(lambda: Blob(*_client(uri).read_range(uri, start, length, access)))
    with Path(uri).open("rb") as file:
        file.seek(start)
        return Blob(file.read(length), _disk_version(os.fstat(file.fileno())))


def stat(uri: str, access: SourceAccess = DIRECT) -> Stat:
    """Ask for an object's size and version without its bytes.

    Raises:
        FileNotFoundError, PermissionError, Unavailable, OSError: by what the store said.
    """
    if "://" in uri:
        return _retrying(lambda: Stat(*_client(uri).stat(uri, access)))
    found = Path(uri).stat()
    return Stat(found.st_size, _disk_version(found))


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
    if "://" in uri:
        return _retrying(lambda: str(_client(uri).write(uri, data, expect)))
    return _write_disk(Path(uri), data, expect)


def delete(uri: str) -> None:
    """Remove an object; one that is not there is as good as removed."""
    if "://" in uri:
        _retrying(lambda: _client(uri).delete(uri))
    else:
        Path(uri).unlink(missing_ok=True)


def unfinished(prefix: str) -> Iterator[str]:
    """Yield the files below ``prefix`` that a dead process left unfinished; a bucket has none: a write is one request.

    Those of a process that is alive are among them.
    """
    if "://" not in prefix:
        for folder, _, names in os.walk(prefix):
            yield from (f"{folder}/{name}" for name in sorted(names) if name.startswith(TEMPORARY))


def retries() -> int:
    """How many requests this process has tried again so far."""
    return _retries


_retries = 0


def _client(uri: str) -> Any:
    """A job on disks needs neither, and one on S3 not the other."""
    if uri.startswith("http"):
        from . import http

        return http
    from . import s3

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


def is_text(name: str) -> bool:
    """Whether a name is one in UTF-8; Python's spelling of any other has surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _list_disk(prefix: Path) -> Iterator[Listed]:
    """Links to folders are followed, though not round in a circle."""
    for folder, folders, names in os.walk(prefix, onerror=_raise_unless_gone, followlinks=True):
        folders[:] = [name for name in folders if not _leads_back(f"{folder}/{name}")]
        where = "" if folder == str(prefix) else f"{folder[len(str(prefix)) + 1 :]}/"
        found = [(where + name, _stat(f"{folder}/{name}")) for name in sorted(names) if not name.startswith(TEMPORARY)]
        files = {path: stat for path, stat in found if stat}
        odd = tuple(ascii(path) for path in files if not is_text(path))
        files = {path: stat for path, stat in files.items() if is_text(path)} if odd else files
        sizes = [stat.st_size for stat in files.values()]
        yield Listed(list(files), sizes, [_disk_version(stat) for stat in files.values()], odd)


def _leads_back(folder: str) -> bool:
    """Whether it is a link to a folder that it is in."""
    return Path(folder).is_symlink() and f"{os.path.realpath(folder.rpartition('/')[0])}/".startswith(
        f"{os.path.realpath(folder)}/"
    )


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _stat(path: str) -> os.stat_result | None:
    """Of a link to nothing the link's, so that it is missed by name; None if the file has gone since it was listed."""
    try:
        return os.stat(path)  # noqa: PTH116 - a Path a file is slow in millions
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        with contextlib.suppress(FileNotFoundError):
            return os.lstat(path)
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
