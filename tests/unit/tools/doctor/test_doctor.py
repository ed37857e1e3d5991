"""The command ``doctor``: every check by what is really so, and by what is really wrong, as far as that can be made."""

import json
import os
import platform
import re
import shutil
import socket
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import obstore
import pytest
import torch

from inpaint_encode.stores import s3 as clients
from inpaint_encode.stores import storage
from inpaint_encode.stores.s3 import forget_clients
from inpaint_encode.tools.doctor import device, stores
from inpaint_encode.tools.doctor.device import check_cpu, check_gpus
from inpaint_encode.tools.doctor.machine import (
    FULL,
    Memory,
    check_disk,
    check_memory,
    check_packages,
    check_python,
    check_shared_memory,
    machine,
)
from inpaint_encode.tools.doctor.stores import PROBE, check_clock, check_output, check_source
from tests.buckets import point_clients_at
from tests.outputs import files_of
from tests.proxy import FaultyProxy

GB = 10**9


@pytest.fixture
def prefix(s3, request):
    return s3.uri("doctor", re.sub(r"\W", "-", request.node.name))


@pytest.fixture
def network(s3, monkeypatch):
    """A proxy before the S3 server, through which every request of the test goes."""
    with FaultyProxy(s3) as proxy:
        point_clients_at(proxy.environment, monkeypatch)
        yield proxy
    forget_clients()


@pytest.fixture
def environment(s3, monkeypatch):
    """Change variables of the environment for a test, and have clients notice."""

    def change(**variables):
        for name, value in variables.items():
            monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
        forget_clients()

    yield change
    forget_clients()


def levels(findings):
    return {finding.check: finding.level for finding in findings}


