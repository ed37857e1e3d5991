"""A remote object as a seekable file, for libraries that read their formats from one: pyarrow, tarfile."""

from __future__ import annotations

import errno
import io
from typing import Any

from . import storage
from .base import Access, Changed

__all__ = ["Changed", "RangedFile"]


class RangedFile(io.RawIOBase):
    """Each read is one range request; all reads return the version that existed when the file was opened.

    Args:
        uri: the object.
        access: how its store is accessed.
        stat: size and version, if the caller knows them; by default the store is asked.

    Raises:
        Changed: on a read, if the object was replaced since.
        FileNotFoundError, PermissionError, Unavailable, OSError: as `storage.stat` and `storage.read_range`.
    """

    def __init__(self, uri: str, access: Access, stat: storage.Stat | None = None) -> None:
        self._uri, self._access, self._position = uri, access, 0
        self.size, self.version = stat or storage.stat(uri, access)

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position without a request, and return it."""
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self.size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` from the position on, and return the number of bytes."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Return up to ``size`` bytes; without a size, all bytes to the end."""
        left = max(0, self.size - self._position)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data, version = storage.read_range(self._uri, self._position, wanted, self._access)
        if version != self.version:
            raise Changed(errno.ESTALE, f"{self._uri} has changed since it was opened")
        self._position += len(data)
        return data
