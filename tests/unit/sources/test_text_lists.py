"""Text files that are read in parts: types of JSONL, and quotation marks of CSV."""

import csv
import json
import random
import re
import time

import pyarrow as pa
import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import open_source
from inpaint_encode.sources.text_checks import end_of_csv_lines, find_open_quote
from tests.unit.sources.make_sources import found_pairs, read_batches, write_manifest

A = {"image": "a.jpg", "mask": "a.png"}


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr("inpaint_encode.sources.text_lists._BLOCK_BYTES", 100)
    monkeypatch.setattr("inpaint_encode.sources.text_lists.SMALL_BYTES", 0)


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
    monkeypatch.setattr("inpaint_encode.sources.text_lists._MAX_LINE_BYTES", 1_000)
    (tmp_path / "m.jsonl").write_text("[" + json.dumps(A) * 1_000 + "]")
    with pytest.raises(UsageError, match="line 1: it has more than 1,000 bytes"):
        open_source(Source(pairs=str(tmp_path / "m.jsonl")))
    assert sum(size for _, size in requests) <= 1_100


def test_quotation_marks_of_csv_are_matched():
    quoted = re.compile(rb'(?:(?<=[,\r\n])|\A)"(?:[^"]|"")*+"')
    unclosed = re.compile(rb'(?:[,\r\n]|\A)"')
    choose, found = random.Random(3), set()
    for _ in range(3_000):
        text = bytes(choose.choices(b'"",\nx', k=choose.randrange(16)))
        end, start = end_of_csv_lines(text), find_open_quote(text)
        whole = [at + 1 for at in range(len(text)) if text[at] == ord("\n") and find_open_quote(text[: at + 1]) < 0]
        assert end == max(whole, default=0), text
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
    monkeypatch.setattr("inpaint_encode.sources.text_lists._MAX_LINE_BYTES", 100)
    (tmp_path / "m.csv").write_text("image,mask,t\n" + 'a,b,"x ""y"""\n' * rows + f"a,b,{end}")
    with pytest.raises(UsageError, match="ends inside a quoted value; close the quotation mark"):
        read_batches(Source(pairs=str(tmp_path / "m.csv")))


def test_a_small_file_is_read_in_one_request(tmp_path, requests):
    for suffix in ("csv", "jsonl", "parquet"):
        path = write_manifest(tmp_path / f"m.{suffix}", [A] * 1_000)
        requests.clear()
        assert len(found_pairs(Source(pairs=str(path)))) == 1_000
        assert requests == [(str(path), path.stat().st_size)]


