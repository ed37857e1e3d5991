"""Prefixes, listings and concurrent calls for tests of stores."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import obstore
import pytest
import tenacity

from inpaint_encode.demo.s3server import LocalS3
from inpaint_encode.stores import s3 as s3_store
from inpaint_encode.stores import storage
from inpaint_encode.stores.storage import ABSENT

LONGEST_WAIT = 2.0
"""Seconds between two attempts within the first second, with room for a busy machine."""


def bucket_prefix(server: LocalS3) -> str:
    return server.uri("storage", uuid4().hex)


def point_clients_at(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    s3_store.forget_clients()


def in_threads(call: Callable[[int], object], count: int = 16) -> list[object]:
    """Call with 0 to count - 1 concurrently; return what each call returned or raised."""
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
    """Return size and version by path; assert that no path is listed twice."""
    rows = [row for page in storage.list_objects(prefix) for row in zip(*page[:3], strict=True)]
    assert len({path for path, _, _ in rows}) == len(rows)
    return {path: (size, version) for path, size, version in rows}


def fill(prefix: str, names: list[str]) -> None:
    """Create small objects fast."""
    if not prefix.startswith("s3://"):
        Path(prefix).mkdir(parents=True)
        for name in names:
            Path(prefix, name).write_bytes(b"1")
        return
    bucket, _, path = prefix.removeprefix("s3://").partition("/")
    put = tenacity.retry(stop=tenacity.stop_after_attempt(4), wait=tenacity.wait_exponential_jitter(0.1))(
        obstore.put
    )  # a busy machine resets connections
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: put(s3_store.connect(bucket), f"{path}/{name}", b"1"), names))


def timed(call: Callable[[], object]) -> tuple[float, type]:
    """Return how many seconds a call took, and the type of its error."""
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


def first_put() -> Callable[[str, str], bool]:
    once = iter([True])
    return lambda method, path: method == "PUT" and next(once, False)
