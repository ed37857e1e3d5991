"""Which faults of fetching reject a pair, and which are the store's and end the job."""

import threading
from collections import Counter
from http.server import ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.core.chunk import Reject, _fetch_error
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.job.stages import fetch_stage
from inpaint_encode.job.transfer import unpack_chunk, unpack_decoded
from inpaint_encode.output import plan
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.schema import WORK
from inpaint_encode.sources import NullValue, PairReader
from inpaint_encode.stores import retries, storage
from inpaint_encode.stores.base import Access
from inpaint_encode.stores.s3 import forget_clients
from tests.buckets import point_clients_at
from tests.http_site import Site
from tests.proxy import FaultyProxy


@pytest.fixture
def host(tmp_path):
    """The address of a real HTTP server of ``tmp_path``, and what it was asked."""
    handler = type("Handler", (Site,), {"folder": tmp_path, "seen": Counter()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.seen
        server.shutdown()


def outcome(tmp_path, uris, *, keep=False, chunk_rows=100, chunk=0, access=Access()):  # noqa: B008
    """``error`` of each pair of a chunk, and what ends the job; each image is its own mask."""
    table = {"key": [str(n) for n in range(len(uris))], "image_uri": uris, "mask_uri": uris}
    table |= {"mask_index": pa.array([0] * len(uris), pa.int32()), "image_bytes": [0] * len(uris)}
    table |= {"line": pa.array(range(len(uris)), pa.int32())}
    table |= {"image_version": [""] * len(uris), "mask_version": [""] * len(uris)}
    part = str(tmp_path / f"part-{chunk_rows}-{len(uris)}-{hash(tuple(uris))}.parquet")
    planned = plan.split_into_chunks(pa.table(table), chunk_rows, 2**30)
    storage.write(part, parquet_bytes(planned))
    about = {"chunk": plan.chunk_name(0, chunk), "hash": plan.summarize(planned)[chunk].hash}
    work = pa.Table.from_pylist([{**about, "revision": 0, "part": part, "keep": keep}], WORK)
    decoder = PairDecoder(sizing=Sizing(multiple=8))
    row = fetch_stage(work, decoder=decoder, access=access, max_bytes=2**20, threads=2)
    _, _, fatal, (decoded,) = unpack_chunk(row, "decoded")
    return [one.error if isinstance(one, Reject) else None for one in unpack_decoded(decoded)], fatal


def twice(site, length):
    site.send_response(200)
    site.send_header("Content-Length", length)
    site.end_headers()
    site.close_connection = True


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)


class TestObjectsOfTheirOwn:
    def test_one_alone_in_its_chunk_is_rejected(self, tmp_path, host):
        folder = tmp_path / "folder.png"
        folder.mkdir()
        for uri, error in {
            str(folder): "fetch.failed",
            f"{host[0]}/status/400": "fetch.failed",
            f"{host[0]}/status/403": "fetch.denied",
            f"{tmp_path}/a\0b.png": "fetch.failed",
        }.items():
            assert outcome(tmp_path, [uri]) == ([error], None)

    @pytest.mark.parametrize("length", ["99, 99", "98, 99"])
    def test_an_answer_that_states_its_length_twice(self, tmp_path, host, monkeypatch, length):
        monkeypatch.setattr(Site, "answer", lambda site, *_: twice(site, length))
        errors, fatal = outcome(tmp_path, [f"{host[0]}/status/200"])
        assert (errors, fatal) == (["fetch.failed"], None)

    def test_a_dead_host_does_not_condemn_another(self, tmp_path, host, quick):
        (tmp_path / "a.png").write_bytes(b"no image")
        uris = [*(f"http://127.0.0.1:1/{n}.png" for n in range(5)), f"{host[0]}/a.png"]
        assert outcome(tmp_path, uris) == ([*["fetch.unavailable"] * 5, "image.not_an_image"], None)

    def test_a_loop_of_redirections_is_not_waited_for(self, tmp_path, host, monkeypatch):
        monkeypatch.setattr(
            Site, "do_GET", lambda site: (site.seen.update(["GET"]), site.answer(302, b"", Location="/"))
        )
        assert outcome(tmp_path, [f"{host[0]}/a.png"]) == (["fetch.failed"], None)
        assert host[1]["GET"] == 6


def test_rows_without_bytes(tmp_path):
    """A value's path may be absolute and is held to the limit; one of no known scheme is refused; null is missing."""
    (tmp_path / "a.png").write_bytes(b"1234")
    paths = [str(tmp_path / "a.png"), f"file://{tmp_path}/a.png", "a.png", "ftp://x/a.png"]
    values = [*({"bytes": None, "path": path} for path in paths), None]
    pq.write_table(pa.table({"mask": pa.array(values)}), tmp_path / "x.parquet")
    reader = PairReader(max_bytes=4)
    uris = [f"{tmp_path}/x.parquet#row={row}&column=mask" for row in range(5)]
    assert [reader.read(uri).data for uri in uris[:3]] == [b"1234"] * 3
    with pytest.raises(OSError, match=r"ftp://x/a\.png is not supported"):
        reader.read(uris[3])
    reader.max_bytes = 3
    with pytest.raises(storage.TooLarge):
        reader.read(uris[0])
    with pytest.raises(NullValue) as missing:
        reader.read(uris[4])
    assert _fetch_error(uris[4], missing.value, "mask").error == "mask.missing"
    assert _fetch_error(uris[4], missing.value, "image").error == "fetch.not_found"


class TestBuckets:
    @pytest.fixture
    def denying(self, s3, monkeypatch):
        """URIs of a bucket whose objects named ``denied`` are refused, and the proxy that does so."""
        with FaultyProxy(s3, share=1.0, kinds=("denied",), only=lambda method, path: "denied" in path) as proxy:
            point_clients_at(proxy.environment, monkeypatch)
            for name in ("denied/0.png", "denied/1.png", "fine/2.png", "fine/3.png"):
                proxy.share = 0.0
                storage.write(s3.uri(f"fetch/{name}"), b"no image")
            proxy.share = 1.0
            yield (
                [s3.uri(f"fetch/denied/{n}.png") for n in range(2)],
                [s3.uri(f"fetch/fine/{n}.png") for n in (2, 3)],
                proxy,
            )
        forget_clients()

    def test_a_chunk_of_refused_objects_is_rejected_where_others_are_served(self, tmp_path, denying):
        denied, fine, _ = denying
        assert outcome(tmp_path, denied + fine, chunk_rows=2) == (["fetch.denied"] * 2, None)

    def test_only_rejects_tried_again(self, tmp_path, denying):
        denied, _, _ = denying
        assert outcome(tmp_path, denied, chunk_rows=1, keep=True) == (["fetch.denied"], None)

    def test_a_store_that_refuses_all_objects_ends_the_job(self, tmp_path, denying):
        denied, _, _ = denying
        errors, fatal = outcome(tmp_path, denied, chunk_rows=1)
        assert errors == ["fetch.denied"]
        assert "denies every request" in fatal

    @pytest.mark.parametrize("keep", [False, True])
    def test_expired_credentials_end_the_job(self, tmp_path, denying, keep):
        denied, fine, proxy = denying
        proxy.only, proxy.kinds = (lambda method, path: True), ("expired",)
        assert "denies every request" in outcome(tmp_path, denied + fine, chunk_rows=2, chunk=1, keep=keep)[1]

    def test_a_store_that_answers_nobody_ends_the_job(self, tmp_path, denying, quick):
        denied, fine, proxy = denying
        proxy.only, proxy.kinds = (lambda method, path: path.endswith(".png")), ("slow_down",)
        assert "does not answer" in outcome(tmp_path, denied + fine, chunk_rows=2)[1]