class TestMachine:
    def test_this_one_can_run_the_tests(self):
        found = levels(machine())
        assert list(found) == ["Python", "packages", "memory", "shared memory", "Ray's disk", "weights' disk"]
        assert (found["Python"], found["packages"]) == ("ok", "ok")

    def test_another_python(self):
        assert check_python(">=3.11,<4").level == "ok"
        finding = check_python(">=3.99")
        assert (finding.level, finding.found) == ("problem", f"{platform.python_version()} is not within >=3.99")

    def test_packages_that_are_too_old_or_not_there(self):
        assert check_packages(["numpy>=1", "nothing-like-it>=1; extra == 'demo'"]).found.startswith("1 within")
        finding = check_packages(["numpy>=99", "nothing-like-it>=1", "pyarrow>=1"])
        numpy = __import__("numpy").__version__
        assert finding.level == "problem"
        assert finding.found == f"numpy {numpy}, not >=99, nothing-like-it is missing, not >=1"
        assert "pip install 'numpy>=99' 'nothing-like-it>=1'" in finding.advice

    def test_memory_is_the_container_s_where_that_is_less(self, tmp_path):
        (tmp_path / "meminfo").write_text("MemTotal:       16000000 kB\nMemAvailable:    9000000 kB\n")
        machine_s = Memory(16_000_000 * 1024, 9_000_000 * 1024)
        assert Memory.of_this_machine(tmp_path, tmp_path) == machine_s
        (tmp_path / "memory.max").write_text("max\n")
        assert Memory.of_this_machine(tmp_path, tmp_path) == machine_s
        (tmp_path / "memory.max").write_text(f"{4 * GB}\n")
        (tmp_path / "memory.current").write_text(f"{GB}\n")
        assert Memory.of_this_machine(tmp_path, tmp_path) == Memory(4 * GB, 3 * GB, limited=True)
        (tmp_path / "memory.stat").write_text(f"anon 7\nfile {GB}\ninactive_file {GB // 2}\nactive_file {GB // 4}\n")
        assert Memory.of_this_machine(tmp_path, tmp_path) == Memory(4 * GB, 3 * GB + GB // 4 * 3, limited=True)
        (tmp_path / "memory.max").unlink()
        (tmp_path / "memory").mkdir()
        (tmp_path / "memory/memory.limit_in_bytes").write_text(f"{5 * GB}\n")
        (tmp_path / "memory/memory.usage_in_bytes").write_text(f"{GB}\n")
        assert Memory.of_this_machine(tmp_path, tmp_path) == Memory(5 * GB, 4 * GB, limited=True)
        (tmp_path / "memory/memory.stat").write_text("inactive_file 0\ntotal_inactive_file 5\ntotal_active_file 6\n")
        assert Memory.of_this_machine(tmp_path, tmp_path) == Memory(5 * GB, 4 * GB + 11, limited=True)

    @pytest.mark.parametrize(
        ("memory", "level"),
        [
            (Memory(16 * GB, 8 * GB), "ok"),
            (Memory(16 * GB, 3 * GB), "warning"),
            (Memory(16 * GB, GB), "problem"),
            (Memory(200 * GB, 9 * GB), "problem"),
        ],
    )
    def test_memory_that_is_little(self, memory, level):
        assert check_memory(memory).level == level

    def test_shared_memory_that_is_too_small_for_ray(self, tmp_path):
        there = shutil.disk_usage(tmp_path).free
        assert check_shared_memory(tmp_path, Memory(there, there)).level == "ok"
        finding = check_shared_memory(tmp_path, Memory(9 * there, 9 * there))
        assert (finding.level, "--shm-size=" in finding.advice) == ("warning", True)
        assert check_shared_memory(tmp_path / "none", Memory(GB, GB)).level == "warning"

    def test_a_disk_that_takes_nothing(self, tmp_path):
        assert check_disk("disk", tmp_path / "not/there/yet", "OPTION").level == "ok"
        assert list(tmp_path.iterdir()) == []
        (tmp_path / "file").touch()
        for folder in (tmp_path / "file" / "x", Path("/proc/none")):
            finding = check_disk("disk", folder, "OPTION")
            assert (finding.level, "takes no files" in finding.found) == ("problem", True)
            assert "let OPTION name" in finding.advice

    def test_a_disk_that_is_full(self, tmp_path, monkeypatch):
        """No test can fill a disk: what the system says of it is another number here."""
        usage = namedtuple("usage", "total used free")
        for free, levels_of_both in ((0, ("problem", "problem")), (4 * GB, ("problem", "ok")), (6 * GB, ("ok", "ok"))):
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(100 * GB, 100 * GB - free, free))
            found = check_disk("Ray's", tmp_path, "OPTION", FULL), check_disk("another", tmp_path, "OPTION")
            assert tuple(finding.level for finding in found) == levels_of_both


class TestDevice:
    def test_a_cpu_without_avx2(self):
        assert [check_cpu(vectors, 8).level for vectors in ("AVX512", "AVX2", "DEFAULT")] == ["ok", "ok", "warning"]

    @pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built for CUDA")
    def test_a_driver_and_a_torch_that_cannot_use_it(self, tmp_path):
        (tmp_path / "version").write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65\n")
        (finding,) = check_gpus(tmp_path / "version", given=False)
        assert (finding.level, "is built for CPUs" in finding.found) == ("problem", True)
        assert "torch's build for CUDA" in finding.advice

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_no_gpu_is_a_problem_only_where_one_was_given(self, tmp_path, monkeypatch):
        monkeypatch.delenv(device.LOGICAL_GPUS, raising=False)
        for given, level in ((False, "warning"), (True, "problem")):
            (finding,) = check_gpus(tmp_path / "none", given=given)
            assert (finding.level, "there is no NVIDIA driver" in finding.found) == (level, True)
        monkeypatch.setenv(device.LOGICAL_GPUS, "1")
        (finding,) = check_gpus(tmp_path / "none", given=True)
        assert finding.level == "ok"

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
    def test_each_gpu_computes(self, tmp_path):
        findings = list(check_gpus(tmp_path / "none", given=True))
        assert len(findings) == torch.cuda.device_count()
        assert all("compute capability" in finding.found for finding in findings)
        assert not {"problem"} & set(levels(findings).values())


