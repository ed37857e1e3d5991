"""An HTTP server that plays a stranger's, and notes every request with its headers."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Recorder(BaseHTTPRequestHandler):
    """Answers every GET with the same file, as S3, GCS and a web server do."""

    protocol_version = "HTTP/1.1"
    data = b""
    requests: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.requests.append(f"{self.command} {self.path}\n{self.headers}")
        self.send_response(200)
        for name, value in {"Content-Length": len(self.data), "ETag": '"1"', "Last-Modified": DATE}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.data)

    do_POST = do_PUT = do_GET

    def log_message(self, *_):
        pass


DATE = "Sat, 28 Nov 2026 12:00:00 GMT"


@contextlib.contextmanager
def record(data: bytes) -> Iterator[tuple[str, list[str]]]:
    """Yield the address of a server whose every object is ``data``, and the requests that it gets."""
    handler = type("Handler", (Recorder,), {"data": data, "requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
        server.shutdown()
