"""The local S3 server serves its own bucket on loopback only and leaves no process and no socket behind."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from s3fs import S3FileSystem

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.demo.s3server import LocalS3

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    with LocalS3(tmp_path_factory.mktemp("s3")) as running:
        yield running


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_in_bucket(server: LocalS3, prefix: str) -> dict[str, bytes]:
    client = S3FileSystem(
        key=server.environment["AWS_ACCESS_KEY_ID"],
        secret=server.environment["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=server.endpoint,
        skip_instance_cache=True,
    )
    root = f"{server.bucket}/{prefix}"
    return {path.removeprefix(f"{root}/"): client.cat_file(path) for path in client.find(root)}


def use(server: LocalS3, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def listening_addresses(pid: int) -> list[str]:
    """Local addresses, in the kernel's hexadecimal, of the process's listening TCP sockets."""
    inodes = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed in the meantime
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    tables = (Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    sockets = [line.split() for table in tables for line in table]
    listening = "0A"
    return [row[1] for row in sockets if row[3] == listening and row[9] in inodes]


class TestLocalS3:
    def test_what_is_uploaded_comes_back(
        self, server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_random_pairs(tmp_path, 8, seed=1)
        use(server, monkeypatch)
        assert upload(tmp_path, server.uri("in", "demo")) == len(contents(tmp_path)) == 16
        assert files_in_bucket(server, "in/demo") == contents(tmp_path)

    def test_two_servers_keep_apart_and_leave_their_objects_only(
        self, server: LocalS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        source, folder = tmp_path / "source", tmp_path / "s3"
        source.mkdir()
        (source / "file").write_bytes(b"of the second")
        with LocalS3(folder, bucket="other") as second:
            use(second, monkeypatch)
            upload(source, second.uri("apart"))
            assert files_in_bucket(second, "apart") == {"file": b"of the second"}
            assert files_in_bucket(server, "apart") == {}
        with LocalS3(folder, bucket="other") as again:
            assert files_in_bucket(again, "apart") == {"file": b"of the second"}
            pid, endpoint = again.pid, again.endpoint
        assert not Path(f"/proc/{pid}").exists()
        with pytest.raises(OSError, match="refused"):
            urlopen(endpoint, timeout=5)
        sockets = re.findall(r"/tmp/seaweedfs\S+\.sock", (folder / "weed.log").read_text())
        assert len(sockets) >= 4
        assert [path for path in sockets if Path(path).exists()] == []

    def test_without_the_key_nothing_is_served(self, server: LocalS3) -> None:
        with pytest.raises(HTTPError, match="403"):
            urlopen(f"{server.endpoint}/{server.bucket}?list-type=2", timeout=5)

    @linux_only
    def test_it_listens_on_loopback_only(self, server: LocalS3) -> None:
        addresses = listening_addresses(server.pid)
        port = int(server.endpoint.rpartition(":")[2])
        assert f"0100007F:{port:04X}" in addresses
        assert {address.partition(":")[0] for address in addresses} == {"0100007F"}

    @linux_only
    def test_a_killed_caller_takes_its_server_along(self, tmp_path: Path) -> None:
        program = (
            "import sys, time; from pathlib import Path; from inpaint_encode.demo.s3server import LocalS3\n"
            "with LocalS3(Path(sys.argv[1])) as server: print(server.pid, flush=True); time.sleep(600)"
        )
        caller = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE)
        with caller:
            pid = int(caller.stdout.readline())
            assert not gone(pid)
            caller.send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 120
        while not gone(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert gone(pid)
