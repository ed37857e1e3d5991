"""Prefixes, a faulty network in front of the S3 server, and a public bucket."""

import json
from collections.abc import Iterator

import pytest

from inpaint_encode.demo.s3server import LocalS3
from inpaint_encode.stores import clients as shared
from inpaint_encode.stores import retries, storage
from inpaint_encode.stores import s3 as s3_store
from tests.buckets import bucket_prefix, point_clients_at
from tests.http_site import serve
from tests.proxy import KINDS, FaultyProxy
from tests.unit.sources.make_sources import sample, write_tar


@pytest.fixture(params=["s3", "disk"])
def prefix(request, tmp_path) -> str:
    """An unused prefix, as `storage.normalize_uri` spells it."""
    return bucket_prefix(request.getfixturevalue("s3")) if request.param == "s3" else str(tmp_path / "files")


@pytest.fixture(scope="class")
def network(s3, request) -> Iterator[FaultyProxy]:
    """Every S3 request of this process goes through one proxy, for a class of tests."""
    with pytest.MonkeyPatch.context() as monkeypatch, FaultyProxy(s3) as running:
        if getattr(request.cls, "short_time_outs", False):
            monkeypatch.setattr(s3_store, "ANSWER_S", 0.4)
            monkeypatch.setattr(shared, "ANSWER_S", 0.4)
            monkeypatch.setattr(s3_store, "_CALL_S", 3.0)
        point_clients_at(running.environment, monkeypatch)
        yield running
    s3_store.forget_clients()


@pytest.fixture
def proxy(network) -> FaultyProxy:
    """Return the network without faults."""
    network.share, network.kinds, network.stall_s, network.only = 0.0, KINDS, 0.1, lambda method, path: True
    network.counts.clear()
    return network


@pytest.fixture
def quick_budget(monkeypatch) -> None:
    """Storage stops retrying after the first attempt, or soon after."""
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)


@pytest.fixture(scope="module")
def public(tmp_path_factory):
    """Start a second S3 server with a public bucket; the environment stays that of the first one."""
    with pytest.MonkeyPatch.context() as patch, LocalS3(tmp_path_factory.mktemp("public"), "open") as server:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        s3_store.forget_clients()
        everything = [f"arn:aws:s3:::{server.bucket}", f"arn:aws:s3:::{server.bucket}/*"]
        allowed = {"Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject", "s3:ListBucket"]}
        policy = {"Version": "2012-10-17", "Statement": [{**allowed, "Resource": everything}]}
        storage.write(server.uri("images/a.png"), b"an image")
        write_tar(server.uri("tars/x.tar"), sample("a"))
        s3_store._s3fs().call_s3("put_bucket_policy", Bucket=server.bucket, Policy=json.dumps(policy))
        patch.undo()
        s3_store.forget_clients()
        yield server
    s3_store.forget_clients()


@pytest.fixture
def site(tmp_path) -> Iterator[str]:
    """The address of a real HTTP server of ``tmp_path``."""
    with serve(tmp_path) as (address, _):
        yield address
