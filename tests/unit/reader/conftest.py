"""Outputs that the reader's tests read, on a disk and in a bucket, and helpers."""

from uuid import uuid4

import numpy as np
import pytest

from inpaint_encode.stores import storage
from tests.outputs import write_output

FILES = [[(4, 6), (5, 3), (4, 4)] * 4, [], [(4, 6)] * 5, [(4, 4)] * 9 + [(5, 3)] * 2, [(4, 6)]]
"""Latent sizes by file: 29 rows of three sizes in eleven row groups. All pairs of the second chunk were rejected."""
COUNT = sum(len(sizes) for sizes in FILES)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """An output in a folder, and its rows."""
    folder = str(tmp_path_factory.mktemp("latents"))
    return folder, write_output(folder, FILES, scaling_factor=0.5)


@pytest.fixture(scope="module")
def in_bucket(s3):
    """An output in a bucket, and its rows."""
    prefix = s3.uri("reader", uuid4().hex)
    return prefix, write_output(prefix, FILES)


@pytest.fixture(params=["disk", "s3"])
def output(request):
    return request.getfixturevalue("on_disk" if request.param == "disk" else "in_bucket")


@pytest.fixture
def empty_prefix(output, s3, tmp_path) -> str:
    """A folder or prefix in the same kind of store as ``output``, for an output of the test's own."""
    return str(tmp_path) if output[0].startswith("/") else s3.uri("reader", uuid4().hex)


@pytest.fixture
def requests(monkeypatch) -> list[tuple[str, int, int]]:
    """Range requests from here on: file, start, and number of bytes."""
    seen, read_range = [], storage.read_range

    def record(uri, start, length, *access):
        seen.append((uri.rpartition("-")[2], start, length))
        return read_range(uri, start, length, *access)

    monkeypatch.setattr(storage, "read_range", record)
    return seen


def keys(rows) -> list[str]:
    """Keys of rows or of batches, in order."""
    return [key for row in rows for key in ([row["key"]] if isinstance(row["key"], str) else row["key"])]


def check_row(row, expected) -> None:
    """Check that a row has the values of the row that was written; arrays are tensors."""
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert row[name].numpy().dtype == value.dtype
            assert np.array_equal(row[name].numpy(), value), name
        else:
            assert row[name] == value, name
