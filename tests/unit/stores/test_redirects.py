"""Redirects of web servers reach no private network and send no credentials, whatever the environment has."""

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from inpaint_encode.stores import http, storage


class Redirecting(BaseHTTPRequestHandler):
    """Redirects ``/to?URL`` to that URL; other paths are objects."""

    protocol_version = "HTTP/1.1"
    requests: list[str]

    def do_GET(self):
        self.requests.append(f"{self.path}\n{self.headers}".lower())
        path, _, target = self.path.partition("?")
        self.send_response(302 if path == "/to" else 200)
        if path == "/to":
            self.send_header("Location", unquote(target))
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_):
        pass


@pytest.fixture
def site(monkeypatch, tmp_path):
    """A server, and the requests that it gets; ``.netrc`` and a proxy with a login are set."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password CanAry5ec2e7\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://me:CanAry5ec2e7@127.0.0.1:1")
    for name in ("AWS_SESSION_TOKEN", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "GOOGLE_API_KEY"):
        monkeypatch.setenv(name, "CanAry5ec2e7")
    handler = type("Handler", (Redirecting,), {"requests": []})
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stack.callback(server.shutdown)
        yield f"http://127.0.0.1:{server.server_port}", handler.requests


def test_redirects_are_followed_without_credentials(site):
    address, requests = site
    assert storage.read(f"{address}/to?{address}/to?/object").data == b"ok"
    assert len(requests) == 3
    for one in requests:
        assert "5ec2e7" not in one and "authorization" not in one and "cookie" not in one and "referer" not in one


@pytest.mark.parametrize("target", ["http://me:pw@127.0.0.1/x", "file:///etc/passwd", "ftp://127.0.0.1/x", "s3://b/x"])
def test_redirects_to_logins_and_other_schemes_are_refused(site, target):
    with pytest.raises(OSError, match=r"redirects to .*, which is not allowed") as refused:
        storage.read(f"{site[0]}/to?{target}")
    assert "me:pw" not in str(refused.value)


@pytest.mark.parametrize(
    "target",
    [
        *("169.254.169.254", "127.0.0.1", "10.0.0.1", "192.168.1.1", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]"),
        *("2130706433", "%256c%256fcalhost", "%2531%2536%2539.254.169.254", "[::1%2525lo]", "[64:ff9b::a9fe:a9fe]"),
        *("[2002:7f00:1::]", "no.such.host.invalid"),
    ],
)
def test_a_public_server_cannot_redirect_to_a_private_one(site, monkeypatch, target):
    """``public.example`` stands for a server with a public address."""
    address, requests = site
    port = address.rpartition(":")[2]
    resolve, connect = socket.getaddrinfo, socket.socket.connect

    def resolve_names(host, *args, **options):
        public = host in ("public.example", b"public.example")
        return resolve("93.184.216.34" if public else host, *args, **options)

    def connect_here(self, place):
        return connect(self, ("127.0.0.1", int(port)) if place[0] == "93.184.216.34" else place)

    monkeypatch.setattr(socket, "getaddrinfo", resolve_names)
    monkeypatch.setattr(socket.socket, "connect", connect_here)
    with pytest.raises(OSError, match="which is in a private network"):
        storage.read(f"http://public.example:{port}/to?http://{target}:{port}/object")
    assert len(requests) == 1
    assert storage.read(f"http://public.example:{port}/to?http://public.example:{port}/object").data == b"ok"


def test_private_servers_may_redirect_to_each_other():
    http._check_redirect("http://127.0.0.1/a", "http://[::1]/b")
