"""Objects on a real HTTP server."""

import hashlib
import time

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import open_source
from inpaint_encode.stores import http, retries, storage
from inpaint_encode.stores.storage import Unavailable
from tests.http_site import Site, half_of_an_answer
from tests.unit.sources.make_sources import found_pairs, noise, read_all, sample, write_parquet, write_tar


def test_objects_and_ranges_with_their_etags(site, tmp_path):
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


def test_a_server_without_range_requests_returns_only_starts(site, tmp_path):
    (tmp_path / "plain").write_bytes(b"0123456789")
    assert storage.read_range(f"{site}/plain", 0, 3).data == b"012"
    with pytest.raises(OSError, match="does not support range requests"):
        storage.read_range(f"{site}/plain", 2, 3)


def test_only_the_requested_part_of_a_whole_answer_is_read(site, monkeypatch):
    """The rest never comes: the server waits with it until the client has gone."""
    monkeypatch.setattr(Site, "do_GET", half_of_an_answer)
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    begun = time.monotonic()
    assert storage.read_range(f"{site}/x", 0, 3).data == b"012"
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize("encoding", ["gzip", "X-GZIP", "deflate, gzip"])
def test_a_compressed_body_is_not_decoded(site, encoding):
    for read in (storage.read, lambda uri: storage.read_range(uri, 0, 10)):
        with pytest.raises(OSError, match="the server compresses the object"):
            read(f"{site}/compressed/{encoding.replace(' ', '')}")


def test_a_body_with_an_unknown_encoding_is_read_as_it_is(site):
    assert len(storage.read(f"{site}/compressed/aws-chunked").data) < 20_000


def test_a_slow_body_times_out(site, monkeypatch):
    monkeypatch.setattr(Site, "do_GET", half_of_an_answer)
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    monkeypatch.setattr(http, "READ_S", 0)
    with pytest.raises(Unavailable, match="body was incomplete"):
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
def test_each_status_is_translated(site, path, error, monkeypatch):
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    with pytest.raises(OSError, match=r"answered \d+|incomplete|Incomplete") as raised:
        storage.read(f"{site}/{path}")
    assert type(raised.value) is error


def test_a_closed_port_is_unavailable(monkeypatch):
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    with pytest.raises(Unavailable, match="Connection refused") as raised:
        storage.read("http://127.0.0.1:1/x?X-Amz-Signature=5ec2e7")
    assert "5ec2e7" not in str(raised.value)


def test_manifests_parquet_and_tars(site, tmp_path):
    (tmp_path / "list.csv").write_text(f"image,mask\na.jpg,{site}/m/a.png?v=2\n")
    (pair,) = found_pairs(Source(pairs=f"{site}/list.csv"))
    assert (pair["key"], pair["image_uri"], pair["mask_uri"]) == ("a", f"{site}/a.jpg", f"{site}/m/a.png?v=2")
    write_tar(f"{tmp_path}/x.tar", sample("s"))
    assert [pair["key"] for pair in found_pairs(Source(pairs=f"{site}/x.tar"))] == ["x/s"]
    write_parquet(f"{tmp_path}/x.parquet", {"image": [noise(1)], "mask": [noise(2)]})
    assert [pair["key"] for pair in found_pairs(Source(pairs=f"{site}/x.parquet"))] == ["x/0"]


def test_a_prefix_cannot_be_listed(site):
    for source in (Source(images=f"{site}/images", random_masks=1), Source(pairs=f"{site}/tars")):
        with pytest.raises(UsageError, match="HTTP servers cannot be listed; give a list of pairs with --pairs"):
            read_all(open_source(source))
