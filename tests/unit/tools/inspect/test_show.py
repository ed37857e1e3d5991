"""Rows are found by their key; of other keys the reason of rejection or similar keys are named."""

import pytest

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.reader import Output
from inpaint_encode.tools.inspect.row_sample import read_row
from inpaint_encode.tools.inspect.show import _picture_name, find_row
from tests.fabricated import JOB, latents, row, tables, write_output, write_rejects


@pytest.fixture
def output(tmp_path):
    """Two files of eleven rows, and two rejected pairs."""
    folder = write_output(tmp_path / "out", tables())
    write_rejects(folder, 0, [{"key": f"bad-{at}", "error": "image.truncated", "message": "cut"} for at in range(2)])
    return folder


def test_every_row_is_found(output):
    opened = Output.open(str(output))
    for at in (0, 10, 11, 21):
        assert read_row(opened, find_row(opened, f"pair-{at:02d}"))["key"] == f"pair-{at:02d}"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("a/b.c", "a-b.c.png"),
        ("/../../etc/passwd", "..-..-etc-passwd.png"),
        ("s3://bucket/x", "s3:--bucket-x.png"),
        ("100%", "100%.png"),
        ("a\x00\n\x1b\\b", "a%00%0A%1B%5Cb.png"),
        ("ü" * 300, "ü" * 100 + ".png"),
        ("\udcff", "?.png"),
    ],
)
def test_a_picture_stays_in_the_current_folder(key, name):
    assert _picture_name(key) == name


def test_similar_keys_are_named(output):
    with pytest.raises(UsageError, match=r"has no row 'pair-1'; similar keys: ('pair-\d\d'(, )?){3}$"):
        find_row(Output.open(str(output)), "pair-1")
    with pytest.raises(UsageError, match=r"has no row 'zzzzzz'; similar keys: 'pair-21'$"):
        find_row(Output.open(str(output)), "zzzzzz")


def test_the_reason_of_a_rejected_pair_is_named(output):
    with pytest.raises(UsageError, match=r"'bad-1' is not a row: it was rejected \(image\.truncated: cut\)"):
        find_row(Output.open(str(output)), "bad-1")


def test_chunks_without_rows_are_skipped(output):
    """Their files have no range of keys."""
    write_output(output.parent / "empty", [[]])
    (output.parent / "empty" / f"{JOB}-00000000.parquet").rename(output / "00000000-00000000.parquet")
    opened = Output.open(str(output))
    assert read_row(opened, find_row(opened, "pair-12"))["key"] == "pair-12"
    with pytest.raises(UsageError, match="has no row 'zzzzzz'; similar keys: 'pair-21'"):
        find_row(opened, "zzzzzz")


def test_the_reason_is_named_for_chunks_without_rows(tmp_path):
    output = write_output(tmp_path / "alone", [*tables(), []])
    write_rejects(output, 2, [{"key": "lost", "error": "fetch.not_found", "message": "gone"}])
    with pytest.raises(UsageError, match=r"'lost' is not a row: it was rejected \(fetch\.not_found: gone\)"):
        find_row(Output.open(str(output)), "lost")


def test_later_files_are_searched(output):
    later = write_output(output.parent / "later", [[row("aaa", latents(1)[0])]])
    (output / f"{JOB}-00000002.parquet").write_bytes((later / f"{JOB}-00000000.parquet").read_bytes())
    assert find_row(Output.open(str(output)), "aaa").row == 0


def test_damaged_files_are_named(output):
    rejects = output / "_rejected" / f"{JOB}-00000000.parquet"
    rejects.write_bytes(b"PAR1")
    with pytest.raises(JobFailed, match=r"_rejected/.*00000000\.parquet is damaged"):
        find_row(Output.open(str(output)), "bad-1")
    file = output / f"{JOB}-00000001.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(JobFailed, match=r"00000001\.parquet is damaged"):
        find_row(Output.open(str(output)), "pair-20")
