"""How a source's store is asked: without credentials, at another endpoint, at the reader's cost, and over HTTP."""

import contextlib
import hashlib
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from inpaint_encode.demo.s3server import LocalS3
from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source, SourceAccess
from inpaint_encode.sources import find_pairs
from inpaint_encode.stores import http, storage
from inpaint_encode.stores import s3 as clients
from inpaint_encode.stores.storage import Unavailable
from tests.proxy import FaultyProxy
from tests.unit.sources.test_parquet_and_tars import found_pairs, noise, sample, write_parquet, write_tar

ANONYMOUS = SourceAccess(anonymous=True)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """A second real S3 server, whose bucket everyone may read; the environment stays the first one's."""
    with pytest.MonkeyPatch.context() as patch, LocalS3(tmp_path_factory.mktemp("public"), "open") as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        forget_clients()
        everything = [f"arn:aws:s3:::{server.bucket}", f"arn:aws:s3:::{server.bucket}/*"]
        allowed = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
        policy = {"Version": "2012-10-17", "Statement": [{**allowed, "Resource": everything}]}
        storage.write(server.uri("images/a.png"), b"an image")
        write_tar(server.uri("tars/x.tar"), sample("a"))
        clients._s3fs().call_s3("put_bucket_policy", Bucket=server.bucket, Policy=json.dumps(policy))
        patch.undo()
        forget_clients()
        yield server
    forget_clients()


def forget_clients() -> None:
    for made in (clients._store, clients._botocore, clients._s3fs, clients._session):
        made.cache_clear()


class TestBuckets:
    def test_anonymous_at_another_endpoint(self, s3, public):
        there = SourceAccess(anonymous=True, endpoint_url=public.endpoint)
        assert storage.read(public.uri("images/a.png"), there).data == b"an image"
        assert storage.stat(public.uri("images/a.png"), there).size == 8
        source = Source(images=public.uri("images"), random_masks=1)
        assert find_pairs(source, there).pairs["key"].to_pylist() == ["a"]
        tars = find_pairs(Source(pairs=public.uri("tars")), there)
        assert tars.pairs["key"].to_pylist() == ["x/a"]
        with pytest.raises(UsageError, match=r"--images s3://open/images cannot be listed"):
            find_pairs(source)

    def test_a_private_bucket_refuses_the_anonymous(self, s3):
        storage.write(s3.uri("access/a.png"), b"1")
        with pytest.raises(PermissionError, match="403 AccessDenied"):
            storage.read(s3.uri("access/a.png"), ANONYMOUS)
        assert storage.read(s3.uri("access/a.png")).data == b"1"

    def test_requester_pays_is_said_in_every_request(self, s3):
        storage.write(s3.uri("access/a.png"), b"1")
        with PayingProxy(s3) as proxy:
            uri, endpoint = s3.uri("access/a.png"), proxy.environment["AWS_ENDPOINT_URL"]
            for pays in (True, False):
                access = SourceAccess(endpoint_url=endpoint, requester_pays=pays)
                storage.read(uri, access), storage.read_range(uri, 0, 1, access), storage.stat(uri, access)
                list(storage.list_objects(s3.uri("access"), access))
        assert proxy.counts["requester"] == 4
        assert proxy.counts["requests"] == 8

    def test_google_s_client_reads_and_lists(self, public):
        """Google's XML interface is what S3 has, as far as reading goes; Google itself is not asked here."""
        access = SourceAccess(anonymous=True, endpoint_url=public.endpoint)
        prefix = public.uri("images").replace("s3://", "gs://")
        version = storage.read(f"{prefix}/a.png", access).version
        assert storage.read_range(f"{prefix}/a.png", 3, 5, access) == (b"image", version)
        (page,) = storage.list_objects(prefix, access)
        assert page[:3] == (["a.png"], [8], [version])
        with pytest.raises(FileNotFoundError):
            storage.read(f"{prefix}/none", access)
        with pytest.raises(ValueError, match="only s3://"):
            storage.normalize_uri(prefix)

    @pytest.mark.parametrize("given", ["localhost:9000", "s3://x", "http://key@host", "https://host/path"])
    def test_an_endpoint_that_is_none(self, given):
        with pytest.raises(ValidationError, match="--endpoint-url"):
            SourceAccess(endpoint_url=given)


