"""Fixtures for tests of sources."""

import pytest

from inpaint_encode.stores import storage


@pytest.fixture(params=["s3", "disk"])
def prefix(request, tmp_path) -> str:
    return request.getfixturevalue("s3").uri("layouts", tmp_path.name) if request.param == "s3" else str(tmp_path / "x")


@pytest.fixture
def requests(monkeypatch) -> list[tuple]:
    """URI and size of every range that is read from now on."""
    seen = []
    read_range = storage.read_range

    def counted(uri, start, length, access=storage.DEFAULT_ACCESS):
        blob = read_range(uri, start, length, access)
        seen.append((uri, len(blob.data)))
        return blob

    monkeypatch.setattr(storage, "read_range", counted)
    return seen