LINE = b'{"image": "a.jpg", "mask": "a.png"}\n'
CSV = b"image,mask\na.jpg,a.png\n"
WIDE = b'{"image": "a.jpg", "mask": "a.png", %s}\n'


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("m.jsonl", LINE + b'{"a": ' + b"[" * 1_000_000, "line 2: its values are nested more than 32 deep"),
        (
            "m.jsonl",
            LINE + b'{"a": ' + b"[" * 3_000 + b"]" * 3_000 + b"}",
            "line 2: its values are nested more than 32",
        ),
        ("m.jsonl", LINE + b'{"a":' * 900 + b"1" + b"}" * 900, "line 2: its values are nested more than 32 deep"),
        ("m.jsonl", LINE + b'{"a":\n[[\n' * 5_000, "line 23: its values are nested more than 32 deep"),
        ("m.jsonl", LINE + b'{"a": "]]]]", "b":{"a": "}"}\n"a":[\n' * 500, "its values are nested more than 32 deep"),
        ("m.jsonl", LINE + b'{"a": "\xff"}\n', "line 2: it is not UTF-8"),
        ("m.jsonl", LINE + b'{"a": "\xed\xa0\x80"}\n', "line 2: it is not UTF-8"),
        ("m.jsonl", LINE.decode().encode("utf-16-le"), "line 1: it has a NUL byte; write the file as UTF-8 text"),
        ("m.jsonl", LINE + b'{"a": "\\ud800"}\n', r"line 2: it is not valid jsonl; correct it \(.*surrogate"),
        ("m.jsonl", LINE + b'{"a": 1e400}\n', r"line 2: it is not valid jsonl; correct it \(.*too big"),
        ("m.jsonl", LINE * 3 + b'{"a": 1, "a": 2}\n', r"line 4: it is not valid jsonl; correct it \(.*specified twice"),
        ("m.jsonl", LINE * 9_000 + b'{"mask": 1}\n', r"line 9,001: it is not valid jsonl; correct it \(.*mask"),
        ("m.jsonl", LINE + b"[1]\n", "line 2: it is not an object such as"),
        ("m.jsonl", b"null\n", "line 1: it is not an object such as"),
        ("m.jsonl", LINE + b"{} null {}\n", "line 2: it is not an object such as"),
        ("m.jsonl", LINE + b"{}\n\n  null {}\n", "line 4: it is not an object such as"),
        ("m.jsonl", LINE + b'"x" {}\n', "line 2: it is not an object such as"),
        ("m.jsonl", LINE + b'{"image": "\\u0000", "mask": "m"}\n', "--image-column image has a NUL character in row 2"),
        ("m.jsonl", b"".join(b'{"k%d": 1}\n' % n for n in range(20_000)), "the list has more than 2,000 names"),
        ("m.jsonl", WIDE % b",".join(b'"k%d": 1' % n for n in range(300_000)), "it has more than 200,000 names"),
        ("m.jsonl", WIDE % b",".join(b'"k%d": {}' % n for n in range(30_000)), "the list has more than 2,000 names"),
        ("m.jsonl", LINE + b"{}" * 40_000, "line 2: it has several objects; write one object a line"),
        ("m.csv", CSV + b"b\0.jpg,b.png\n", "line 3: it has a NUL byte"),
        ("m.csv", CSV + b"\xff.jpg,b.png\n", "line 3: it is not UTF-8"),
        ("m.csv", CSV * 900 + b"b.jpg\n", r"line 1,801: it is not valid csv; correct it \(.*Expected 2 columns, got 1"),
        ("m.csv", CSV + b'"a\nb",c\nb.jpg\n', r"line 5: it is not valid csv; correct it \(.*Expected 2 columns, got 1"),
        ("m.csv", b"image,mask" + b"," * 5_000_000 + b"\n", "line 1: it has more than 2,000 columns"),
        ("m.csv", CSV + b"b.jpg," + b"x" * 2**25, "line 3: it has more than 16,777,216 bytes"),
    ],
)
def test_a_hostile_line_ends_in_a_sentence_that_names_it(tmp_path, name, content, sentence):
    (tmp_path / name).write_bytes(content)
    begun = time.process_time()
    with pytest.raises(UsageError, match=sentence) as raised:
        read_batches(Source(pairs=str(tmp_path / name)))
    assert f"{tmp_path / name}" in str(raised.value) or "NUL character" in sentence
    assert len(str(raised.value)) < 1_000
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("line", [b"{}\n", b'{"k1": 1}\n'])
def test_many_short_lines_with_many_columns_need_little_memory(tmp_path, line):
    """Each of the columns has a value in each line, also where the line does not have it."""
    columns = b",".join(b'"k%d": 1' % n for n in range(2, 1_900)) + b', "k1": null'
    (tmp_path / "m.jsonl").write_bytes(WIDE % columns + line * 12_000)
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    source, peak = open_source(Source(pairs=str(tmp_path / "m.jsonl"))), 0
    with pytest.raises(UsageError, match="no value in row 2"):
        for _ in source.batches({}):
            peak = max(peak, pa.total_allocated_bytes() - before)
    assert peak < 400e6


def test_quoted_line_ends_before_an_open_quotation_mark_are_scanned_once(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"image,mask\n" + b'"\n",' * 1_000_000 + b'"')
    begun = time.process_time()
    with pytest.raises(UsageError, match="ends inside a quoted value"):
        read_batches(Source(pairs=str(tmp_path / "m.csv")))
    assert time.process_time() - begun < 5


def test_a_byte_order_mark_deep_values_and_brackets_in_strings_are_read(tmp_path):
    deep = 30 * "[" + 30 * "]"
    lines = [f'\ufeff{{"image": "a.jpg", "mask": "{deep * 9}", "x": {deep}}}', '{"image": "b.jpg",', ' "mask": "b"}']
    (tmp_path / "m.jsonl").write_text("\r\n".join([*lines, ""]))
    assert [pair["key"] for pair in found_pairs(Source(pairs=str(tmp_path / "m.jsonl")))] == ["a", "b"]