class TestSources:
    def test_what_is_there(self, prefix, tmp_path):
        storage.write(f"{prefix}/a/0.png", b"")
        storage.write(f"{prefix}/a/1.png", bytes(100_000))
        assert check_source(prefix).found.startswith("listed, the first 2 objects in ")
        assert "; 65.5 kB read in " in check_source(f"{prefix}/").found
        assert check_source(f"{prefix}/a/1.png").found.startswith("an object of 100.0 kB; 65.5 kB read")
        (tmp_path / "list.csv").write_text("image,mask\n")
        for path in (tmp_path, tmp_path / "list.csv"):
            assert check_source(str(path)).level == "ok"

    def test_what_is_not_there(self, s3, prefix, tmp_path):
        for uri in (prefix, f"{prefix}/none.csv", "s3://no-such-bucket/images", str(tmp_path / "none")):
            finding = check_source(uri)
            assert (finding.level, finding.check) == ("problem", uri)
            assert "check the spelling" in finding.advice
        assert check_source("ftp://host/images").level == "problem"
        (tmp_path / "empty").mkdir()
        assert check_source(str(tmp_path / "empty")).found == "cannot be read: the folder is empty"

    def test_a_url_that_is_signed_for_reading_alone(self, s3, prefix):
        storage.write(f"{prefix}/a.png", b"123")
        bucket, _, key = f"{prefix}/a.png".removeprefix("s3://").partition("/")
        client = clients.botocore_client(storage.DEFAULT_ACCESS)
        url = client.generate_presigned_url("get_object", {"Bucket": bucket, "Key": key})
        with pytest.raises(PermissionError):
            storage.stat(url)
        assert check_source(url).found.startswith("an object; 3 bytes read in ")

    def test_what_may_not_be_read(self, s3, prefix, environment):
        storage.write(f"{prefix}/a.png", b"1")
        environment(AWS_SECRET_ACCESS_KEY="wrong")
        finding = check_source(prefix)
        assert (finding.level, "cannot be read: the store answered 403" in finding.found) == ("problem", True)
        assert "--anonymous" in finding.advice
        assert "wrong" not in str(finding)


class TestS3:
    def test_credentials_are_found_and_not_told(self, s3, environment, tmp_path):
        finding = stores._check_credentials()
        assert finding == ("ok", "credentials", "found by env", "")
        environment(AWS_SECRET_ACCESS_KEY=None)
        finding = stores._check_credentials()
        assert (finding.level, "missing: AWS_SECRET_ACCESS_KEY" in finding.found) == ("problem", True)
        environment(AWS_ACCESS_KEY_ID=None, AWS_SHARED_CREDENTIALS_FILE=str(tmp_path / "none"))
        assert stores._check_credentials().level == "warning"
        environment(AWS_PROFILE="nobody", AWS_CONFIG_FILE=str(tmp_path / "none"))
        finding = stores._check_credentials()
        assert (finding.level, "(nobody) could not be found" in finding.found) == ("problem", True)

    def test_a_server_that_is_not_there_is_asked_once(self, s3, environment, shell):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}"
        environment(AWS_ENDPOINT_URL=nowhere)
        begun = datetime.now(UTC)
        findings = list(stores.stores([s3.uri("a")], s3.uri("b")))
        assert datetime.now(UTC) - begun < timedelta(seconds=storage.RETRY_BUDGET_S / 2)
        assert levels(findings) == {"credentials": "ok", "S3 server": "problem"}
        assert nowhere in findings[1].found and "AWS_ENDPOINT_URL" in findings[1].advice

    def test_a_clock_that_is_off(self, s3, network):
        for ahead, level in ((0, "ok"), (120, "warning"), (-120, "warning"), (3_600, "problem")):
            network.clock_s = ahead
            finding = stores._check_server(s3.uri("a"))
            assert (finding.level, finding.check) == (level, "S3 server")
        assert re.search(r"this clock is 3,(?:59\d|600) s behind", finding.found)

    def test_a_second_is_no_skew_for_a_clock_that_tells_seconds(self):
        now = datetime.now(UTC)
        assert check_clock("s", now - timedelta(seconds=0.9), now, 0.1).found.endswith("the clocks agree")
        assert check_clock("s", now - timedelta(seconds=899), now, 0).level == "warning"
        assert check_clock("s", now - timedelta(seconds=902), now, 0).level == "problem"


