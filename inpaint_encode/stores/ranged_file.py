"""A remote object as a file that can be sought in, for libraries that read their formats so: pyarrow, tarfile."""

from __future__ import annotations

import errno
import io
from typing import Any

from inpaint_encode.settings import SourceAccess

from . import storage

__all__ = ["Changed", "RangedFile"]


class Changed(OSError):
    """The object is not the one any more that was opened, or planned."""


class RangedFile(io.RawIOBase):
    """Each read is one request, and all are of one version: by default that which is there when the file is opened.

    Raises:
        Changed: on a read, the object was replaced since the file was opened.
        FileNotFoundError, PermissionError, storage.Unavailable, OSError: by what the store said.
    """

    def __init__(self, uri: str, access: SourceAccess, known: storage.Stat | None = None) -> None:
        self._uri, self._access, self._at = uri, access, 0
        self.size, self.version = known or storage.stat(uri, access)

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Return the position in bytes."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; no request is made."""
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as ``buffer`` takes, or as there are."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read ``size`` bytes, or as many as there are; without a size all to the end."""
        left = max(0, self.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        if not wanted:
            return b""
        data, version = storage.read_range(self._uri, self._at, wanted, self._access)
        if version != self.version:
            raise Changed(errno.ESTALE, f"{self._uri} has changed while it was read")
        self._at += len(data)
        return data
