"""Pairs of a manifest, and its files: Parquet, CSV and JSONL."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import PairReader, open_source
from inpaint_encode.sources.manifest import open_list_file
from inpaint_encode.sources.signatures import without_signatures
from inpaint_encode.stores.base import DEFAULT_ACCESS, Access
from inpaint_encode.stores.ranged_file import RangedFile
from tests.unit.sources.make_sources import (
    LINES,
    found_pairs,
    noise,
    read_all,
    read_batches,
    triples,
    write_manifest,
    write_parquet,
)

A = {"image": "a.jpg", "mask": "a.png"}


def extra_columns(path: str) -> list[dict]:
    return [pair["extra_columns"] for pair in found_pairs(Source(pairs=path))]


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_uris_and_keys(tmp_path, suffix):
    path = write_manifest(tmp_path / f"m.{suffix}", LINES)
    assert triples(Source(pairs=str(path)), tmp_path) == [
        ("a/1", "a/1.jpg", "a/1.png"),
        ("b/2", "b/2.jpg", "m/x.png"),
        ("a/1", "a/1.jpg", "m/y.png"),
        ("s3://other/b/2", "s3://other/b/2.jpg", "/m/z.png"),
    ]


@pytest.mark.parametrize(
    ("options", "numbers_masks"),
    [({}, True), ({"key_column": "id"}, False), ({"random_masks": 2}, False), ({"mask_column": "image"}, False)],
)
def test_keys_of_images_with_mask_columns_need_numbers(tmp_path, options, numbers_masks):
    source = open_source(Source(pairs=str(write_manifest(tmp_path / "m.csv", LINES)), **options))
    assert source.numbers_masks == numbers_masks


def test_a_prefix_of_parquet_files(tmp_path):
    write_manifest(tmp_path / "list/1.parquet", LINES[:2])
    write_manifest(tmp_path / "list/2.parquet", LINES[2:])
    write_manifest(tmp_path / "list/_old.parquet", LINES)
    found = triples(Source(pairs=str(tmp_path / "list")), tmp_path / "list")
    assert len(found) == 4
    assert found[2] == ("a/1", "a/1.jpg", "m/y.png")


def test_named_columns(tmp_path):
    lines = [{"i": "a.jpg", "m": "b.png", "id": 3}, {"i": "c.jpg", "m": "d.png", "id": 4}]
    path = write_manifest(tmp_path / "m.parquet", lines)
    source = Source(pairs=str(path), image_column="i", mask_column="m", key_column="id")
    assert triples(source, tmp_path) == [("3", "a.jpg", "b.png"), ("4", "c.jpg", "d.png")]


@pytest.mark.parametrize(
    ("lines", "options", "sentence"),
    [
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
        read_batches(Source(pairs=str(path), **options))


def test_a_missing_value_of_a_csv_file_is_named_by_its_data_row(tmp_path):
    (tmp_path / "m.csv").write_text("image,mask\na.jpg,a.png\nb.jpg,\n")
    with pytest.raises(UsageError, match=r"--mask-column mask has no value in row 2 \(not counting the header\)"):
        read_batches(Source(pairs=str(tmp_path / "m.csv")))


def test_uris_and_bytes_in_one_list(tmp_path):
    columns = {"image": ["a.jpg", "a.jpg"], "mask": [noise(1), noise(2)], "id": ["x", "y"]}
    write_parquet(f"{tmp_path}/x.parquet", columns)
    pairs = found_pairs(Source(pairs=str(tmp_path / "x.parquet")))
    assert [(pair["key"], pair["image_uri"]) for pair in pairs] == [("a", f"{tmp_path}/a.jpg")] * 2
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
    source = open_source(Source(pairs=str(tmp_path / "m.parquet")))
    types = [pa.int16(), pa.list_(pa.string()), pa.struct([("left", pa.float64())]), pa.string()]
    assert [field.name for field in source.extra_columns] == ["height", "tags", "box", "split"]
    assert [field.type for field in source.extra_columns] == types
    assert found_pairs(Source(pairs=str(tmp_path / "m.parquet")))[0]["extra_columns"] == {
        "height": 1,
        "tags": ["x"],
        "box": {"left": 1.5},
        "split": "x",
    }


def test_text_stays_text(tmp_path):
    (tmp_path / "m.csv").write_text('image,mask,id\na.jpg,a.png,007\nb.jpg,b.png,"two\nlines"\n')
    assert extra_columns(str(tmp_path / "m.csv")) == [
        {"id": "007"},
        {"id": "two\nlines"},
    ]
    line = {"image": "a.jpg", "mask": "a.png", "day": "2020-01-01", "n": 3}
    path = write_manifest(tmp_path / "m.jsonl", [line])
    assert extra_columns(str(path)) == [{"day": "2020-01-01", "n": 3}]


def test_a_value_of_megabytes_and_quotes_within_a_value(tmp_path):
    text = 'image,mask,t\na.jpg,a.png,5" x\n.png,b.png,"' + 'x""' * 1_000_000 + '"\n'
    (tmp_path / "m.csv").write_text(text)
    pairs = found_pairs(Source(pairs=str(tmp_path / "m.csv")))
    assert [pair["key"] for pair in pairs] == ["a", ".png"]
    assert [pair["extra_columns"]["t"] for pair in pairs] == ['5" x', 'x"' * 1_000_000]


def test_times_within_values_stay_text(tmp_path):
    line = {"image": "a.jpg", "mask": "a.png", "of": {"day": "2020-01-01", "days": ["2020-01-01"], "n": 1e20}}
    path = write_manifest(tmp_path / "m.jsonl", [line])
    assert extra_columns(str(path)) == [{"of": line["of"]}]


def test_columns_with_bytes_are_left_out_nested_ones_too(tmp_path):
    deep = {"views": [{"bytes": b"1", "path": "p"}], "thumb": b"1", "n": 3}
    path = write_manifest(tmp_path / "m.parquet", [{"image": "a.jpg", "mask": "a.png", **deep}])
    assert extra_columns(str(path)) == [{"n": 3}]


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
        read_batches(Source(pairs=str(tmp_path / name)))


def test_a_suffix_without_a_reader_is_not_read_as_jsonl(tmp_path):
    path = str(write_manifest(tmp_path / "m.tsv", [A]))
    with pytest.raises(NotImplementedError, match=r"no reader for \.tsv"):
        open_list_file(path, RangedFile(path, DEFAULT_ACCESS), Source(pairs=path))


def test_a_row_without_a_value_is_numbered_within_its_file(tmp_path):
    write_parquet(f"{tmp_path}/0.parquet", {"image": ["a.jpg", "b.jpg"], "mask": ["a.png", "b.png"]})
    write_parquet(f"{tmp_path}/1.parquet", {"image": ["c.jpg"], "mask": pa.array([None], pa.string())})
    with pytest.raises(UsageError, match=r"no value in row 1 of .*/1\.parquet \(numbered from 1\)"):
        read_batches(Source(pairs=str(tmp_path)))


def test_a_row_group_that_is_too_large_for_a_worker_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr("inpaint_encode.sources.parquet_lists.MAX_ROW_GROUP_BYTES", 40_000)
    write_parquet(f"{tmp_path}/x.parquet", {"image": [noise(n) for n in range(8)], "mask": [b"1"] * 8}, group=8)
    with pytest.raises(UsageError, match=r"column image has 48,\d+ bytes in one row group"):
        read_batches(Source(pairs=str(tmp_path / "x.parquet")))


PRESIGNED = [
    "https://b.s3.amazonaws.com/a.jpg?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Signature=5ec2e7",
    "https://b.s3.amazonaws.com/a.jpg?x-amz-security-token=5ec2e7",
    "https://b.s3.amazonaws.com/a.jpg?X-Amz-Credential=5ec2e7",
    "https://b.s3.amazonaws.com/a.jpg?AWSAccessKeyId=A&Signature=5ec2e7&Expires=1",
    "https://storage.googleapis.com/b/a.jpg?X-Goog-Algorithm=x&X-Goog-Signature=5ec2e7",
    "https://x.blob.core.windows.net/b/a.jpg?sv=2024-01-01&se=2030&sig=5ec2e7",
    "https://d1.cloudfront.net/a.jpg?Expires=1&Signature=5ec2e7&Key-Pair-Id=K",
]


@pytest.mark.parametrize("url", PRESIGNED)
def test_signatures_leave_the_pairs_and_are_kept_for_the_run(tmp_path, url):
    plain = url.partition("?")[0]
    caption = f'{{"from": "{url}"}}'
    line = {"image": url, "mask": url, "url": url, "text": caption, "more": [{"url": url}, None]}
    path = write_manifest(tmp_path / "m.jsonl", [A, line])
    source = open_source(Source(pairs=str(path)))
    assert source.is_signed
    pairs = read_all(source)
    assert "5ec2e7" not in str(pairs.to_pylist())
    assert pairs["image_uri"][1].as_py() == pairs["mask_uri"][1].as_py() == plain
    expected = {"url": plain, "text": f'{{"from": "{plain}"}}', "more": [{"url": plain}, None]}
    assert pairs["extra_columns"][1].as_py() == expected
    assert source.signatures.find([plain, "https://x/other.jpg", "s3://b/x"]) == {plain: url}


@pytest.mark.parametrize("separator", ["&", "&amp;", "\\u0026"])
def test_signatures_in_text_are_removed(separator):
    url = separator.join(
        ["https://b/a.jpg?id=1", "X-Amz-Date=1", "X-Amz-Signature=5ec2e7", "%58-Amz-Credential=5ec2e7"]
    )
    texts = pa.chunked_array([[f'{{"u": "{url}"}} and {url}, "text"', None, "https://b/a.jpg?id=1&sig=2"]])
    cleaned = without_signatures(texts).to_pylist()
    assert (
        cleaned[0].startswith('{"u": "https://b/a.jpg?id=1"} and https://b/a.jpg?id=1') and "5ec2e7" not in cleaned[0]
    )
    assert cleaned[1:] == [None, "https://b/a.jpg?id=1&sig=2"]


@pytest.mark.parametrize("start", [0, 1])
def test_signatures_leave_nested_values(start):
    url, plain = PRESIGNED[0], PRESIGNED[0].partition("?")[0]
    pair = pa.struct([("u", pa.string()), ("n", pa.int32())])
    columns = {
        "lists": (pa.list_(pa.string()), ["{}"], [None, "{} and {}"], None, []),
        "large": (pa.large_list(pa.large_string()), ["{}"], None, ["x", "{}"], []),
        "fixed": (pa.list_(pa.string(), 2), ["{}", None], None, ["x", "{}"], ["", ""]),
        "structs": (pair, {"u": "{}", "n": 1}, None, {"u": None, "n": 2}, {"u": "{}", "n": None}),
        "deep": (pa.list_(pa.struct([("m", pa.map_(pa.string(), pair))])), [{"m": [("{}", {"u": "{}", "n": 1})]}]),
        "dictionary": (pa.dictionary(pa.int8(), pa.string()), "{}", None, "x", "{}"),
        "numbers": (pa.list_(pa.int64()), [1], None, [], [2, 3]),
    }
    for name, (type_, *rows) in columns.items():
        signed, expected = (eval(repr(rows).replace("{}", one)) for one in (url, plain))
        found = without_signatures(pa.chunked_array([pa.array(signed, type_)]).slice(start))
        found.validate(full=True)
        assert found.type == type_ and found.to_pylist() == expected[start:], name


def test_a_list_that_is_signed_again_has_the_same_pairs(tmp_path):
    def pairs_of(signature):
        lines = [
            {
                "image": f"https://b/a.jpg?id={number}&X-Amz-Signature={signature}&w=1&X-Amz-Date={signature}",
                "mask": "m",
            }
            for number in (1, 2)
        ]
        path = write_manifest(tmp_path / f"{signature}.jsonl", lines)
        source = open_source(Source(pairs=str(path)))
        assert source.is_signed
        return read_all(source)

    pairs = pairs_of("5ec2e7")
    assert pairs["key"].to_pylist() == ["https://b/a?id=1&w=1", "https://b/a?id=2&w=1"]
    assert pairs.drop_columns("mask_uri") == pairs_of("0ther5").drop_columns("mask_uri")


def test_signatures_leave_given_keys(tmp_path):
    path = write_manifest(tmp_path / "m.jsonl", [{**A, "name": PRESIGNED[0]}])
    (pair,) = found_pairs(Source(pairs=str(path), key_column="name"))
    assert pair["key"] == PRESIGNED[0].partition("?")[0]


def test_planned_lines_of_a_signed_list_are_read_again_for_their_signatures(tmp_path):
    path = write_manifest(tmp_path / "m.jsonl", [{"image": url, "mask": url} for url in PRESIGNED])
    first = open_source(Source(pairs=str(path)))
    (batch,) = first.batches({})
    again = open_source(Source(pairs=str(path)))
    known = {one.file: one for one in batch.slices}
    assert [one.pairs.num_rows for one in again.batches(known)] in ([], [0])
    assert again.signatures.find([PRESIGNED[-1].partition("?")[0]]) == {PRESIGNED[-1].partition("?")[0]: PRESIGNED[-1]}


def test_other_urls_with_queries_are_read(tmp_path):
    urls = ["https://x/a.jpg?id=1", "https://x/a.jpg?sig=1", "https://x/a.jpg?design=1&se=2", "https://x/a?Signature=1"]
    path = write_manifest(tmp_path / "m.csv", [{**A, "image": url} for url in urls])
    assert [pair["image_uri"] for pair in found_pairs(Source(pairs=str(path)))] == urls


def test_options_for_buckets_need_a_bucket_in_the_first_batch(tmp_path):
    access = Access(requester_pays=True)
    path = write_manifest(tmp_path / "m.csv", [A, {**A, "mask": "s3://bucket/a.png"}])
    assert read_all(open_source(Source(pairs=str(path)), access)).num_rows == 2
    path = write_manifest(tmp_path / "m.csv", [A, A])
    with pytest.raises(UsageError, match="only s3:// and gs:// accept --requester-pays"):
        read_all(open_source(Source(pairs=str(path)), access))
