"""A real HTTP file server on loopback."""

import contextlib
import hashlib
import threading
import zlib
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Site(BaseHTTPRequestHandler):
    """A file server with ranges and ETags, and some paths that fail."""

    protocol_version = "HTTP/1.1"
    folder: Path
    seen: Counter

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.seen[self.command] += 1
        path = self.path.partition("?")[0]
        if path.startswith("/status/"):
            self.answer(int(path.removeprefix("/status/")), b"said")
        elif path.startswith("/moved/"):
            self.answer(302, b"", Location=path.removeprefix("/moved"))
        elif path.startswith("/compressed/"):
            self.answer(200, zlib.compress(bytes(2**24), wbits=31), **{"Content-Encoding": path.rpartition("/")[2]})
        elif path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"1")
            self.close_connection = True
        elif (self.folder / path[1:]).is_file():
            self.file((self.folder / path[1:]).read_bytes())
        else:
            self.answer(404, b"")

    def file(self, data):
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        wanted = self.headers.get("Range")
        if wanted is None or "plain" in self.path:
            return self.answer(200, data, ETag=tag)
        start, end = (int(number) for number in wanted.removeprefix("bytes=").split("-"))
        if start >= len(data):
            return self.answer(416, b"", ETag=tag)
        return self.answer(206, data[start : end + 1], ETag=tag)

    def answer(self, status, data, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


def half_of_an_answer(site):
    site.send_response(200)
    site.send_header("Content-Length", "20")
    site.end_headers()
    site.wfile.write(b"0123456789")
    site.wfile.flush()
    site.connection.settimeout(5)
    with contextlib.suppress(OSError):
        site.rfile.read(1)
    site.close_connection = True


@contextlib.contextmanager
def serve(folder: Path) -> Iterator[tuple[str, Counter]]:
    """Yield the address of a server of ``folder``, and its count of requests by method."""
    handler = type("Handler", (Site,), {"folder": folder, "seen": Counter()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.seen
        server.shutdown()
