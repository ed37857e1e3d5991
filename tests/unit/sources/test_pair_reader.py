"""``--max-bytes``: of an object that has more, no more is fetched than what was on its way with the answer's head."""

import contextlib
import socket
import socketserver
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from inpaint_encode.sources import PairReader
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access

LARGE = 48 * 2**20
IN_FLIGHT = 16 * 2**20
"""What sockets may hold before the reader goes away."""


class Relay(socketserver.ThreadingTCPServer):
    """Passes bytes between clients and a server, and counts those that come back."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relayed)
        host, port = upstream.removeprefix("http://").split(":")
        self.upstream, self.answered = (host, int(port)), 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Relayed(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.create_connection(self.server.upstream) as there, contextlib.suppress(OSError):
            threading.Thread(target=self.up, args=(there,), daemon=True).start()
            while data := there.recv(2**16):
                self.request.sendall(data)
                self.server.answered += len(data)

    def up(self, there: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.request.recv(2**16):
                there.sendall(data)


@pytest.fixture
def site(tmp_path):
    """An HTTP server of a folder."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def check(relay: Relay, uri: str, access: Access) -> None:
    with pytest.raises(storage.TooLarge, match="has 50,331,648 bytes; --max-bytes allows 50,331,647"):
        storage.read(uri, access, LARGE - 1)
    assert relay.answered < IN_FLIGHT
    assert len(storage.read(uri, access, LARGE).data) == LARGE
    with pytest.raises(storage.TooLarge):
        PairReader(access, 1_000).read(uri)


def test_on_s3(s3):
    uri = s3.uri("limits", "large.png")
    storage.write(uri, bytes(LARGE))
    with Relay(s3.environment["AWS_ENDPOINT_URL"]) as relay:
        check(relay, uri, Access(endpoint_url=relay.url))
        relay.shutdown()


def test_behind_http(site, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(LARGE))
    with Relay(site) as relay:
        check(relay, f"{relay.url}/large.png", storage.DEFAULT_ACCESS)
        relay.shutdown()


def test_on_a_disk_and_of_what_is_small_enough(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(b"12345")
    assert PairReader(storage.DEFAULT_ACCESS, 5).read(str(path)).data == b"12345"
    with pytest.raises(storage.TooLarge, match="has 5 bytes; --max-bytes allows 4"):
        PairReader(storage.DEFAULT_ACCESS, 4).read(str(path))
