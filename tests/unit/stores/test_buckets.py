"""Reads and listings of buckets: markers, unusual keys, forked processes, and many threads."""

import pytest

from inpaint_encode.stores import buckets, storage
from inpaint_encode.stores import s3 as s3_store
from inpaint_encode.stores.storage import Unavailable
from tests.buckets import bucket_prefix, fill, listed, run_python


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
