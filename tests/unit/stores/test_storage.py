"""Storage on a real S3 server and on a disk: the same verbs, the same promises, and what faults may do to them."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar
from uuid import uuid4

import obstore
import pytest
import stamina

from inpaint_encode.demo.s3server import LocalS3
from inpaint_encode.stores import s3 as clients
from inpaint_encode.stores import storage
from inpaint_encode.stores.storage import ABSENT, Conflict, Unavailable
from tests.proxy import KINDS, FaultyProxy

ODD_NAMES = [
    "plain.png", "two words.png", "trail .png", "ümlaut.png", "日本.png", "😀.png", "h#sh", "100%", "p%20c", "a+b",
    "a..b", "..x", "q?x=1&y=2", "[x]*", "til~de", "'q'\"", "semi;colon", "@$!", "{b}^`|", "dot.", "a,b=c", "<x>",
    "file?versionId=1",
]  # fmt: skip


LONGEST_WAIT = 2.0
"""Between two tries within the first second, with room for a busy machine."""


@pytest.fixture(params=["s3", "disk"])
def prefix(request, tmp_path) -> str:
    """An unused prefix, as `storage.normalize_uri` spells it."""
    return bucket_prefix(request.getfixturevalue("s3")) if request.param == "s3" else str(tmp_path / "files")


@pytest.fixture(scope="class")
def network(s3, request) -> Iterator[FaultyProxy]:
    """For a class of tests, every S3 request of this process goes through one proxy."""
    with pytest.MonkeyPatch.context() as monkeypatch, FaultyProxy(s3) as running:
        for name, seconds in getattr(request.cls, "time_outs", {}).items():
            monkeypatch.setattr(clients, name, seconds)
        point_clients_at(running.environment, monkeypatch)
        yield running
    forget_clients()


@pytest.fixture
def proxy(network) -> FaultyProxy:
    """The network, without faults yet."""
    network.share, network.kinds, network.stall_s, network.only = 0.0, KINDS, 0.1, lambda method, path: True
    network.counts.clear()
    return network


@pytest.fixture
def quick_budget(monkeypatch) -> None:
    """Storage gives up after the first try, or soon after."""
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)


def bucket_prefix(server: LocalS3) -> str:
    return server.uri("storage", uuid4().hex)


def forget_clients() -> None:
    for made in (clients._store, clients._botocore, clients._s3fs, clients._session):
        made.cache_clear()


def point_clients_at(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    forget_clients()


def in_threads(call: Callable[[int], object], count: int = 16) -> list[object]:
    """Call with 0 to count - 1 all at once; what each returned or raised."""
    start = threading.Barrier(count)

    def one(number: int) -> object:
        start.wait()
        try:
            return call(number)
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def listed(prefix: str) -> dict[str, tuple[int, str]]:
    """Size and version by path; every path once."""
    rows = [row for page in storage.list_objects(prefix) for row in zip(*page[:3], strict=True)]
    assert len({path for path, _, _ in rows}) == len(rows)
    return {path: (size, version) for path, size, version in rows}


def fill(prefix: str, names: list[str]) -> None:
    """Make small objects fast."""
    if not prefix.startswith("s3://"):
        Path(prefix).mkdir(parents=True)
        for name in names:
            Path(prefix, name).write_bytes(b"1")
        return
    bucket, _, path = prefix.removeprefix("s3://").partition("/")
    put = stamina.retry(on=obstore.exceptions.BaseError, attempts=4)(obstore.put)  # a busy machine resets connections
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(clients.connect(bucket), f"{path}/{name}", b"1"), names))


def timed(call: Callable[[], object]) -> tuple[float, type]:
    """How long it took, and the type of what it raised."""
    start = time.monotonic()
    try:
        call()
    except Exception as error:
        return time.monotonic() - start, type(error)
    return time.monotonic() - start, type(None)


def verbs(uri: str) -> dict[str, Callable[[], object]]:
    return {
        "list": lambda: list(storage.list_objects(uri.rpartition("/")[0])),
        "read": lambda: storage.read(uri),
        "read_range": lambda: storage.read_range(uri, 0, 500),
        "write": lambda: storage.write(uri, b"x" * 1000),
        "create": lambda: storage.write(f"{uri}-{uuid4().hex}", b"x" * 1000, expect=ABSENT),
        "delete": lambda: storage.delete(f"{uri}-none"),
    }


def run_python(code: str, *arguments: object, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


class TestEveryBackend:
    @pytest.mark.parametrize("size", [0, 1, 12_000_000])
    def test_bytes_come_back_under_one_version(self, prefix, size):
        data = os.urandom(size)
        version = storage.write(f"{prefix}/a/b.bin", data)
        assert storage.read(f"{prefix}/a/b.bin") == (data, version)
        assert listed(prefix) == {"a/b.bin": (size, version)}

    @pytest.mark.parametrize("size", [0, 99, 100, 101, 300_000])
    def test_the_start_is_as_long_as_asked_or_all_there_is(self, prefix, size):
        data = os.urandom(size)
        storage.write(f"{prefix}/x", data)
        assert storage.read_range(f"{prefix}/x", 0, 100).data == data[:100]

    def test_every_new_content_is_a_new_version_even_within_a_millisecond(self, prefix):
        versions = in_threads(lambda number: storage.write(f"{prefix}/x", b"%04d" % number))
        assert len(set(versions)) == 16
        data, version = storage.read(f"{prefix}/x")
        assert version == versions[int(data)]

    def test_odd_names_are_written_listed_read_and_deleted(self, prefix):
        folder = f"{prefix}/sp ace #%41+ü"
        sizes = {name: len(name.encode()) for name in ODD_NAMES}
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: storage.write(f"{folder}/{name}", name.encode()), ODD_NAMES))
        assert {path: size for path, (size, _) in listed(folder).items()} == sizes
        assert {path.rpartition("/")[2] for path in listed(prefix)} == sizes.keys()
        assert [name for name in ODD_NAMES if storage.read(f"{folder}/{name}").data != name.encode()] == []
        for name in ODD_NAMES:
            storage.delete(f"{folder}/{name}")
        assert listed(prefix) == {}

    def test_a_listing_goes_through_folders_and_not_through_longer_names(self, prefix):
        for name in ("ab/x", "ab/c/d/y", "abc/x", "ab.txt", "ab-x/z"):
            storage.write(f"{prefix}/{name}", b"1")
        assert listed(f"{prefix}/ab").keys() == {"x", "c/d/y"}
        assert listed(f"{prefix}/a") == {}
        assert listed(prefix).keys() == {"ab/x", "ab/c/d/y", "abc/x", "ab.txt", "ab-x/z"}

    def test_an_unused_prefix_lists_nothing(self, prefix):
        assert listed(prefix) == {}

    def test_more_objects_than_a_page_are_listed_once_each(self, prefix):
        names = [f"{number:05d} #%+ü.png" for number in range(1100)]
        fill(prefix, names)
        assert sorted(listed(prefix)) == names

    def test_what_is_not_there_is_not_found_and_may_be_deleted(self, prefix):
        with pytest.raises(FileNotFoundError):
            storage.read(f"{prefix}/none")
        with pytest.raises(FileNotFoundError):
            storage.read_range(f"{prefix}/none", 0, 100)
        storage.delete(f"{prefix}/none")
        storage.write(f"{prefix}/x", b"1")
        storage.delete(f"{prefix}/x")
        with pytest.raises(FileNotFoundError):
            storage.read(f"{prefix}/x")


class TestExpectedVersions:
    def test_only_the_expected_version_is_written_over(self, prefix):
        uri = f"{prefix}/x"
        first = storage.write(uri, b"first", expect=ABSENT)
        second = storage.write(uri, b"second", expect=first)
        for expect in (ABSENT, first, '"no-such-version"'):
            with pytest.raises(Conflict):
                storage.write(uri, b"third", expect=expect)
        assert storage.read(uri) == (b"second", second)

    def test_a_version_of_nothing_conflicts_and_makes_nothing(self, prefix):
        with pytest.raises(Conflict):
            storage.write(f"{prefix}/x", b"1", expect='"some-version"')
        assert listed(prefix) == {}

    def test_of_16_who_create_one_object_one_wins(self, prefix):
        for uri in rounds(prefix):
            outcomes = in_threads(lambda number: storage.write(uri, b"by %02d" % number, expect=ABSENT))  # noqa: B023
            self.assert_one_won(uri, outcomes)

    def test_of_16_who_replace_one_version_one_wins(self, prefix):
        for uri in rounds(prefix):
            version = storage.write(uri, b"of old")
            outcomes = in_threads(lambda number: storage.write(uri, b"by %03d" % number, expect=version))  # noqa: B023
            self.assert_one_won(uri, outcomes)

    def assert_one_won(self, uri: str, outcomes: list[object]) -> None:
        winners = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, str)]
        assert len(winners) == 1, outcomes
        assert {type(outcome) for outcome in outcomes} == {str, Conflict}
        data, version = storage.read(uri)
        assert (int(data.split()[-1]), version) == (winners[0], outcomes[winners[0]])
        assert len(listed(uri.rpartition("/")[0])) == 1


def rounds(prefix: str) -> list[str]:
    """Names to race for, one on S3, where the races are the server's, and more on a disk, where they are ours."""
    return [f"{prefix}/{number}/x" for number in range(1 if prefix.startswith("s3://") else 60)]


