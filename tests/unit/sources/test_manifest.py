"""Pairs of a manifest."""

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import PairReader, find_pairs
from tests.unit.sources.make_sources import LINES, found_pairs, noise, triples, write_manifest, write_parquet

A = {"image": "a.jpg", "mask": "a.png"}


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_uris_and_keys(tmp_path, suffix):
    path = write_manifest(tmp_path / f"m.{suffix}", LINES)
    assert triples(find_pairs(Source(pairs=str(path))), tmp_path) == [
        ("a/1", "a/1.jpg", "a/1.png", 0),
        ("a/1/1", "a/1.jpg", "m/y.png", 1),
        ("b/2", "b/2.jpg", "m/x.png", 0),
        ("s3://other/b/2", "s3://other/b/2.jpg", "/m/z.png", 0),
    ]


def test_a_prefix_of_parquet_files(tmp_path):
    write_manifest(tmp_path / "list/1.parquet", LINES[:2])
    write_manifest(tmp_path / "list/2.parquet", LINES[2:])
    write_manifest(tmp_path / "list/_old.parquet", LINES)
    found = find_pairs(Source(pairs=str(tmp_path / "list")))
    assert triples(found, tmp_path / "list")[1] == ("a/1/1", "a/1.jpg", "m/y.png", 1)
    assert found.pairs.num_rows == 4


def test_named_columns(tmp_path):
    lines = [{"i": "a.jpg", "m": "b.png", "id": 3}, {"i": "c.jpg", "m": "d.png", "id": 4}]
    path = write_manifest(tmp_path / "m.parquet", lines)
    source = Source(pairs=str(path), image_column="i", mask_column="m", key_column="id")
    assert triples(find_pairs(source), tmp_path) == [("3", "a.jpg", "b.png", 0), ("4", "c.jpg", "d.png", 0)]


@pytest.mark.parametrize(
    ("lines", "options", "sentence"),
    [
        ([A, A], {}, r"1 lines are repeated, .*/a\.jpg and .*/a\.png"),
        (
            [A, {**A, "image": "a.png"}],
            {},
            r"keys are not unique; the first, a, is the key of .*a\.jpg and .*a\.png; name a column",
        ),
        (
            [{**A, "id": 1}, {**A, "mask": "b.png", "id": 1}],
            {"key_column": "id"},
            "the first, 1, .*make them unique",
        ),
        (
            [A],
            {"image_column": "url"},
            "--image-column url: there is no such column; the list of pairs has image, mask",
        ),
        ([{**A, "samples": 1, "key": 2}], {}, "with the names of output columns: samples, key; rename"),
        ([{**A, "key": 2}], {}, "--key-column key"),
        ([A, {**A, "mask": None}], {}, "--mask-column mask has no value in row 2, counting from 1; add"),
        ([{**A, "image": "ftp://x/a.jpg"}], {}, "ftp://x/a.jpg cannot be read"),
        ([{**A, "image": {"bytes": "x"}}], {}, "has type struct<bytes: string> instead of string"),
    ],
)
def test_errors_in_the_lines(tmp_path, lines, options, sentence):
    path = write_manifest(tmp_path / "m.parquet", lines)
    with pytest.raises(UsageError, match=sentence):
        find_pairs(Source(pairs=str(path), **options))


def test_a_missing_value_of_a_csv_file_is_named_by_its_data_row(tmp_path):
    (tmp_path / "m.csv").write_text("image,mask\na.jpg,a.png\nb.jpg,\n")
    with pytest.raises(UsageError, match="--mask-column mask has no value in data row 2, not counting the header"):
        find_pairs(Source(pairs=str(tmp_path / "m.csv")))


def test_uris_and_bytes_in_one_list(tmp_path):
    columns = {"image": ["a.jpg", "a.jpg"], "mask": [noise(1), noise(2)], "id": ["x", "y"]}
    write_parquet(f"{tmp_path}/x.parquet", columns)
    pairs = found_pairs(Source(pairs=str(tmp_path / "x.parquet")))
    assert [(pair["key"], pair["image_uri"], pair["mask_index"]) for pair in pairs] == [
        ("a", f"{tmp_path}/a.jpg", 0),
        ("a/1", f"{tmp_path}/a.jpg", 1),
    ]
    assert [pair["image_version"] for pair in pairs] == ["", ""]
    assert PairReader().read(pairs[1]["mask_uri"], pairs[1]["mask_version"]).data == noise(2)
    named = found_pairs(Source(pairs=str(tmp_path / "x.parquet"), key_column="id"))
    assert [pair["key"] for pair in named] == ["x", "y"]
