"""Text files that are read in parts: types of JSONL, and quotation marks of CSV."""

import csv
import json
import random
import re

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import list_files, open_source
from tests.unit.sources.make_sources import found_pairs, read_batches, write_manifest

A = {"image": "a.jpg", "mask": "a.png"}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("inpaint_encode.sources.list_files._BLOCK_BYTES", 100)
    monkeypatch.setattr("inpaint_encode.sources.list_files._SMALL_BYTES", 0)


@pytest.mark.parametrize(
    ("first", "last", "type_"),
    [
        (None, 1, "int64"),
        (1, 1.5, "double"),
        (1.5, 1, "double"),
        (None, "2020-01-01", "string"),
        ("2020-01-01", "x", "string"),
        ([], [{"a": 1}], "list<element: struct<a: int64>>"),
        ({"a": None}, {"b": 1, "a": "x"}, "struct<a: string, b: int64>"),
    ],
)
def test_types_of_jsonl_are_those_of_the_whole_file(tmp_path, small_blocks, first, last, type_):
    lines = [*({**A, "x": first} for _ in range(9)), A, {**A, "x": last}, {**A, "x": last, "late": True}]
    source = Source(pairs=str(write_manifest(tmp_path / "m.jsonl", lines)))
    fields = open_source(source).extra_columns
    assert [(field.name, str(field.type)) for field in fields] == [("x", type_), ("late", "bool")]
    values = [pair["extra_columns"] for pair in found_pairs(source)]
    assert [value["late"] for value in values] == [None] * 11 + [True]
    assert values[9]["x"] is None
    wanted = last if not isinstance(last, dict) else {"a": "x", "b": 1}
    assert values[11]["x"] == wanted
    if not isinstance(first, dict):
        assert values[0]["x"] == first


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ([9007199254740993, *[1] * 9, 1.5], "column x has fractions and integers above"),
        ([[1.5], *[[1]] * 9, [9007199254740993]], "column x has fractions and integers above"),
        ([1, *[None] * 9, "a"], "is not valid jsonl; correct it .*x has incompatible types"),
        ([1, *[None] * 9, True], "is not valid jsonl; correct it .*x has incompatible types"),
    ],
)
def test_values_of_jsonl_that_do_not_fit_together(tmp_path, small_blocks, values, sentence):
    path = write_manifest(tmp_path / "m.jsonl", [{**A, "x": value} for value in values])
    with pytest.raises(UsageError, match=sentence):
        open_source(Source(pairs=str(path)))


def test_blank_lines_and_a_last_line_without_its_end(tmp_path, small_blocks):
    text = "\n".join([json.dumps(A), *[" " * 80] * 5, json.dumps(A), "", json.dumps(A)])
    (tmp_path / "m.jsonl").write_text(text)
    assert len(found_pairs(Source(pairs=str(tmp_path / "m.jsonl")))) == 3


@pytest.mark.parametrize("content", [b"", b"\n \n", b'{"a": 1'])
def test_a_jsonl_file_without_lines_is_an_error(tmp_path, content):
    (tmp_path / "m.jsonl").write_bytes(content)
    with pytest.raises(UsageError, match="is not valid jsonl; correct it"):
        open_source(Source(pairs=str(tmp_path / "m.jsonl")))


def test_a_file_without_line_ends_is_not_read_into_memory(tmp_path, small_blocks, monkeypatch, requests):
    monkeypatch.setattr("inpaint_encode.sources.list_files._MAX_LINE_BYTES", 1_000)
    (tmp_path / "m.jsonl").write_text("[" + json.dumps(A) * 1_000 + "]")
    with pytest.raises(UsageError, match="a line has more than 1,000 bytes"):
        open_source(Source(pairs=str(tmp_path / "m.jsonl")))
    assert sum(size for _, size in requests) <= 1_100


def test_quotation_marks_of_csv_are_matched():
    quoted = re.compile(rb'(?:(?<=[,\r\n])|\A)"(?:[^"]|"")*+"')
    unclosed = re.compile(rb'(?:[,\r\n]|\A)"')
    choose, found = random.Random(3), set()
    for _ in range(3_000):
        text = bytes(choose.choices(b'"",\nx', k=choose.randrange(16)))
        start = list_files._find_open_quote(text)
        assert (start >= 0) == bool(unclosed.search(quoted.sub(b"", text))), text
        found.add(start)
    assert found == {*range(-1, 15)}


def test_csv_is_cut_between_lines_and_not_within_a_value(tmp_path, small_blocks):
    choose = random.Random(4)
    texts = ["".join(choose.choices('",\nx', k=choose.randrange(30))) for _ in range(300)]
    with (tmp_path / "m.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([["image", "mask", "t"], *(["a", "b", text] for text in texts)])
    pairs = found_pairs(Source(pairs=str(tmp_path / "m.csv")))
    assert [pair["extra_columns"]["t"] for pair in pairs] == texts


@pytest.mark.parametrize("end", ['"open', '"open""', '"open\n', '"open\nx,y,z\n', '"'])
@pytest.mark.parametrize("rows", [1, 40])
def test_an_open_quotation_mark_of_a_large_csv_file_is_an_error(tmp_path, monkeypatch, small_blocks, rows, end):
    monkeypatch.setattr("inpaint_encode.sources.list_files._MAX_LINE_BYTES", 100)
    (tmp_path / "m.csv").write_text("image,mask,t\n" + 'a,b,"x ""y"""\n' * rows + f"a,b,{end}")
    with pytest.raises(UsageError, match="ends inside a quoted value; close the quotation mark"):
        read_batches(Source(pairs=str(tmp_path / "m.csv")))


def test_a_small_file_is_read_in_one_request(tmp_path, requests):
    for suffix in ("csv", "jsonl", "parquet"):
        path = write_manifest(tmp_path / f"m.{suffix}", [A] * 1_000)
        requests.clear()
        assert len(found_pairs(Source(pairs=str(path)))) == 1_000
        assert requests == [(str(path), path.stat().st_size)]
