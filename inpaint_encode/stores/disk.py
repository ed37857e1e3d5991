"""Files on disks. A version is the file's size and modification time."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat as stat_module
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from .base import ABSENT, Access, Blob, Conflict, Listed, Stat, check_size, is_utf8

TEMPORARY = "_tmp-"
"""Prefix of the names of unfinished files; readers and listings skip them, `verify --repair` removes them."""

_TEMPORARY_NAME = re.compile(f"{TEMPORARY}[0-9a-f]{{32}}")

_PAGE_FILES = 4_096
"""Largest number of files in a page of a listing."""


def read(uri: str, access: Access, max_bytes: int) -> Blob:
    """See `storage.read`."""
    with _open(uri) as file:
        found = os.fstat(file.fileno())
        check_size(found.st_size, max_bytes)
        return Blob(file.read(), _version(found))


def read_range(uri: str, start: int, length: int, access: Access) -> Blob:
    """See `storage.read_range`."""
    with _open(uri) as file:
        file.seek(start)
        return Blob(file.read(length), _version(os.fstat(file.fileno())))


def _open(uri: str) -> BinaryIO:
    """Open a regular file. Others, such as pipes and devices, may have no end, or block the process that opens them."""
    file = os.open(uri, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(file).st_mode
    if not stat_module.S_ISREG(mode):
        os.close(file)
        if stat_module.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), uri)
        raise OSError(errno.EINVAL, "it is no regular file", uri)
    return os.fdopen(file, "rb")


def _is_regular(found: os.stat_result) -> bool:
    """Return whether this is a file with contents, or a dead link, not a pipe, a socket or a device."""
    return stat_module.S_ISREG(found.st_mode) or stat_module.S_ISLNK(found.st_mode)


def stat(uri: str, access: Access) -> Stat:
    """See `storage.stat`."""
    found = Path(uri).stat()
    return Stat(found.st_size, _version(found))


def listing(prefix: str, access: Access) -> _Listing:
    """List folder by folder. Links to folders are followed, except to a folder that contains the link."""
    return _Listing(prefix)


def write(uri: str, data: bytes, expect: str | None) -> str:
    """Write a temporary file and rename it; see `storage.write`."""
    path = Path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
    folder = os.open(path.parent, os.O_DIRECTORY)
    try:
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                now = time.time_ns()
                os.utime(file.fileno(), ns=(now, now))  # the file system's own clock ticks every few milliseconds
                os.fsync(file.fileno())
                version = _version(os.fstat(file.fileno()))
            if expect:
                fcntl.flock(folder, fcntl.LOCK_EX)  # disks have no conditional rename; closing the folder unlocks it
                if not path.exists() or _version(path.stat()) != expect:
                    raise Conflict(f"{path} has changed")
            if expect == ABSENT:
                path.hardlink_to(temporary)  # unlike a rename, this fails if the name exists
            else:
                temporary.replace(path)
        except FileExistsError:
            if path.is_symlink() and not path.exists():  # to readers there is no file, so that they would try for ever
                raise OSError(errno.ELOOP, "it is a link to a file that does not exist; remove it", uri) from None
            raise Conflict(f"{path} already exists") from None
        finally:
            temporary.unlink(missing_ok=True)
        os.fsync(folder)
    finally:
        os.close(folder)
    return version


def delete(uri: str) -> None:
    """See `storage.delete`."""
    Path(uri).unlink(missing_ok=True)


def temporary_files(prefix: str) -> Iterator[str]:
    """See `storage.temporary_files`."""
    for folder, _, names in os.walk(prefix):
        yield from (f"{folder}/{name}" for name in sorted(names) if _TEMPORARY_NAME.fullmatch(name))


def linked_folders(prefix: str, *, recursive: bool) -> Iterator[str]:
    """See `storage.linked_folders`."""
    folders = [prefix]
    while folders:
        for entry in _entries(folders.pop()):
            if entry.is_symlink():
                yield from [entry.path] if _is_folder(entry) else []
            elif recursive and _is_folder(entry):
                folders.append(entry.path)


class _Listing:
    def __init__(self, prefix: str) -> None:
        self._pages = _walk(prefix)

    def next_page(self) -> Listed | None:
        return next(self._pages, None)

    def split(self) -> Sequence[_Listing]:
        return ()


def _walk(prefix: str) -> Iterator[Listed]:
    """Yield the files of each folder, in pages of up to `_PAGE_FILES`: a folder may have more files than memory."""
    prefix = str(Path(prefix))
    folders = [prefix]
    while folders:
        folder = folders.pop()
        relative = "" if folder == prefix else f"{folder[len(prefix) + 1 :]}/"
        files: list[tuple[str, os.stat_result]] = []
        subfolders = []
        for entry in _entries(folder):
            if _is_folder(entry):
                subfolders += [] if _links_to_parent(entry.path) else [entry.path]
            elif not entry.name.startswith(TEMPORARY) and (stat := _stat(entry.path)) and _is_regular(stat):
                files.append((relative + entry.name, stat))
                if len(files) == _PAGE_FILES:
                    yield _page(files)
                    files = []
        yield _page(files)
        folders += sorted(subfolders, reverse=True)


def _entries(folder: str) -> Iterator[os.DirEntry[str]]:
    """Yield the entries of a folder; none if it was removed."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        yield from entries


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False


def _page(files: list[tuple[str, os.stat_result]]) -> Listed:
    named = sorted((path, stat) for path, stat in files if is_utf8(path))
    return Listed(
        paths=[path for path, _ in named],
        sizes=[stat.st_size for _, stat in named],
        versions=[_version(stat) for _, stat in named],
        unreadable=tuple(sorted(ascii(path) for path, _ in files if not is_utf8(path))),
    )


def _links_to_parent(folder: str) -> bool:
    parent, target = os.path.realpath(folder.rpartition("/")[0]), os.path.realpath(folder)
    return Path(folder).is_symlink() and f"{parent}/".startswith(f"{target}/")


def _stat(path: str) -> os.stat_result | None:
    """Return None if the file was removed after it was listed. For a dead link, return the link's own."""
    try:
        return os.stat(path)  # noqa: PTH116 - a Path object for each of millions of files is slow
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):
            raise
        with contextlib.suppress(FileNotFoundError):
            return os.lstat(path)
        return None


def _version(stat: os.stat_result) -> str:
    return f"{stat.st_size}-{stat.st_mtime_ns}"
