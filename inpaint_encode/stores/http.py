"""Objects behind http:// and https://, read one at a time: such a server lists nothing, and nothing is written to it.

The proxies of the environment are not used. urllib3 retries nothing here: `inpaint_encode.stores.storage` does, in
one budget.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache

import urllib3

from inpaint_encode.settings import SourceAccess

from .storage import Blob, Stat, Unavailable, refuse_more

__all__ = ["read", "read_range", "stat"]

_CONNECT_S = 5
_ANSWER_S = 20
_READ_S = 300
"""For a whole body, as for one from S3."""
_PIECE = 2**20
_REDIRECTS = 5
_BEYOND_THE_END = 416
_WRONG = (
    urllib3.exceptions.LocationParseError,
    urllib3.exceptions.LocationValueError,
    urllib3.exceptions.InvalidHeader,
)
"""What the client says to a name that it cannot send, and to an answer that contradicts itself."""
_PASSING_STATUSES = {408, 425, 429, 500, 502, 503, 504}


def read(uri: str, access: SourceAccess, at_most: int) -> Blob:
    """See `inpaint_encode.stores.storage.read`; ``access`` is of buckets, and changes nothing here.

    Of a server that does not tell an object's size a byte more than ``at_most`` is fetched.
    """
    with _answered("GET", uri) as answer:
        refuse_more(_length(answer) or 0, at_most)
        data = _start(answer, min(at_most, sys.maxsize - 1) + 1)
        refuse_more(len(data), at_most)
        return Blob(data, _version(answer))


def read_range(uri: str, start: int, length: int, access: SourceAccess) -> Blob:
    """See `inpaint_encode.stores.storage.read_range`.

    A server that takes no ranges answers with the whole object: that is fine for its start, and an error otherwise.
    """
    with _answered("GET", uri, {"Range": f"bytes={start}-{start + length - 1}"}) as answer:
        if answer.status == 200 and start:
            raise OSError(errno.EINVAL, "the server gives no ranges of an object; copy it to a store that does")
        data = b"" if answer.status == _BEYOND_THE_END else _start(answer, length + 1)[:length]  # to its end
        return Blob(data, _version(answer))


def stat(uri: str, access: SourceAccess) -> Stat:
    """See `inpaint_encode.stores.storage.stat`."""
    with _answered("HEAD", uri) as answer:
        length = _length(answer)
        if length is None:
            raise OSError(errno.EINVAL, "the server does not tell the object's size; copy it to a store that does")
        return Stat(length, _version(answer))


@lru_cache
def _pool() -> urllib3.PoolManager:
    retries = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=_REDIRECTS)
    return urllib3.PoolManager(maxsize=256, retries=retries, timeout=urllib3.Timeout(_CONNECT_S, _ANSWER_S))


@contextmanager
def _answered(method: str, uri: str, headers: Mapping[str, str] | None = None) -> Iterator[urllib3.BaseHTTPResponse]:
    """The answer, whose body is not read yet; its connection is kept if that is read to its end, or else closed."""
    wanted = {"Accept-Encoding": "identity", **(headers or {})}
    with _named_errors():
        answer = _pool().request(method, uri, headers=wanted, preload_content=False)
        try:
            _raise_for(answer)
            yield answer
        finally:
            answer.close()


@contextmanager
def _named_errors() -> Iterator[None]:
    try:
        yield
    except _WRONG as error:
        raise OSError(errno.EINVAL, str(error)) from error
    except urllib3.exceptions.MaxRetryError as error:
        if isinstance(error.reason, urllib3.exceptions.ResponseError):  # no answer at all has other reasons
            raise OSError(errno.ELOOP, f"more than {_REDIRECTS} redirections") from error
        raise Unavailable(errno.EIO, str(error.reason or error)) from error  # the error itself has the query
    except urllib3.exceptions.HTTPError as error:
        raise Unavailable(errno.EIO, str(error)) from error


def _length(answer: urllib3.BaseHTTPResponse) -> int | None:
    """What the head of the answer says; None if it says nothing."""
    said = answer.headers.get("Content-Length")
    try:
        return None if said is None else int(said)
    except ValueError:
        raise OSError(errno.EINVAL, f"the server states the object's size as {said}") from None


def _start(answer: urllib3.BaseHTTPResponse, length: int) -> bytes:
    """The first ``length`` bytes of the body, or as many as there are; a body that trickles is given up."""
    begun, pieces, there = time.monotonic(), [], 0
    while there < length and (piece := answer.read1(min(length - there, _PIECE))):
        pieces.append(piece)
        there += len(piece)
        if time.monotonic() - begun > _READ_S:
            raise Unavailable(errno.EIO, f"{there:,} bytes came within {_READ_S} s, and that was not all")
    return b"".join(pieces)


def _raise_for(answer: urllib3.BaseHTTPResponse) -> None:
    said = f"the server answered {answer.status} {answer.reason or ''}".rstrip()
    if answer.status in {404, 410}:
        raise FileNotFoundError(errno.ENOENT, said)
    if answer.status in {401, 403, 407}:
        raise PermissionError(errno.EACCES, said)
    if answer.status in _PASSING_STATUSES:
        raise Unavailable(errno.EIO, said)
    if answer.status not in {200, 206, _BEYOND_THE_END}:
        raise OSError(errno.EINVAL, said)


def _version(answer: urllib3.BaseHTTPResponse) -> str:
    """The ETag, or when the object was modified; empty if the server tells neither."""
    return answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
