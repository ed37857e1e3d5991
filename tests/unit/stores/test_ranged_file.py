"""A remote object as a seekable file."""

import io

import pytest

from inpaint_encode.stores import storage
from inpaint_encode.stores.base import DEFAULT_ACCESS
from inpaint_encode.stores.ranged_file import Changed, RangedFile


def test_reads_and_seeks_match_those_of_a_file(prefix):
    data = bytes(range(256)) * 10
    storage.write(f"{prefix}/x", data)
    remote, local = RangedFile(f"{prefix}/x", DEFAULT_ACCESS), io.BytesIO(data)
    for offset, whence, size in [(0, io.SEEK_SET, 10), (5, io.SEEK_CUR, 7), (-9, io.SEEK_END, 100), (9_999, 0, 1)]:
        assert remote.seek(offset, whence) == local.seek(offset, whence)
        assert remote.read(size) == local.read(size)
        assert remote.tell() == local.tell()
    remote.seek(0)
    assert remote.read() == data


def test_a_replaced_object_is_an_error(prefix):
    storage.write(f"{prefix}/x", b"first")
    file = RangedFile(f"{prefix}/x", DEFAULT_ACCESS)
    storage.write(f"{prefix}/x", b"second")
    with pytest.raises(Changed, match="has changed since it was opened"):
        file.read(3)
