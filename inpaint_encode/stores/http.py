"""Objects on HTTP servers: they can only be read, one at a time.

The environment's proxies are not used. urllib3 does not retry here: `inpaint_encode.stores.retries` does.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, LocationValueError, MaxRetryError, ResponseError

from .base import ANSWER_S, CONNECT_S, READ_S, Access, Blob, Stat, Unavailable, check_size

_PIECE = 2**20
_REDIRECTS = 5
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


def read(uri: str, access: Access, max_bytes: int) -> Blob:
    """See `storage.read`. If the server sends no size, at most ``max_bytes`` + 1 bytes are fetched."""
    with _request("GET", uri) as response:
        check_size(_length(response) or 0, max_bytes)
        data = _body(response, min(max_bytes, sys.maxsize - 1) + 1)
        check_size(len(data), max_bytes)
        return Blob(data, _version(response))


def read_range(uri: str, start: int, length: int, access: Access) -> Blob:
    """See `storage.read_range`. A server without range requests answers with the whole object."""
    with _request("GET", uri, Range=f"bytes={start}-{start + length - 1}") as response:
        if response.status == 200 and start:
            message = "the server does not support range requests; copy the object to a store that does"
            raise OSError(errno.EINVAL, message)
        if response.status == 416:  # the object ends before the range
            return Blob(b"", _version(response))
        return Blob(_body(response, length + 1)[:length], _version(response))  # + 1: to the end of the body


def stat(uri: str, access: Access) -> Stat:
    """See `storage.stat`."""
    with _request("HEAD", uri) as response:
        length = _length(response)
        if length is None:
            message = "the server does not send the object's size; copy the object to a store that does"
            raise OSError(errno.EINVAL, message)
        return Stat(length, _version(response))


def _read_only(*_: Any) -> Any:
    raise OSError(errno.ENOTSUP, "an HTTP server can only be read, object by object")


listing = write = delete = _read_only


@lru_cache
def _pool() -> urllib3.PoolManager:
    retries = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=_REDIRECTS)
    return urllib3.PoolManager(maxsize=256, retries=retries, timeout=urllib3.Timeout(CONNECT_S, ANSWER_S))


@contextmanager
def _request(method: str, uri: str, **headers: str) -> Iterator[urllib3.BaseHTTPResponse]:
    """Yield the response before its body is read; raise errors as `storage` documents them.

    The connection is reused if the body is read to its end, and closed otherwise.
    """
    headers = {"Accept-Encoding": "identity", **headers}
    try:
        response = _pool().request(method, uri, headers=headers, preload_content=False)
        try:
            _raise_for_status(response)
            yield response
        finally:
            response.close()
    except (LocationValueError, InvalidHeader) as error:
        raise OSError(errno.EINVAL, str(error)) from error
    except MaxRetryError as error:
        if isinstance(error.reason, ResponseError):  # without an answer the reason is another one
            raise OSError(errno.ELOOP, f"more than {_REDIRECTS} redirects") from error
        raise Unavailable(errno.EIO, str(error.reason or error)) from error  # the error itself quotes the query
    except HTTPError as error:
        raise Unavailable(errno.EIO, str(error)) from error


def _raise_for_status(response: urllib3.BaseHTTPResponse) -> None:
    status = response.status
    message = f"the server answered {status} {response.reason or ''}".rstrip()
    if status in {404, 410}:
        raise FileNotFoundError(errno.ENOENT, message)
    if status in {401, 403, 407}:
        raise PermissionError(errno.EACCES, message)
    if status in _TRANSIENT:
        raise Unavailable(errno.EIO, message)
    if status not in {200, 206, 416}:
        raise OSError(errno.EINVAL, message)


def _length(response: urllib3.BaseHTTPResponse) -> int | None:
    length = response.headers.get("Content-Length")
    try:
        return None if length is None else int(length)
    except ValueError:
        raise OSError(errno.EINVAL, f"the server sent an invalid Content-Length: {length}") from None


def _body(response: urllib3.BaseHTTPResponse, length: int) -> bytes:
    """Return up to ``length`` bytes of the body."""
    start, pieces, received = time.monotonic(), [], 0
    while received < length and (piece := response.read1(min(length - received, _PIECE))):
        pieces.append(piece)
        received += len(piece)
        if time.monotonic() - start > READ_S:
            raise Unavailable(errno.EIO, f"the body was incomplete after {READ_S} s ({received:,} bytes)")
    return b"".join(pieces)


def _version(response: urllib3.BaseHTTPResponse) -> str:
    """Return the ETag, or the modification time; empty if the server sends neither."""
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
