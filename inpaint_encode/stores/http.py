"""Objects on HTTP servers: they can only be read, one at a time.

No request has credentials: only the query of a signed URL, which its list has, is sent. The environment's proxies and
``.netrc`` are not used. urllib3 does not retry here: `inpaint_encode.stores.retries` does.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from urllib.parse import urljoin

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader, LocationValueError, MaxRetryError
from urllib3.util import parse_url

from .base import ANSWER_S, CONNECT_S, READ_S, Access, Blob, Stat, Unavailable, check_size
from .redaction import redacted

_PIECE = 2**20
_REDIRECTS = 5
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""Addresses of IPv6 that end in one of IPv4, which may be private."""
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
    retries = urllib3.Retry(total=None, connect=0, read=0, status=0, other=0, redirect=False)
    return urllib3.PoolManager(maxsize=256, retries=retries, timeout=urllib3.Timeout(CONNECT_S, ANSWER_S))


@contextmanager
def _request(method: str, uri: str, **headers: str) -> Iterator[urllib3.BaseHTTPResponse]:
    """Yield the response before its body is read; raise errors as `storage` documents them.

    The connection is reused if the body is read to its end, and closed otherwise.
    """
    headers = {"Accept-Encoding": "identity", **headers}
    try:
        response = _follow_redirects(method, uri, headers)
        try:
            _raise_for_status(response)
            yield response
        finally:
            response.close()
    except (LocationValueError, InvalidHeader) as error:
        raise OSError(errno.EINVAL, redacted(str(error))) from error
    except MaxRetryError as error:
        raise Unavailable(errno.EIO, redacted(str(error.reason or error))) from error
    except HTTPError as error:
        raise Unavailable(errno.EIO, redacted(str(error))) from error


def _follow_redirects(method: str, uri: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """Return the first response that is no redirect, before its body is read."""
    place = uri
    for _ in range(_REDIRECTS + 1):
        response = _pool().request(method, place, headers=headers, preload_content=False, decode_content=False)
        if not (location := response.get_redirect_location()):
            return response
        if 0 <= (_length(response) or 0) <= _PIECE:
            response.drain_conn()
        response.close()
        place = urljoin(place, location)
        _check_redirect(uri, place)
    raise OSError(errno.ELOOP, f"more than {_REDIRECTS} redirects")


def _check_redirect(uri: str, place: str) -> None:
    """Raise OSError if a server sends this client to a place that only this client may reach.

    urllib3 parses the addresses, as it does for the request: another parser may see another host.
    """
    to, host = parse_url(place), parse_url(uri).host
    if to.scheme not in ("http", "https") or to.auth is not None:
        raise OSError(errno.EINVAL, f"the server redirects to {to.scheme}://{to.host}, which is not allowed")
    if to.host != host and _is_private(to.host) and not _is_private(host):
        raise OSError(errno.EINVAL, f"the server redirects to {to.host}, which is in a private network")


def _is_private(host: str | None) -> bool:
    """Return whether a host has an address that is not public: of this machine, a private network or a link.

    A host without an address counts as private.
    """
    try:
        found = {str(one[4][0]).partition("%")[0] for one in socket.getaddrinfo((host or "").strip("[]"), None)}
    except (OSError, UnicodeError):
        return True
    return any(not _is_public(ipaddress.ip_address(address)) for address in found)


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) % 2**32).is_global
        if address.sixtofour:
            return False
    return address.is_global


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
    encoding = response.headers.get("Content-Encoding", "")
    if any(one.strip().lower() in response.CONTENT_DECODERS for one in encoding.split(",")):
        # It is not decoded: a few bytes may be a thousand times as large.
        raise OSError(errno.EINVAL, f"the server compresses the object ({encoding}), although it was asked not to")


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
