"""An HTTP proxy on loopback in front of the S3 server that injects faults."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from inpaint_encode.demo.s3server import LocalS3

KINDS = ("slow_down", "reset", "stall", "cut", "hang", "lost")
"""``reset``: RST, and the server sees nothing. ``stall``: no answer for ``stall_s`` seconds, then the end of the
connection; the server sees nothing. ``cut``: half of a PUT's body reaches the server, or half of another's answer
the client, then the connection ends. ``hang``: half of the answer comes, then nothing for ``stall_s`` seconds,
then the end. ``lost``: the server does what it is asked, and its answer never comes. Not among them unless asked
for: ``slow``, a whole answer in ten pieces over ``stall_s`` seconds, and the other errors that S3 may answer."""

_ERRORS = {
    "slow_down": (503, "SlowDown"),
    "internal_error": (500, "InternalError"),
    "busy": (409, "ConditionalRequestConflict"),
    "expired": (400, "ExpiredToken"),
    "denied": (403, "AccessDenied"),
    "gone": (404, "NoSuchKey"),
}

Wanted = Callable[[str, str], bool]
"""Says of a method and a path (``/bucket/key``, unquoted, without the query) whether it is meant."""

_BUFFER = 2**20


class _Message(NamedTuple):
    """A request or an answer, whole and as it came; ``head`` ends with the empty line."""

    head: bytes
    body: bytes

    @property
    def start(self) -> list[str]:
        return self.head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")

    @property
    def path(self) -> str:
        return unquote(urlsplit(self.start[1]).path)


class FaultyProxy:
    """Passes requests on to ``server`` with all their headers, except for a share that meets a fault.

    ``share``, ``kinds``, ``stall_s`` and ``only`` may be changed while it runs; faults come in turn. ``counts``
    has ``requests``, ``held`` and the kinds of the faults. Whole bodies are held in memory. With ``clock_s`` the
    server's clock is ahead by so many seconds, and of the conditional headers in ``ignored`` it takes no notice.
    """

    def __init__(
        self,
        server: LocalS3,
        *,
        share: float = 0.0,
        seed: int = 0,
        kinds: Sequence[str] = KINDS,
        stall_s: float = 1.0,
        only: Wanted = lambda method, path: True,
    ) -> None:
        self.share, self.kinds, self.stall_s, self.only = share, kinds, stall_s, only
        self.clock_s = 0.0
        self.ignored: set[str] = set()
        self.counts: Counter[str] = Counter()
        self._environment = server.environment
        self._upstream = urlsplit(server.endpoint)
        self._random = random.Random(seed)
        self._faults = 0
        self._hold: Wanted | None = None
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="proxy", daemon=True)

    @property
    def environment(self) -> dict[str, str]:
        """The server's, with the proxy as the endpoint."""
        return {**self._environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._listener.getsockname()[1]}"}

    def __enter__(self) -> FaultyProxy:
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def hold(self, wanted: Wanted) -> None:
        """Let requests that are ``wanted`` wait, whole but unseen by the server, until `release`."""
        self._hold = wanted

    def release(self) -> None:
        """Pass on what is held, even if its client has gone by now."""
        self._hold = None

    async def _serve(self) -> None:
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, sock=self._listener, limit=_BUFFER)
        self._ready.set()
        await self._ended.wait()
        server.close()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, EOFError, asyncio.CancelledError):
            pass  # how connections end; an IncompleteReadError is an EOFError
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Pass one request and its answer on; whether the client's connection is still good."""
        request = await _read_request(reader, writer)
        fault = self._draw(request)
        if fault in {*_ERRORS, "reset", "stall"}:
            return await self._refuse(fault, writer)
        await self._wait_while_held(request)
        if self.ignored & _headers(request.head).keys():
            request = _signed_without(self.ignored, request, self._environment)
        answer = await self._forward(request, cut=fault == "cut")
        if answer is None or fault == "lost":
            return False
        answer = _with_clock(answer, self.clock_s)
        if fault == "slow":
            await self._trickle(answer, writer)
        elif fault is None:
            writer.write(answer.head + answer.body)
        else:
            writer.write(_first_half(answer))
        await writer.drain()
        if fault == "hang":
            await asyncio.sleep(self.stall_s)
        return fault in {None, "slow"}

    async def _forward(self, request: _Message, *, cut: bool) -> _Message | None:
        """Ask the server; with ``cut``, a request that has a body loses half of it on the way."""
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port, limit=_BUFFER)
        try:
            half = len(request.body) // 2 if cut and request.body else None
            writer.write(request.head + request.body[:half])
            await writer.drain()
            return await _read_answer(reader, request.start[0]) if half is None else None
        finally:
            writer.close()

    async def _trickle(self, answer: _Message, writer: asyncio.StreamWriter) -> None:
        whole, pieces = answer.head + answer.body, 10
        step = len(whole) // pieces + 1
        for at in range(0, len(whole), step):
            writer.write(whole[at : at + step])
            await writer.drain()
            await asyncio.sleep(self.stall_s / pieces)

    def _draw(self, request: _Message) -> str | None:
        """Whether this request meets a fault, and which."""
        self.counts["requests"] += 1
        if not self.only(request.start[0], request.path) or self._random.random() >= self.share:
            return None
        kind = self.kinds[self._faults % len(self.kinds)]
        self._faults += 1
        self.counts[kind] += 1
        return kind

    async def _refuse(self, fault: str, writer: asyncio.StreamWriter) -> bool:
        if fault in _ERRORS:
            status, code = _ERRORS[fault]
            body = f"<Error><Code>{code}</Code><Message>Injected.</Message></Error>"
            head = f"HTTP/1.1 {status} {code}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}"
            writer.write(f"{head}\r\n\r\n{body}".encode())
            return True
        if fault == "reset":
            at_once = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            writer.transport.abort()
        else:
            await asyncio.sleep(self.stall_s)
        return False

    async def _wait_while_held(self, request: _Message) -> None:
        held = self._is_held(request)
        self.counts["held"] += held
        while held:
            await asyncio.sleep(0.01)
            held = self._is_held(request)

    def _is_held(self, request: _Message) -> bool:
        wanted = self._hold
        return wanted is not None and wanted(request.start[0], request.path)