class TestOutput:
    def test_a_bucket_keeps_its_promises_and_nothing_else(self, prefix):
        (finding,) = check_output(prefix)
        assert (finding.level, "under conditions" in finding.found) == ("ok", True)
        assert files_of(prefix) == []

    def test_a_disk_too_and_no_folder_stays(self, tmp_path):
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
    def test_a_store_that_ignores_conditions(self, prefix, network, ignored, sentences):
        network.ignored = ignored
        (finding,) = check_output(prefix)
        assert finding.level == "problem"
        assert re.findall(r"ignores [\w-]+", finding.found) == sentences
        assert "two runs may spoil each other" in finding.advice
        network.ignored = set()
        assert files_of(prefix) == []

    def test_where_nothing_may_be_written(self, s3, prefix, network, tmp_path):
        network.share, network.kinds, network.only = 1.0, ("denied",), lambda method, _: method == "PUT"
        (finding,) = check_output(prefix)
        assert finding.found == "cannot be written: the store answered 403 AccessDenied Injected."
        assert "write and delete" in finding.advice
        network.share = 0.0
        (tmp_path / "file").touch()
        for uri in ("s3://nobodys-bucket/out", "/proc/none", str(tmp_path / "file" / "out"), "gs://bucket/out"):
            assert "problem" in [finding.level for finding in check_output(uri)], uri
        with pytest.raises(FileNotFoundError):
            list(storage.list_objects("s3://nobodys-bucket"))

    def test_what_cannot_be_deleted_is_said(self, prefix, network):
        network.share, network.kinds, network.only = 1.0, ("denied",), lambda method, _: method == "DELETE"
        (finding,) = check_output(prefix)
        assert (finding.level, "write and delete" in finding.advice) == ("problem", True)
        network.share = 0.0
        (left,) = files_of(prefix)
        assert left.startswith(PROBE)
        assert finding.found.endswith(f"; {prefix}/{left} is left there, remove it")

    def test_requests_do_not_grow_with_what_is_there(self, prefix, network):
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


class TestCommand:
    def test_without_a_problem(self, prefix, shell, tmp_path):
        storage.write(f"{prefix}/images/a.png", b"1")
        done = shell("doctor", f"{prefix}/images", "--output", f"{prefix}/out", "--no-ray")
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stdout.splitlines()
        assert re.fullmatch(r"no problem, \d+ warnings?", lines[-1])
        assert any(line.startswith(f"ok      {prefix}/out: written") for line in lines)
        assert os.environ["AWS_SECRET_ACCESS_KEY"] not in done.stdout + done.stderr

    def test_with_one(self, tmp_path, shell):
        done = shell("doctor", tmp_path / "none", "--no-ray")
        assert done.returncode == 1
        assert f"problem {tmp_path}/none: cannot be read: No such file or directory" in done.stdout
        assert re.search(r"error: 1 problem, \d+ warnings?; each says what to do", done.stderr)

    def test_a_job_s_file_names_the_output(self, tmp_path, shell):
        (tmp_path / "job.toml").write_text(f"output = {json.dumps(str(tmp_path / 'out'))}\nvae = 'x'\n")
        done = shell("doctor", "--config", tmp_path / "job.toml", "--no-ray")
        assert f"{tmp_path}/out: written" in done.stdout
