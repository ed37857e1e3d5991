"""Checks of sources and outputs, on a real S3 server and a disk, with a proxy that makes the server fail."""

import re
import socket
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import obstore
import pytest

from inpaint_encode.stores import s3 as clients
from inpaint_encode.stores import storage
from inpaint_encode.stores.s3 import forget_clients
from inpaint_encode.tools.doctor import stores
from inpaint_encode.tools.doctor.stores import PROBE_PREFIX, check_output, check_source, check_stores
from tests.buckets import point_clients_at
from tests.outputs import files_of
from tests.proxy import FaultyProxy


@pytest.fixture
def prefix(s3, request):
    return s3.uri("doctor", re.sub(r"\W", "-", request.node.name))


@pytest.fixture
def network(s3, monkeypatch):
    """A proxy in front of the S3 server, for all requests of the test."""
    with FaultyProxy(s3) as proxy:
        point_clients_at(proxy.environment, monkeypatch)
        yield proxy
    forget_clients()


@pytest.fixture
def environment(s3, monkeypatch):
    """Return a function that changes environment variables, and forgets clients that used the old ones."""

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        forget_clients()

    yield change
    forget_clients()


class TestSources:
    def test_existing_prefix_and_file_are_read(self, prefix, tmp_path):
        storage.write(f"{prefix}/a/0.png", b"")
        storage.write(f"{prefix}/a/1.png", bytes(100_000))
        assert check_source(prefix).found.startswith("listed, the first page (2) in ")
        assert "; 65.5 kB read in " in check_source(f"{prefix}/").found
        assert check_source(f"{prefix}/a/1.png").found.startswith("an object of 100.0 kB; 65.5 kB read")
        (tmp_path / "list.csv").write_text("image,mask\n")
        for path in (tmp_path, tmp_path / "list.csv"):
            assert check_source(str(path)).level == "ok"

    def test_missing_prefix_and_file_are_problems(self, s3, prefix, tmp_path):
        for uri in (prefix, f"{prefix}/none.csv", "s3://no-such-bucket/images", str(tmp_path / "none")):
            finding = check_source(uri)
            assert (finding.level, finding.check) == ("problem", uri)
            assert "check the spelling" in finding.advice
        assert check_source("ftp://host/images").level == "problem"
        (tmp_path / "empty").mkdir()
        assert check_source(str(tmp_path / "empty")).found == "cannot be read (the folder is empty)"

    def test_signed_url_is_read_without_head_request(self, s3, prefix):
        storage.write(f"{prefix}/a.png", b"123")
        bucket, _, key = f"{prefix}/a.png".removeprefix("s3://").partition("/")
        client = clients.botocore_client(storage.DEFAULT_ACCESS)
        url = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key})
        with pytest.raises(PermissionError):
            storage.stat(url)
        assert check_source(url).found.startswith("an object; 3 bytes read in ")

    def test_denied_source_is_a_problem(self, s3, prefix, environment):
        storage.write(f"{prefix}/a.png", b"1")
        environment(AWS_SECRET_ACCESS_KEY="wrong")
        finding = check_source(prefix)
        assert (finding.level, "cannot be read (the store answered 403" in finding.found) == ("problem", True)
        assert "--anonymous" in finding.advice
        assert "wrong" not in str(finding)


