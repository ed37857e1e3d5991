"""Reads and listings of buckets: markers, unusual keys, forked processes, and many threads."""

import random
import time

import pytest

from inpaint_encode.stores import buckets, storage
from inpaint_encode.stores import s3 as s3_store
from inpaint_encode.stores.storage import Unavailable
from tests.buckets import bucket_prefix, fill, listed, point_clients_at, run_python
from tests.proxy import FaultyProxy


def test_a_missing_bucket_is_not_found(s3):
    for call in (lambda: listed("s3://no-such-bucket/x"), lambda: storage.read("s3://no-such-bucket/x")):
        with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
            call()


def test_folder_markers_are_skipped(s3):
    prefix = bucket_prefix(s3)
    bucket, _, path = prefix.removeprefix("s3://").partition("/")
    for marker in (f"{path}/", f"{path}/sub/"):
        s3_store._s3fs().call_s3("put_object", Bucket=bucket, Key=marker, Body=b"")
    storage.write(f"{prefix}/sub/x", b"1")
    assert listed(prefix).keys() - {"sub"} == {"sub/x"}


def test_keys_that_obstore_rejects_are_returned_as_unreadable(s3, monkeypatch):
    monkeypatch.setattr(buckets, "_PAGE_SIZE", 3)
    prefix = bucket_prefix(s3)
    fill(prefix, names := [f"{number}.png" for number in range(10)])
    for key in ("4\t.png", "\x7f.png"):
        name = prefix.removeprefix(f"s3://{s3.bucket}/")
        s3_store._s3fs().call_s3("put_object", Bucket=s3.bucket, Key=f"{name}/{key}", Body=b"1")
    pages = list(storage.list_objects(prefix))
    assert [path for page in pages for path in page.paths] == names
    assert [name for page in pages for name in page.unreadable] == [r"'4\t.png'", r"'\x7f.png'"]


FOLDERS = ["a", "a-1", "a.b", "a#%+ü", "b", "b/a", "b/a-1", "b/c/d", "c", "z"]


def random_names(seed: int) -> list[str]:
    """Return names in large and small folders, and beside them; servers may sort some of them in different ways."""
    draw = random.Random(seed)
    sizes = {folder: draw.choice([1, 3, 3, 3, 20, 40]) for folder in ["", *draw.sample(FOLDERS, draw.randint(2, 9))]}
    names = {f"{folder}/m{number:02d}.png".lstrip("/") for folder, size in sizes.items() for number in range(size)}
    small = {f"s{folder:02d}/{number}.png" for folder in range(draw.choice([0, 30])) for number in range(3)}
    return sorted(names | small)


@pytest.fixture
def small_pages(monkeypatch):
    """Divide listings after five objects, and small folders into groups of several folders."""
    monkeypatch.setattr(buckets, "_PAGE_SIZE", 5)
    monkeypatch.setattr(buckets, "_OBJECTS_OF_FOLDER", 1)
    monkeypatch.setattr(buckets, "_PAGES_OF_GROUP", 3)
    monkeypatch.setattr(buckets, "_GROUPS", 2)


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("seed", range(12))
def test_folders_that_are_listed_in_parallel_have_each_object_once(s3, seed):
    prefix, names = bucket_prefix(s3), random_names(seed)
    fill(prefix, names)
    assert sorted(listed(prefix)) == names
    page = next(storage.list_objects(prefix))  # and the rest is not read
    assert 0 < len(page.paths) <= 5


def test_folders_that_are_no_neighbors_are_listed_one_by_one(s3):
    prefix, names = bucket_prefix(s3), [f"{folder}/{number}.png" for folder in "abcdef" for number in range(3)]
    fill(prefix, names)
    parent = buckets.listing(prefix, storage.DEFAULT_ACCESS)
    folders = [f"{parent._folder}{name}/" for name in "cdfba"]
    listings, found = [buckets._NeighborFolders(parent, folders)], []
    while listings:
        listing = listings.pop()
        while page := listing.next_page():
            found += page.paths
        listings += listing.split()
    assert sorted(found) == [name for name in names if name[0] != "e"]


