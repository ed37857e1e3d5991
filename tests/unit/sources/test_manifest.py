"""Pairs of a manifest, and its files: Parquet, CSV and JSONL."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import PairReader, find_pairs, manifest
from inpaint_encode.stores.base import DEFAULT_ACCESS
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
        ([A, A], {}, r"/a\.jpg and .*/a\.png are a pair in several rows; remove the repeated rows \(1 in total\)"),
        (
            [A, {**A, "image": "a.png"}],
            {},
            r"a\.jpg and .*a\.png have the same key, a \(1 such key\); give a column",
        ),
        (
            [{**A, "id": 1}, {**A, "mask": "b.png", "id": 1}],
            {"key_column": "id"},
            r"several pairs of .*a\.jpg have the same key, 1 \(1 such key\); make them unique",
        ),
        (
            [A],
            {"image_column": "url"},
            "--image-column url: there is no such column; the list of pairs has image, mask",
        ),
        ([{**A, "samples": 1, "key": 2}], {}, "with the names of output columns: samples, key; rename"),
        ([{**A, "key": 2}], {}, "--key-column key"),
        ([A, {**A, "mask": None}], {}, r"--mask-column mask has no value in row 2 \(numbered from 1\); add"),
        ([{**A, "image": "ftp://x/a.jpg"}], {}, "ftp://x/a.jpg is not supported; use a path"),
        ([{**A, "image": {"bytes": "x"}}], {}, "has type struct<bytes: string> instead of string"),
    ],
)
def test_errors_in_the_lines(tmp_path, lines, options, sentence):
    path = write_manifest(tmp_path / "m.parquet", lines)
    with pytest.raises(UsageError, match=sentence):
        find_pairs(Source(pairs=str(path), **options))


def test_a_missing_value_of_a_csv_file_is_named_by_its_data_row(tmp_path):
    (tmp_path / "m.csv").write_text("image,mask\na.jpg,a.png\nb.jpg,\n")
    with pytest.raises(UsageError, match=r"--mask-column mask has no value in row 2 \(not counting the header\)"):
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


def test_types_are_kept(tmp_path):
    columns = {
        "image": ["a.jpg", "b.jpg"],
        "mask": ["a.png", "b.png"],
        "height": pa.array([1, 2], pa.int16()),
        "tags": [["x"], None],
        "box": [{"left": 1.5}, {"left": None}],
        "split": pa.array(["x", "y"]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), tmp_path / "m.parquet")
    found = find_pairs(Source(pairs=str(tmp_path / "m.parquet")))
    types = [pa.int16(), pa.list_(pa.string()), pa.struct([("left", pa.float64())]), pa.string()]
    assert [field.name for field in found.extra_columns] == ["height", "tags", "box", "split"]
    assert [field.type for field in found.extra_columns] == types
    assert found.pairs["extra_columns"].to_pylist()[0] == {
        "height": 1,
        "tags": ["x"],
        "box": {"left": 1.5},
        "split": "x",
    }


def test_text_stays_text(tmp_path):
    (tmp_path / "m.csv").write_text('image,mask,id\na.jpg,a.png,007\nb.jpg,b.png,"two\nlines"\n')
    assert find_pairs(Source(pairs=str(tmp_path / "m.csv"))).pairs["extra_columns"].to_pylist() == [
        {"id": "007"},
        {"id": "two\nlines"},
    ]
    line = {"image": "a.jpg", "mask": "a.png", "day": "2020-01-01", "n": 3}
    path = write_manifest(tmp_path / "m.jsonl", [line])
    assert find_pairs(Source(pairs=str(path))).pairs["extra_columns"].to_pylist() == [{"day": "2020-01-01", "n": 3}]


def test_a_value_of_megabytes_and_quotes_within_a_value(tmp_path):
    text = 'image,mask,t\na.jpg,a.png,5" x\n.png,b.png,"' + 'x""' * 1_000_000 + '"\n'
    (tmp_path / "m.csv").write_text(text)
    pairs = find_pairs(Source(pairs=str(tmp_path / "m.csv"))).pairs
    assert pairs["key"].to_pylist() == ["a", ".png"]
    assert [row["t"] for row in pairs["extra_columns"].to_pylist()] == ['5" x', 'x"' * 1_000_000]


def test_times_within_values_stay_text(tmp_path):
    line = {"image": "a.jpg", "mask": "a.png", "of": {"day": "2020-01-01", "days": ["2020-01-01"], "n": 1e20}}
    path = write_manifest(tmp_path / "m.jsonl", [line])
    assert find_pairs(Source(pairs=str(path))).pairs["extra_columns"].to_pylist() == [{"of": line["of"]}]


def test_columns_with_bytes_are_left_out_nested_ones_too(tmp_path):
    deep = {"views": [{"bytes": b"1", "path": "p"}], "thumb": b"1", "n": 3}
    path = write_manifest(tmp_path / "m.parquet", [{"image": "a.jpg", "mask": "a.png", **deep}])
    assert find_pairs(Source(pairs=str(path))).pairs["extra_columns"].to_pylist() == [{"n": 3}]


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m.parquet", None, "cannot be read: No such file"),
        ("m.parquet", b"PAR1", "is not valid parquet; correct it"),
        ("m.csv", b"image,mask\n", "has no rows"),
        ("m.csv", b'image,mask\na,"b""c\nd,e\n', "ends inside a quoted value"),
        ("m.jsonl", b'{"a": 9007199254740993}\n{"a": 1.5}\n', "column a has fractions and integers above"),
        ("m.csv", b"image,mask,a,a\n1,2,3,4\n", "with the same name: a"),
        ("m.txt", b"a b", "this file has an unsupported extension; use .parquet, .csv, .jsonl or .tar"),
        ("README.md", b"", "README.md: this file has an unsupported extension; use"),
        ("m", None, "there is no such folder"),
        ("m.tar.gz", None, "decompress it to a .tar"),
        ("m.tar", None, "cannot be read: No such file"),
        ("m.tar", b"", "is not a tar, or is truncated"),
        ("m.tar", b"x" * 1024, "is not a tar, or is truncated"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=sentence):
        find_pairs(Source(pairs=str(tmp_path / name)))


def test_a_suffix_without_a_reader_is_not_read_as_jsonl(tmp_path):
    (tmp_path / "m.tsv").write_text('{"image": "a.jpg", "mask": "a.png"}')
    with pytest.raises(NotImplementedError, match=r"no reader for \.tsv"):
        manifest._read_file(f"{tmp_path}/m.tsv", Source(pairs="m.tsv"), DEFAULT_ACCESS)


def test_a_row_without_a_value_is_numbered_across_files(tmp_path):
    write_parquet(f"{tmp_path}/0.parquet", {"image": ["a.jpg", "b.jpg"], "mask": ["a.png", "b.png"]})
    write_parquet(f"{tmp_path}/1.parquet", {"image": ["c.jpg"], "mask": pa.array([None], pa.string())})
    with pytest.raises(UsageError, match=r"no value in row 3 \(numbered from 1 across all files\)"):
        find_pairs(Source(pairs=str(tmp_path)))


def test_a_row_group_that_is_too_large_for_a_worker_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("inpaint_encode.sources.manifest.MAX_ROW_GROUP_BYTES", 40_000)
    write_parquet(f"{tmp_path}/x.parquet", {"image": [noise(n) for n in range(8)], "mask": [b"1"] * 8}, group=8)
    with pytest.raises(UsageError, match=r"column image has 48,\d+ bytes in one row group"):
        find_pairs(Source(pairs=str(tmp_path / "x.parquet")))
