"""The demonstration's own parts: its pairs are what they say, its bucket is real and leaves nothing behind."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from s3fs import S3FileSystem

from inpaint_encode.demo.pairs import DemoSet, upload, write_demo_pairs, write_random_pairs
from inpaint_encode.demo.s3server import LocalS3

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoSet]:
    folder = tmp_path_factory.mktemp("pairs")
    return folder, write_demo_pairs(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalS3]:
    with LocalS3(tmp_path_factory.mktemp("s3")) as running:
        yield running


def files_by_key(folder: Path) -> dict[str, Path]:
    files = (path for path in folder.rglob("*") if path.suffix in {".jpg", ".png"})
    return {str(path.relative_to(folder).with_suffix("")): path for path in files}


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
        target = str(descriptor.readlink())
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    tables = (Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6"))
    sockets = [line.split() for table in tables for line in table]
    listening = "0A"
    return [row[1] for row in sockets if row[3] == listening and row[9] in inodes]


class TestDemoPairs:
    def test_keys_on_disk_are_the_stated_ones(self, demo: tuple[Path, DemoSet]) -> None:
        folder, expected = demo
        images, masks = files_by_key(folder / "images"), files_by_key(folder / "masks")
        assert tuple(sorted(images.keys() & masks.keys())) == expected.pairs
        assert tuple(images.keys() - masks.keys()) == expected.unpaired_images
        assert tuple(masks.keys() - images.keys()) == expected.unpaired_masks
        others = [path for path in (folder / "images").rglob("*") if path.suffix not in {".jpg", ".png", ""}]
        assert [str(path.relative_to(folder / "images")) for path in others] == list(expected.ignored_files)

    def test_exactly_the_broken_image_does_not_load(self, demo: tuple[Path, DemoSet]) -> None:
        folder, expected = demo
        unreadable = []
        for key, path in files_by_key(folder / "images").items():
            with Image.open(path) as image:
                try:
                    image.load()
                except OSError:
                    unreadable.append(key)
        assert unreadable == [expected.broken]
        assert expected.broken in expected.pairs
        assert len(expected.pairs) - 1 >= 18

    def test_sizes_formats_and_folders_vary(self, demo: tuple[Path, DemoSet]) -> None:
        folder, expected = demo
        paths = [files_by_key(folder / "images")[key] for key in expected.pairs]
        sizes = {Image.open(path).size for path in paths}
        assert len(sizes) >= 6
        assert sum(width % 8 > 0 or height % 8 > 0 for width, height in sizes) >= 3
        assert min(map(min, sizes)) >= 128 and max(map(max, sizes)) <= 640
        assert {path.suffix for path in paths} == {".jpg", ".png"}
        assert len({path.parent for path in paths}) >= 3

    def test_masks_are_grey_and_only_one_has_another_size(self, demo: tuple[Path, DemoSet]) -> None:
        folder, expected = demo
        images, masks = files_by_key(folder / "images"), files_by_key(folder / "masks")
        other_size, soft = [], []
        for key in expected.pairs:
            mask = Image.open(masks[key])
            assert mask.mode == "L"
            greys = set(np.unique(np.asarray(mask)).tolist())
            assert greys >= {0, 255}
            other_size += [key] * (mask.size != Image.open(images[key]).size)
            soft += [key] * (greys != {0, 255})
        assert len(other_size) == 1
        assert 1 <= len(soft) < len(expected.pairs) / 2

    def test_a_second_call_writes_the_same_bytes(self, demo: tuple[Path, DemoSet], tmp_path: Path) -> None:
        folder, expected = demo
        assert write_demo_pairs(tmp_path) == expected
        assert contents(tmp_path) == contents(folder)


class TestRandomPairs:
    def test_every_key_is_a_readable_pair_within_the_limits(self, tmp_path: Path) -> None:
        keys = write_random_pairs(tmp_path, 60, seed=3, smallest=20, largest=70)
        images, masks = files_by_key(tmp_path / "images"), files_by_key(tmp_path / "masks")
        assert len(set(keys)) == 60
        assert set(keys) == images.keys() == masks.keys()
        other_size = 0
        for key in keys:
            image, mask = Image.open(images[key]), Image.open(masks[key])
            image.load()
            assert mask.mode == "L"
            assert all(20 <= side <= 70 for side in (*image.size, *mask.size))
            other_size += image.size != mask.size
        assert other_size == 10

    def test_the_seed_and_not_the_count_decides_a_pair(self, tmp_path: Path) -> None:
        for name, count, seed in (("few", 5, 1), ("more", 9, 1), ("other", 5, 2)):
            write_random_pairs(tmp_path / name, count, seed=seed)
        few, more, other = (contents(tmp_path / name) for name in ("few", "more", "other"))
        assert few.items() < more.items()
        assert few.items().isdisjoint(other.items())


class TestLocalS3:
    def test_what_is_uploaded_comes_back(
        self, server: LocalS3, demo: tuple[Path, DemoSet], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, _ = demo
        use(server, monkeypatch)
        assert upload(folder, server.uri("in", "demo")) == len(contents(folder))
        assert files_in_bucket(server, "in/demo") == contents(folder)

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


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, inpaint_encode.demo; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "skimage", "s3fs", "PIL", "numpy"} & set(loaded.stdout.split())
