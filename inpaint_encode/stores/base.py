"""What all stores share: access options, the values they return, their errors, time-outs and interface."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

ABSENT = ""
"""As an expected version: the object must not exist yet."""

CONNECT_S = 5
"""Time-out in seconds for a new connection."""
ANSWER_S = 20
"""Time-out in seconds for the next bytes of an answer."""
READ_S = 300
"""Time-out in seconds for a whole body."""


@dataclass(frozen=True)
class Access:
    """Overrides of the environment's settings for s3:// and gs://, which disks and HTTP servers ignore; and limits."""

    anonymous: bool = False
    """Send requests without credentials."""
    requester_pays: bool = False
    """Accept that S3 charges the requests to the caller."""
    endpoint_url: str = ""
    """Server, as http://host:port or https://host; empty: the environment's ``AWS_ENDPOINT_URL``, or the provider's."""
    prefixes: tuple[str, ...] | None = None
    """Normalized URIs and paths; only what is below one of them is read. None: everything."""


DEFAULT_ACCESS = Access()
"""Everything from the environment. Outputs are always accessed this way."""


class Blob(NamedTuple):
    """An object's bytes, or a range of them, and the object's version."""

    data: bytes
    version: str


class Stat(NamedTuple):
    """An object's size in bytes and its version."""

    size: int
    version: str


class Listed(NamedTuple):
    """A page of a listing, column by column; ``paths`` are relative to the listed prefix."""

    paths: list[str]
    sizes: list[int]
    versions: list[str]
    unreadable: tuple[str, ...] = ()
    """Escaped names of further objects that no URI can name."""


class Conflict(Exception):
    """A conditional write found another version than the expected one."""


class TooLarge(OSError):
    """An object has more bytes than the caller allows."""


class Unavailable(OSError):
    """A fault that may pass, such as a time-out or a 503; callers of `storage` get it after the last retry."""


class Changed(OSError):
    """The object has another version than when it was opened or planned."""


class NotAllowed(PermissionError):
    """The object is not below a prefix that the user named; no request was sent."""


class Listing(Protocol):
    """A listing that is read page by page."""

    def next_page(self) -> Listed | None:
        """Return the next page, or None at the end; after an error, it can be called again."""

    def split(self) -> Sequence[Listing]:
        """Return new listings of objects that this listing leaves out. They may be read in other threads."""


class Store(Protocol):
    """The functions that a store's module has; `inpaint_encode.stores.storage` documents them and their errors.

    They do not retry: they raise `Unavailable` for every fault that may pass.
    """

    def read(self, uri: str, access: Access, max_bytes: int) -> Blob:
        """See `storage.read`."""

    def read_range(self, uri: str, start: int, length: int, access: Access) -> Blob:
        """See `storage.read_range`."""

    def stat(self, uri: str, access: Access) -> Stat:
        """See `storage.stat`."""

    def listing(self, prefix: str, access: Access) -> Listing:
        """Return the listing of everything under ``prefix``, recursively."""

    def write(self, uri: str, data: bytes, expect: str | None) -> str:
        """See `storage.write`."""

    def delete(self, uri: str) -> None:
        """See `storage.delete`."""


def check_size(size: int, max_bytes: int) -> None:
    """Raise `TooLarge` if an object has more than ``max_bytes`` bytes."""
    if size > max_bytes:
        raise TooLarge(errno.EFBIG, f"it has {size:,} bytes; --max-bytes allows {max_bytes:,}")


def is_utf8(name: str) -> bool:
    """Whether a file name can be encoded as UTF-8; Python decodes other bytes to surrogates."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