class PayingProxy(FaultyProxy):
    """Counts the requests that say who pays."""

    async def _forward(self, request, *, cut):
        self.counts["requester"] += b"x-amz-request-payer: requester" in request.head.lower()
        return await super()._forward(request, cut=cut)


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


@pytest.fixture
def site(tmp_path):
    """The address of a real HTTP server of ``tmp_path``."""
    handler = type("Handler", (Site,), {"folder": tmp_path, "seen": Counter()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class TestHttp:
    def test_objects_and_ranges_with_their_etags(self, site, tmp_path):
        data = noise("http")
        (tmp_path / "a b.png").write_bytes(data)
        uri = f"{site}/a%20b.png?size=large&x=1"
        tag = f'"{hashlib.md5(data).hexdigest()}"'
        (tmp_path / "a%20b.png").write_bytes(data)
        assert storage.read(uri) == (data, tag)
        assert storage.read_range(uri, 100, 50) == (data[100:150], tag)
        assert storage.read_range(uri, 5_990, 50) == (data[5_990:], tag)
        assert storage.stat(uri) == (6_000, tag)
        assert storage.read(f"{site}/moved/a%20b.png").data == data
        (tmp_path / "empty").write_bytes(b"")
        assert storage.read_range(f"{site}/empty", 0, 10).data == b""

    def test_a_server_without_ranges_gives_the_start_alone(self, site, tmp_path):
        (tmp_path / "plain").write_bytes(b"0123456789")
        assert storage.read_range(f"{site}/plain", 0, 3).data == b"012"
        with pytest.raises(OSError, match="gives no ranges"):
            storage.read_range(f"{site}/plain", 2, 3)

    def test_of_a_whole_answer_no_more_is_read_than_was_asked(self, site, monkeypatch):
        """The rest never comes: the server waits with it until the client has gone."""
        monkeypatch.setattr(Site, "do_GET", half_of_an_answer)
        monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
        begun = time.monotonic()
        assert storage.read_range(f"{site}/x", 0, 3).data == b"012"
        assert time.monotonic() - begun < 3

    def test_a_body_that_trickles_is_given_up(self, site, monkeypatch):
        monkeypatch.setattr(Site, "do_GET", half_of_an_answer)
        monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
        monkeypatch.setattr(http, "_READ_S", 0)
        with pytest.raises(Unavailable, match="that was not all"):
            storage.read(f"{site}/x")

    @pytest.mark.parametrize(
        ("path", "error"),
        [
            ("none", FileNotFoundError),
            ("status/404", FileNotFoundError),
            ("status/410", FileNotFoundError),
            ("status/401", PermissionError),
            ("status/403", PermissionError),
            ("status/500", Unavailable),
            ("status/429", Unavailable),
            ("status/418", OSError),
            ("cut", Unavailable),
        ],
    )
    def test_every_error_has_its_name(self, site, path, error, monkeypatch):
        monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
        with pytest.raises(OSError, match=r"answered \d+|incomplete|Incomplete") as raised:
            storage.read(f"{site}/{path}")
        assert type(raised.value) is error

    def test_nothing_listening_is_unavailable(self, monkeypatch):
        monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
        with pytest.raises(Unavailable, match="Connection refused") as raised:
            storage.read("http://127.0.0.1:1/x?X-Amz-Signature=5ec2e7")
        assert "5ec2e7" not in str(raised.value)

    def test_lists_rows_and_tars_behind_http(self, site, tmp_path):
        (tmp_path / "list.csv").write_text(f"image,mask\na.jpg,{site}/m/a.png?v=2\n")
        (pair,) = found_pairs(Source(pairs=f"{site}/list.csv"))
        assert (pair["key"], pair["image_uri"], pair["mask_uri"]) == ("a", f"{site}/a.jpg", f"{site}/m/a.png?v=2")
        write_tar(f"{tmp_path}/x.tar", sample("s"))
        assert [pair["key"] for pair in found_pairs(Source(pairs=f"{site}/x.tar"))] == ["x/s"]
        write_parquet(f"{tmp_path}/x.parquet", {"image": [noise(1)], "mask": [noise(2)]})
        assert [pair["key"] for pair in found_pairs(Source(pairs=f"{site}/x.parquet"))] == ["x/0"]

    def test_a_prefix_cannot_be_listed(self, site):
        for source in (Source(images=f"{site}/images", random_masks=1), Source(pairs=f"{site}/tars")):
            with pytest.raises(UsageError, match="such a server lists nothing; name its files in a list"):
                find_pairs(source)