@pytest.mark.usefixtures("small_pages")
def test_parallel_listings_continue_after_faults(s3, monkeypatch):
    prefix, names = bucket_prefix(s3), random_names(3)
    fill(prefix, names)
    with FaultyProxy(s3, share=0.3, kinds=("slow_down", "cut", "reset")) as proxy:
        point_clients_at(proxy.environment, monkeypatch)
        assert sorted(listed(prefix)) == names
        assert all(proxy.counts[kind] for kind in proxy.kinds), proxy.counts
    monkeypatch.undo()
    s3_store.forget_clients()


@pytest.mark.usefixtures("small_pages")
@pytest.mark.parametrize("pages_of_group", [0, 3])
def test_unreadable_keys_and_markers_in_folders_that_are_listed_in_parallel(s3, monkeypatch, pages_of_group):
    monkeypatch.setattr(buckets, "_GROUPS", 64)
    monkeypatch.setattr(buckets, "_PAGES_OF_GROUP", pages_of_group)
    prefix, names = bucket_prefix(s3), [f"{folder}/{number}.png" for folder in "abcdefgh" for number in range(4)]
    fill(prefix, names)
    below, odd = prefix.removeprefix(f"s3://{s3.bucket}/"), ["c/1\t.png", "c\x01/1.png", "f/\x7f.png", "f\t/1.png"]
    for key in (*odd, "d/", "g/"):
        s3_store._s3fs().call_s3("put_object", Bucket=s3.bucket, Key=f"{below}/{key}", Body=b"1" if key in odd else b"")
    pages = list(storage.list_objects(prefix))
    paths = [path for page in pages for path in page.paths if path not in "dg"]
    assert sorted(paths) == names
    assert sorted(name for page in pages for name in page.unreadable) == sorted(map(ascii, odd))


@pytest.mark.long
@pytest.mark.parametrize(("folders", "objects"), [(50, 2_000), (5_000, 10), (1, 20_000)])
def test_requests_and_seconds_of_parallel_listings(s3, monkeypatch, folders, objects):
    prefix = bucket_prefix(s3)
    fill(prefix, names := [f"{folder:04d}/{number:05d}.png" for folder in range(folders) for number in range(objects)])
    serial = -(-len(names) // 1_000)
    with FaultyProxy(s3, share=1.0, kinds=("slow",), stall_s=0.1) as proxy:
        point_clients_at(proxy.environment, monkeypatch)
        begun = time.monotonic()
        assert sorted(listed(prefix)) == names
        print(
            f"\n{folders:,} folders of {objects:,} objects: {time.monotonic() - begun:.1f} s and "
            f"{proxy.counts['requests']:,} requests of 0.1 s; one after the other: {serial:,} requests"
        )
        assert proxy.counts["requests"] <= 2 * serial + 4
    monkeypatch.undo()
    s3_store.forget_clients()


def test_an_invalid_name_is_an_error_without_retries(s3):
    calls = [lambda: storage.read(s3.uri("a//b")), lambda: storage.write("s3://Not_a_bucket!/x", b"")]
    for call in calls:
        with pytest.raises(OSError, match=r"segment|bucket name") as raised:
            call()
        assert not isinstance(raised.value, Unavailable)


def test_a_forked_process_reads_the_same(s3):
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
        storage.read(f"{uri}/b/c", max_bytes=2)
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


def test_many_threads_can_make_the_first_request(s3):
    code = (
        "import sys; from concurrent.futures import ThreadPoolExecutor; from inpaint_encode.stores import storage\n"
        "def one(n):\n"
        "    version = storage.write(f'{sys.argv[1]}/{n}', b'%d' % n, expect='')\n"
        "    assert storage.read(f'{sys.argv[1]}/{n}') == (b'%d' % n, version)\n"
        "list(ThreadPoolExecutor(16).map(one, range(48)))"
    )
    done = run_python(code, bucket_prefix(s3))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