class TestS3:
    def test_a_bucket_that_is_not_there_is_not_found(self, s3):
        for call in (lambda: listed("s3://no-such-bucket/x"), lambda: storage.read("s3://no-such-bucket/x")):
            with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
                call()

    def test_folder_markers_are_no_trouble(self, s3):
        prefix = bucket_prefix(s3)
        bucket, _, path = prefix.removeprefix("s3://").partition("/")
        for marker in (f"{path}/", f"{path}/sub/"):
            clients._s3fs().call_s3("put_object", Bucket=bucket, Key=marker, Body=b"")
        storage.write(f"{prefix}/sub/x", b"1")
        assert listed(prefix).keys() - {"sub"} == {"sub/x"}

    def test_names_that_the_reader_cannot_take_do_not_end_a_listing(self, s3, monkeypatch):
        monkeypatch.setattr(clients, "_PAGE", 3)
        prefix = bucket_prefix(s3)
        fill(prefix, names := [f"{number}.png" for number in range(10)])
        for key in ("4\t.png", "\x7f.png"):
            name = prefix.removeprefix(f"s3://{s3.bucket}/")
            clients._s3fs().call_s3("put_object", Bucket=s3.bucket, Key=f"{name}/{key}", Body=b"1")
        pages = list(storage.list_objects(prefix))
        assert [path for page in pages for path in page.paths] == names
        assert [name for page in pages for name in page.unreadable] == [r"'4\t.png'", r"'\x7f.png'"]

    def test_a_name_that_cannot_be_sent_is_an_error_and_not_waited_for(self, s3):
        calls = [lambda: storage.read(s3.uri("a//b")), lambda: storage.write("s3://Not_a_bucket!/x", b"")]
        for call in calls:
            with pytest.raises(OSError, match=r"segment|bucket name") as raised:
                call()
            assert not isinstance(raised.value, Unavailable)

    @pytest.mark.parametrize("changed", [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobody"}])
    def test_wrong_credentials_are_refused_by_every_verb_at_once(self, s3, monkeypatch, changed):
        point_clients_at(changed, monkeypatch)
        before = storage.retry_count()
        for call in verbs(s3.uri("x")).values():
            with pytest.raises(PermissionError, match="store answered 403"):
                call()
        forget_clients()
        assert storage.retry_count() == before

    def test_nothing_listening_is_unavailable_after_the_budget(self, s3, monkeypatch):
        monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        point_clients_at({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}, monkeypatch)
        calls = list(verbs(s3.uri("x")).values())
        outcomes = in_threads(lambda number: timed(calls[number]), len(calls))
        forget_clients()
        assert {kind for _, kind in outcomes} == {Unavailable}
        assert all(0.5 < seconds < 0.5 + LONGEST_WAIT for seconds, _ in outcomes), outcomes

    def test_a_server_that_stops_reading_ends_a_write(self, s3, monkeypatch, quick_budget):
        monkeypatch.setattr(clients, "_CALL_S", 0.5)
        monkeypatch.setattr(clients, "_SLOWEST_WRITE", 2**26)
        with socket.create_server(("127.0.0.1", 0)) as deaf:
            point_clients_at({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}"}, monkeypatch)
            with pytest.raises(Unavailable, match="no answer in time"):
                storage.write(s3.uri("x"), bytes(2**25))
        forget_clients()

    def test_a_fork_of_a_process_that_has_read_reads_the_same(self, s3):
        code = """
import os, signal, sys
from inpaint_encode.stores import storage
uri, names = sys.argv[1], ["a", "b/c", "empty"]
for name in names:
    storage.write(f"{uri}/{name}", name.encode() if name != "empty" else b"")

def everything():
    listed = {row for page in storage.list_objects(uri) for row in zip(*page[:3], strict=True)}
    whole = [(storage.read(f"{uri}/{name}"), storage.stat(f"{uri}/{name}")) for name in names]
    errors = []
    for call in (storage.read, storage.stat, lambda uri: storage.read_range(uri, 0, 9)):
        try:
            call(f"{uri}/none")
        except OSError as error:
            errors.append(type(error))
    try:
        storage.read(f"{uri}/b/c", at_most=2)
    except OSError as error:
        errors.append((type(error), error.strerror))
    return listed, whole, [storage.read_range(f"{uri}/{name}", 1, 2) for name in names], errors

before = everything()
child = os.fork()
if not child:
    signal.alarm(30)
    print([one for one in zip(everything(), before) if one[0] != one[1]], flush=True)
    os._exit(0)
print(os.waitpid(child, 0)[1], before[3])
"""
        done = run_python(code, bucket_prefix(s3))
        assert (done.returncode, done.stderr) == (0, "")
        differences, outcome = done.stdout.splitlines()
        assert differences == "[]"
        assert outcome.startswith("0 ")
        assert (outcome.count("FileNotFoundError"), outcome.count("TooLarge")) == (3, 1)

    def test_many_threads_may_begin_at_once(self, s3):
        code = (
            "import sys; from concurrent.futures import ThreadPoolExecutor; from inpaint_encode.stores import storage\n"
            "def one(n):\n"
            "    version = storage.write(f'{sys.argv[1]}/{n}', b'%d' % n, expect='')\n"
            "    assert storage.read(f'{sys.argv[1]}/{n}') == (b'%d' % n, version)\n"
            "list(ThreadPoolExecutor(16).map(one, range(48)))"
        )
        done = run_python(code, bucket_prefix(s3))
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


class TestDisk:
    def test_links_are_listed_as_files_and_followed_to_folders_but_not_in_a_circle(self, tmp_path):
        fill(str(tmp_path / "files"), ["a", "b"])
        storage.write(f"{tmp_path}/others/c/d", b"1")
        for name, target in [("dead", "nowhere"), ("self", "self"), ("folder", "../others"), ("up", "..")]:
            (tmp_path / "files" / name).symlink_to(target)
        (tmp_path / "others" / "c" / "back").symlink_to("..")
        assert listed(str(tmp_path / "files")).keys() == {"a", "b", "dead", "self", "folder/c/d"}

    def test_a_name_that_is_no_text_is_set_apart(self, tmp_path):
        fill(str(tmp_path / "files"), ["a"])
        Path(os.fsdecode(os.fsencode(tmp_path / "files") + b"/\xfcb.png")).write_bytes(b"1")
        (page,) = storage.list_objects(str(tmp_path / "files"))
        assert (page.paths, page.unreadable) == (["a"], (r"'\udcfcb.png'",))

    def test_a_folder_that_may_not_be_read_is_an_error(self, tmp_path):
        (tmp_path / "closed").mkdir(mode=0o000)
        code = (
            "import os, sys; from inpaint_encode.stores import storage\n"
            "if os.geteuid() == 0: os.seteuid(65534)\n"
            "try: print(list(storage.list_objects(sys.argv[1])))\n"
            "except PermissionError: print('refused')"
        )
        assert run_python(code, tmp_path / "closed").stdout == "refused\n"

    def test_a_file_system_that_is_full_leaves_the_older_object_and_nothing_else(self, tmp_path):
        storage.write(f"{tmp_path}/old", b"whole")
        code = (
            "import resource, signal, sys; from inpaint_encode.stores import storage\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))\n"
            "for name in ('old', 'new'):\n"
            "    try: storage.write(f'{sys.argv[1]}/{name}', bytes(3_000_000))\n"
            "    except OSError as error: print(error.strerror)"
        )
        assert run_python(code, tmp_path).stdout == "File too large\n" * 2
        assert [path.name for path in tmp_path.iterdir()] == ["old"]
        assert storage.read(f"{tmp_path}/old").data == b"whole"

    def test_a_writer_that_is_killed_leaves_at_most_what_is_never_listed(self, tmp_path):
        imports = "import sys; from inpaint_encode.stores import storage"
        code = f"{imports}; storage.write(sys.argv[1] + '/x', bytes(400_000_000))"
        writer = subprocess.Popen([sys.executable, "-c", code, tmp_path])
        while not any(path.stat().st_size for path in tmp_path.iterdir()):
            assert writer.poll() is None
            time.sleep(0.001)
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        assert [path.name.startswith(storage.TEMPORARY) for path in tmp_path.iterdir()] == [True]
        assert listed(str(tmp_path)) == {}
        storage.write(f"{tmp_path}/x", b"1", expect=ABSENT)


class TestProxy:
    """The tool itself passes on what it must not touch."""

    def test_large_bodies_pass_whole_in_both_directions(self, proxy, s3):
        uri, data = f"{bucket_prefix(s3)}/big", os.urandom(30_000_000)
        version = storage.write(uri, data)
        assert storage.read(uri) == (data, version)
        assert proxy.counts["requests"] == 2

    def test_chunks_trailers_and_a_client_that_waits_for_its_turn_pass(self, proxy, s3):
        uri = f"{bucket_prefix(s3)}/chunked"
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        signer = clients._session().create_client("s3", "us-east-1", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        target = signer.generate_presigned_url("put_object", {"Bucket": bucket, "Key": key})
        host, _, path = target.removeprefix("http://").partition("/")
        head = f"PUT /{path} HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
        with socket.create_connection(host.split(":"), timeout=5) as connection:
            connection.sendall(head.encode())
            assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
            connection.sendall(b"3\r\nabc\r\n4\r\ndefg\r\n0\r\nX-Trailer: 1\r\n\r\n")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert storage.read(uri).data == b"abcdefg"

    def test_what_is_held_arrives_when_released(self, proxy, s3):
        prefix = bucket_prefix(s3)
        proxy.hold(lambda method, path: method == "PUT" and path.endswith("/late x"))
        with ThreadPoolExecutor() as pool:
            late = pool.submit(storage.write, f"{prefix}/late x", b"late", expect=ABSENT)
            while not proxy.counts["held"]:
                time.sleep(0.01)
            storage.write(f"{prefix}/late x2", b"in time")
            assert listed(prefix).keys() == {"late x2"} and not late.done()
            proxy.release()
            version = late.result()
        assert storage.read(f"{prefix}/late x") == (b"late", version)


class TestFaults:
    time_outs: ClassVar = {"_ANSWER_S": 0.4, "_CALL_S": 3.0}

    def test_a_fifth_of_all_requests_at_fault_is_got_over(self, proxy, s3):
        prefix, before = bucket_prefix(s3), storage.retry_count()
        proxy.share = 0.2

        def work(number: int) -> int:
            uri, data = f"{prefix}/{number}/x", os.urandom(5000)
            version = storage.write(uri, data)
            assert storage.read(uri) == (data, version)
            assert listed(f"{prefix}/{number}") == {"x": (5000, version)}
            return number

        assert in_threads(work, 102) == list(range(102))
        assert proxy.counts["requests"] > 300
        assert all(proxy.counts[kind] > 3 for kind in KINDS), proxy.counts
        assert storage.retry_count() - before > 30

    def test_a_listing_goes_on_where_a_fault_stopped_it(self, proxy, s3):
        prefix, names = bucket_prefix(s3), [f"{number:05d} #%+ü.png" for number in range(1100)]
        fill(prefix, names)
        pages = storage.list_objects(prefix)
        first = next(pages).paths
        proxy.share, proxy.kinds, before = 1.0, ("cut", "slow_down"), storage.retry_count()
        threading.Timer(0.3, setattr, (proxy, "share", 0.0)).start()
        rest = [path for page in pages for path in page.paths]
        assert len(first) < 1100 and storage.retry_count() > before
        assert sorted(first + rest) == names

    def test_when_all_is_at_fault_every_verb_ends_after_its_budget(self, proxy, s3, monkeypatch):
        monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.5)
        proxy.share, proxy.stall_s = 1.0, 30.0
        calls = list(verbs(f"{bucket_prefix(s3)}/x").values())
        outcomes = in_threads(lambda number: timed(calls[number]), len(calls))
        assert {kind for _, kind in outcomes} == {Unavailable}
        time_out = 2 * clients._ANSWER_S  # s3fs may send twice
        assert all(0.5 < seconds < 0.5 + LONGEST_WAIT + time_out for seconds, _ in outcomes), outcomes

    @pytest.mark.parametrize("kind", [*KINDS, "internal_error", "busy"])
    def test_errors_are_one_line_and_tell_no_secret(self, proxy, s3, quick_budget, kind):
        uri = f"{bucket_prefix(s3)}/x"
        storage.write(uri, b"x" * 1000)
        proxy.share, proxy.kinds, proxy.stall_s = 1.0, (kind,), 30.0
        calls = list(verbs(uri).values())
        for error in in_threads(lambda number: calls[number](), len(calls)):
            assert type(error) is Unavailable
            assert 10 < len(error.strerror) < 250 and "\n" not in error.strerror and "Debug" not in error.strerror
            assert not {*s3.environment.values()} & {*re.split(r"[\s\"'=&]+", error.strerror)}

    @pytest.mark.parametrize("kind", ["internal_error", "busy"])
    def test_an_answer_that_may_pass_is_tried_again_even_for_a_condition(self, proxy, s3, kind):
        proxy.kinds, proxy.share, proxy.only = (kind,), 1.0, first_put()
        uri = f"{bucket_prefix(s3)}/x"
        version = storage.write(uri, b"1", expect=ABSENT)
        assert storage.read(uri) == (b"1", version)
        assert proxy.counts[kind] == 1

    def test_a_token_that_has_expired_is_a_refusal(self, proxy, s3):
        proxy.kinds, proxy.share = ("expired",), 1.0
        for call in verbs(s3.uri("x")).values():
            with pytest.raises(PermissionError, match="ExpiredToken"):
                call()

    def test_a_version_of_nothing_conflicts_on_a_store_that_answers_404(self, proxy, s3):
        proxy.kinds, proxy.share = ("gone",), 1.0
        with pytest.raises(Conflict):
            storage.write(s3.uri("x"), b"1", expect='"some-version"')

    def test_a_body_that_stops_is_given_up_and_a_slow_one_is_not(self, proxy, s3, quick_budget):
        uri, data = f"{bucket_prefix(s3)}/x", os.urandom(1_000_000)
        storage.write(uri, data)
        proxy.share, proxy.kinds, proxy.stall_s = 1.0, ("slow",), 0.9
        assert storage.read(uri).data == data
        proxy.kinds, proxy.stall_s = ("hang",), 30.0
        start = time.monotonic()
        with pytest.raises(Unavailable):
            storage.read(uri)
        assert 0.4 <= time.monotonic() - start < 2.5


class TestAnswersThatNeverCome:
    def test_a_created_object_conflicts_with_itself_or_is_ours(self, proxy, s3):
        proxy.kinds, proxy.share, proxy.only = ("lost",), 1.0, first_put()
        uri = f"{bucket_prefix(s3)}/x"
        with contextlib.suppress(Conflict):
            storage.write(uri, b"ours", expect=ABSENT)
        assert proxy.counts["lost"] == 1
        assert storage.read(uri).data == b"ours"
        with pytest.raises(Conflict):
            storage.write(uri, b"other", expect=ABSENT)

    def test_of_6_who_create_one_object_one_at_most_is_told_so_and_it_never_changes(self, proxy, s3):
        uri = f"{bucket_prefix(s3)}/x"
        proxy.kinds, proxy.share, proxy.only = ("lost",), 0.5, lambda method, path: method == "PUT"
        seen = set()

        def create(number: int) -> str | None:
            try:
                return storage.write(uri, b"by %02d" % number, expect=ABSENT)
            except Conflict:
                return None
            finally:
                seen.add(storage.read(uri))

        outcomes = in_threads(create, 6)
        assert proxy.counts["lost"] > 1
        assert len(seen) == 1
        winners = [(b"by %02d" % number, outcome) for number, outcome in enumerate(outcomes) if outcome]
        assert winners in ([], list(seen)), outcomes

    def test_of_a_put_that_is_cut_no_reader_sees_a_part(self, proxy, s3, quick_budget):
        uri = f"{bucket_prefix(s3)}/x"
        versions = [bytes([number]) * 300_000 for number in range(8)]
        storage.write(uri, versions[0])
        proxy.kinds, proxy.share, proxy.only = ("cut",), 0.7, lambda method, path: method == "PUT"
        with ThreadPoolExecutor() as pool:
            writing = pool.submit(lambda: [try_to_write(uri, data) for data in versions])
            while not writing.done():
                assert storage.read(uri).data in versions
        assert proxy.counts["cut"] > 2
        assert {size for size, _ in listed(uri.rpartition("/")[0]).values()} == {300_000}


def first_put() -> Callable[[str, str], bool]:
    once = iter([True])
    return lambda method, path: method == "PUT" and next(once, False)


def try_to_write(uri: str, data: bytes) -> None:
    with contextlib.suppress(Unavailable):
        storage.write(uri, data)