def _signed_without(ignored: set[str], request: _Message, environment: dict[str, str]) -> _Message:
    """The request as a client sends it who does not know these headers; they are a part of what is signed."""
    headers = {name: value for name, value in _headers(request.head).items() if name not in ignored}
    host, method, target = headers.pop("host"), *request.start[:2]
    kept = {name: value for name, value in headers.items() if name.startswith(("x-amz-meta", "content-"))}
    made = AWSRequest(method, f"http://{host}{target}", kept, request.body)
    key = Credentials(environment["AWS_ACCESS_KEY_ID"], environment["AWS_SECRET_ACCESS_KEY"])
    S3SigV4Auth(key, "s3", environment["AWS_REGION"]).add_auth(made)
    lines = [
        f"{method} {target} HTTP/1.1",
        f"host: {host}",
        *(f"{name}: {value}" for name, value in made.headers.items()),
    ]
    return _Message("\r\n".join([*lines, "", ""]).encode("latin-1"), request.body)


def _with_clock(answer: _Message, seconds: float) -> _Message:
    """The answer, dated so many seconds later."""
    told = _headers(answer.head).get("date")
    if not seconds or not told:
        return answer
    late = format_datetime(parsedate_to_datetime(told) + timedelta(seconds=seconds), usegmt=True)
    return answer._replace(head=answer.head.replace(told.encode(), late.encode()))


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> _Message:
    """Read a request whole; a client that waits for a word before it sends its body gets that word from here."""
    head = await reader.readuntil(b"\r\n\r\n")
    if "expect" in _headers(head):
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
    return _Message(head, await _read_body(reader, _headers(head), until_end=False))


async def _read_answer(reader: asyncio.StreamReader, method: str) -> _Message:
    head = await reader.readuntil(b"\r\n\r\n")
    status = head.split(b" ", 2)[1]
    if method == "HEAD" or status in {b"204", b"304"}:
        return _Message(head, b"")
    return _Message(head, await _read_body(reader, _headers(head), until_end=True))


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:-2]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str], *, until_end: bool) -> bytes:
    """Read a body as it is framed; one without a frame is empty, or ends with the connection."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return await _read_chunks(reader)
    if "content-length" in headers:
        return await reader.readexactly(int(headers["content-length"]))
    return await reader.read() if until_end else b""


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """Read up to the end of the trailers, frames included."""
    parts = []
    size = 1
    while size:
        parts.append(await reader.readuntil(b"\r\n"))
        size = int(parts[-1].split(b";")[0], 16)
        if size:
            parts.append(await reader.readexactly(size + 2))
    while not parts or parts[-1] != b"\r\n":
        parts.append(await reader.readuntil(b"\r\n"))
    return b"".join(parts)


def _first_half(answer: _Message) -> bytes:
    if answer.body:
        return answer.head + answer.body[: len(answer.body) // 2]
    return answer.head[: len(answer.head) // 2]
