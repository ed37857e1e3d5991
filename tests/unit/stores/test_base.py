"""Access without credentials, at another endpoint, and at the requester's cost."""

import pytest
from pydantic import ValidationError

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source, SourceAccess
from inpaint_encode.sources import open_source
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import DEFAULT_ACCESS, Access
from tests.buckets import run_python
from tests.proxy import FaultyProxy
from tests.unit.sources.make_sources import read_all

ANONYMOUS = Access(anonymous=True)


def test_anonymous_at_another_endpoint(s3, public):
    there = Access(anonymous=True, endpoint_url=public.endpoint)
    assert storage.read(public.uri("images/a.png"), there).data == b"an image"
    assert storage.stat(public.uri("images/a.png"), there).size == 8
    source = Source(images=public.uri("images"), random_masks=1)
    assert read_all(open_source(source, there))["key"].to_pylist() == ["a"]
    tars = open_source(Source(pairs=public.uri("tars")), there)
    assert read_all(tars)["key"].to_pylist() == ["x/a"]
    with pytest.raises(UsageError, match=r"--images s3://open/images cannot be listed"):
        read_all(open_source(source))


def test_a_private_bucket_denies_anonymous_reads(s3):
    storage.write(s3.uri("access/a.png"), b"1")
    with pytest.raises(PermissionError, match="403 AccessDenied"):
        storage.read(s3.uri("access/a.png"), ANONYMOUS)
    assert storage.read(s3.uri("access/a.png")).data == b"1"


def test_requester_pays_is_sent_with_every_request(s3):
    storage.write(s3.uri("access/a.png"), b"1")
    with PayingProxy(s3) as proxy:
        uri, endpoint = s3.uri("access/a.png"), proxy.environment["AWS_ENDPOINT_URL"]
        for pays in (True, False):
            access = Access(endpoint_url=endpoint, requester_pays=pays)
            storage.read(uri, access), storage.read_range(uri, 0, 1, access), storage.stat(uri, access)
            list(storage.list_objects(s3.uri("access"), access))
    assert proxy.counts["requester"] == 4
    assert proxy.counts["requests"] == 8


class PayingProxy(FaultyProxy):
    """Counts the requests with the header of requester-pays buckets."""

    async def _forward(self, request, *, cut):
        self.counts["requester"] += b"x-amz-request-payer: requester" in request.head.lower()
        return await super()._forward(request, cut=cut)


@pytest.mark.parametrize("given", ["localhost:9000", "s3://x", "http://key@host", "https://host/path"])
def test_an_invalid_endpoint_is_rejected(given):
    with pytest.raises(ValidationError, match="--endpoint-url"):
        SourceAccess(endpoint_url=given)


def test_the_settings_convert_to_access():
    given = {"anonymous": True, "requester_pays": True, "endpoint_url": "http://localhost:9000"}
    assert SourceAccess(**given).to_access() == Access(**given)
    assert SourceAccess().to_access() == DEFAULT_ACCESS


def test_reading_loads_nothing_of_the_job_and_registers_nothing_at_import(s3):
    code = """
import os, sys
registered, os.register_at_fork = [], lambda **handlers: registered.append(handlers.get("after_in_child"))
from inpaint_encode.stores import buckets, http, ranged_file, storage
ours = lambda: sum("inpaint_encode" in getattr(handler, "__module__", "") for handler in registered)
print(ours())
try:
    storage.read(sys.argv[1])
except FileNotFoundError:
    print(ours())
packages = {name.partition(".")[0] for name in sys.modules}
print(packages & {"PIL", "aiobotocore", "cyclopts", "diffusers", "fsspec", "pydantic", "ray", "s3fs", "torch"})
print([name for name in sys.modules if name.startswith("inpaint_encode.settings")])
"""
    done = run_python(code, s3.uri("access/none"))
    assert (done.returncode, done.stderr, done.stdout.splitlines()) == (0, "", ["0", "1", "set()", "[]"])
