"""The files that ``--pairs`` names, and errors of listings."""

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import open_source
from tests.unit.sources.make_sources import read_batches, sample, touch, write_parquet, write_tar


def test_files_of_two_formats_below_one_prefix_are_an_error(tmp_path):
    write_tar(f"{tmp_path}/x/x.tar", sample("a"))
    write_parquet(f"{tmp_path}/x/x.parquet", {"image": ["a"], "mask": ["b"]})
    with pytest.raises(UsageError, match=r"has both \.parquet and \.tar files"):
        open_source(Source(pairs=str(tmp_path / "x")))


def test_a_prefix_without_objects_is_an_error(tmp_path, s3):
    touch(tmp_path, "images/a.jpg", "file.jpg")
    (tmp_path / "empty").mkdir()
    images = str(tmp_path / "images")
    for masks, sentence in {
        str(tmp_path / "none"): "there is no such folder",
        str(tmp_path / "empty"): "the folder is empty",
        str(tmp_path / "file.jpg"): "this is a file, not a folder",
        s3.uri("no-such-prefix"): "the bucket exists, but nothing in it starts with this prefix",
        "s3://no-such-bucket/masks": "cannot be listed: the store answered 404 NoSuchBucket",
    }.items():
        with pytest.raises(UsageError, match=f"--masks {masks}.*{sentence}"):
            read_batches(Source(images=images, masks=masks))
    with pytest.raises(UsageError, match=r"--pairs .*none: there is no such folder"):
        open_source(Source(pairs=str(tmp_path / "none")))