class TestS3:
    def test_credentials_are_found_and_not_printed(self, s3, environment, tmp_path):
        finding = stores._check_credentials()
        assert finding == ("ok", "credentials", "found in: env", "")
        environment(AWS_SECRET_ACCESS_KEY=None)
        finding = stores._check_credentials()
        assert (finding.level, "missing: AWS_SECRET_ACCESS_KEY" in finding.found) == ("problem", True)
        environment(AWS_ACCESS_KEY_ID=None, AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"))
        assert stores._check_credentials().level == "warning"
        environment(AWS_PROFILE="nobody", AWS_CONFIG_FILE=str(tmp_path / "none"))
        finding = stores._check_credentials()
        assert (finding.level, "(nobody) could not be found" in finding.found) == ("problem", True)

    def test_unreachable_server_gets_one_request(self, s3, environment, shell):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        environment(AWS_ENDPOINT_URL=nowhere)
        begun = datetime.now(UTC)
        findings = list(check_stores([s3.uri("a")], s3.uri("b")))
        assert datetime.now(UTC) - begun < timedelta(seconds=storage.RETRY_BUDGET_S / 2)
        assert {finding.check: finding.level for finding in findings} == {"credentials": "ok", "S3 server": "problem"}
        assert nowhere in findings[1].found and "AWS_ENDPOINT_URL" in findings[1].advice

    def test_wrong_clock_is_found(self, s3, network):
        levels = {0: "ok", 120: "warning", -120: "warning", 890: "warning", 910: "problem", 3_600: "problem"}
        for ahead, level in levels.items():
            network.clock_s = ahead
            finding = stores._check_server(s3.uri("a"))
            assert (finding.level, finding.check) == (level, "S3 server")
            assert finding.found.endswith("clocks agree") == (ahead == 0)
        assert re.search(r"this machine's clock is 3,(?:59\d|600) s behind", finding.found)


class TestOutput:
    def test_bucket_is_checked_and_left_empty(self, prefix):
        (finding,) = check_output(prefix)
        assert (finding.level, "conditional writes work" in finding.found) == ("ok", True)
        assert files_of(prefix) == []

    def test_disk_is_checked_and_new_folders_are_removed(self, tmp_path):
        findings = list(check_output(str(tmp_path / "new/deep")))
        assert [finding.level for finding in findings] == ["ok", "ok"]
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "kept").mkdir()
        assert [finding.level for finding in check_output(str(tmp_path / "kept"))] == ["ok", "ok"]
        assert list((tmp_path / "kept").iterdir()) == []

    @pytest.mark.parametrize(
        ("ignored", "sentences"),
        [
            ({"if-none-match"}, ["ignores If-None-Match"]),
            ({"if-match"}, ["ignores If-Match"]),
            ({"if-none-match", "if-match"}, ["ignores If-None-Match", "ignores If-Match"]),
        ],
    )
    def test_store_that_ignores_conditions_is_a_problem(self, prefix, network, ignored, sentences):
        network.ignored = ignored
        (finding,) = check_output(prefix)
        assert finding.level == "problem"
        assert re.findall(r"ignores [\w-]+", finding.found) == sentences
        assert "two runs could overwrite each other" in finding.advice
        network.ignored = set()
        assert files_of(prefix) == []

    def test_output_that_cannot_be_written_is_a_problem(self, s3, prefix, network, tmp_path):
        network.share, network.kinds, network.only = 1.0, ("denied",), lambda method, _: method == "PUT"
        (finding,) = check_output(prefix)
        assert finding.found == "cannot be written (the store answered 403 AccessDenied Injected.)"
        assert "write and delete" in finding.advice
        network.share = 0.0
        (tmp_path / "file").touch()
        for uri in ("s3://nobodys-bucket/out", "/proc/none", str(tmp_path / "file" / "out"), "gs://bucket/out"):
            assert "problem" in [finding.level for finding in check_output(uri)], uri
        with pytest.raises(FileNotFoundError):
            list(storage.list_objects("s3://nobodys-bucket"))

    def test_object_that_cannot_be_deleted_is_named(self, prefix, network):
        network.share, network.kinds, network.only = 1.0, ("denied",), lambda method, _: method == "DELETE"
        (finding,) = check_output(prefix)
        assert (finding.level, "write and delete" in finding.advice) == ("problem", True)
        network.share = 0.0
        (left,) = files_of(prefix)
        assert left.startswith(PROBE_PREFIX)
        assert finding.found.endswith(f"; {prefix}/{left} could not be deleted: delete it yourself")

    def test_number_of_requests_does_not_depend_on_the_output(self, prefix, network):
        """A page of a listing has 1,000 objects."""
        bucket, _, path = prefix.removeprefix("s3://").partition("/")
        store, requests = clients.connect(bucket), []
        for count in (0, 1_100):
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda at: obstore.put(store, f"{path}/{at:04d}.parquet", b"1"), range(count)))
            before = network.counts["requests"]
            assert [finding.level for finding in check_output(prefix)] == ["ok"]
            requests.append(network.counts["requests"] - before)
        assert requests[0] == requests[1] > 8
