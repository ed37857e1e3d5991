"""The page says what an output holds and what is not known of it, and keeps secrets out; `show` finds rows."""

import json
import re
import tomllib
from datetime import UTC, datetime
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.report import MARKS, RunStats
from inpaint_encode.reader import Output
from inpaint_encode.settings import LatentDecoding, ReportOptions
from inpaint_encode.tools.inspect.contents import gather
from inpaint_encode.tools.inspect.decoder import LatentDecoder
from inpaint_encode.tools.inspect.find import find_row
from inpaint_encode.tools.inspect.page import render
from inpaint_encode.tools.inspect.rejects import REASONS
from inpaint_encode.tools.inspect.sample import read_place
from tests.fabricated import JOB, data_file, latents, metadata, row, write_output, write_rejects
from tests.unit.core.decode.test_mutated import documented

REPORT = {
    "finished": "2026-01-02T03:04:05+00:00",
    "pairs": 24,
    "encoded": 22,
    "rejected": 2,
    "rejected_by_error": {"decode.truncated": 2},
    "files": 2,
    "unpaired_images": 3,
    "unpaired_masks": 0,
    "ignored_files": 1,
    "unpaired_image_uris": ["/images/lonely.png"],
    "unpaired_mask_uris": [],
    "this_run": {
        "encoded": 22,
        "rejected": 2,
        "seconds": 20.0,
        "pairs_per_second": 1.2,
        "masks": {"warning": "masks look inverted: half of 24 repaint 90% of the image or more"},
        "counters": {"encode_s": 6.0, "wait_s": 2.0, "fetch_s": 10.0, "batches": 5},
        "decided_over_time": [[8.0, 4], [12.0, 12], [20.0, 24]],
    },
}


def tables(count: int = 22) -> list[list[dict]]:
    them = [row(f"pair-{at:02d}", one, covered=at) for at, one in enumerate(latents(count))]
    return [them[: count // 2], them[count // 2 :]]


@pytest.fixture
def output(tmp_path):
    """Two files of eleven rows, whose sources are not there, and a report that tells of them."""
    folder = write_output(tmp_path / "out", tables())
    write_report(folder)
    write_rejects(folder, 0, [{"key": f"bad-{at}", "error": "decode.truncated", "message": "cut"} for at in range(2)])
    return folder


def write_report(folder: Path, **changes) -> None:
    """Of the files that are there now."""
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    (folder / "_report.json").write_text(json.dumps({**REPORT, "data_bytes": size, **changes}))


def page_of(folder: Path, **options) -> str:
    """The page's text, tags and blanks left out."""
    html = html_of(folder, **options)
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def html_of(folder: Path, **options) -> str:
    given = {"decoder": LatentDecoding(decode=False), "gallery": 2, **options}
    return render(gather(str(folder), ReportOptions(**given), lambda _: None))


class TestPage:
    def test_it_says_what_the_output_holds(self, output):
        text = page_of(output)
        assert "rows 22 an image, its mask and its latent each" in text
        assert "rejected pairs 2 8.33% of all pairs" in text
        assert "it holds 4 numbers for every 8 x 8 pixels" in text
        assert "All figures here are of all 22 rows." in text
        assert "24 x 16 22 100.0%" in text
        assert "diffusers' models take them scaled: value x 0.18215." in text
        assert "decode.truncated 2 image: it ends before its pixels do" in text
        assert "decode.truncated bad-0 cut /images/bad-0.png /masks/bad-0.png" in text
        assert "images without a mask: 3, masks without an image: 0, other files: 1" in text and "lonely.png" in text
        assert "Masks look inverted: half of 24 repaint 90%" in text
        assert "Nothing is decoded: --no-decode was given." in text

    def test_it_says_how_fast_it_was(self, output):
        text = page_of(output)
        assert "Its first chunk was done after 8.0 s." in text
        assert "Pairs a second since the first chunk was done, 1.7 in the mean" in text
        assert "devices waited about 25% of the time" in text
        assert "fetch files come from the store 10.0 0.50" in text

    def test_chunks_that_were_done_at_once_are_no_rate(self, output):
        for marks in ([[8.0, 4], [8.0, 8], [12.0, 12], [20.0, 24]], [[8.0, 4], [8.0, 24]]):
            write_report(output, this_run={**REPORT["this_run"], "decided_over_time": marks})
            drawn = page_of(output).partition("Rate over time")[2].partition("Pairs a second")[0]
            assert ("pairs/s" in drawn) == (len(marks) > 2)
            assert "1e" not in drawn

    def test_every_row_that_is_shown_says_what_is_missing(self, output):
        text = page_of(output)
        assert text.count("Missing: its image or mask has gone, or has changed since it was encoded.") == 2 + 1 + 1
        assert "grown mask covers" in text and "greyed image</figcaption>" not in html_of(output)

    def test_of_an_unfinished_output_it_shows_what_is_there(self, output):
        (output / "_report.json").unlink()
        text = page_of(output)
        assert "No run has finished here yet" in text
        assert "rows 22" in text and "rejected pairs 2" in text
        assert "That is known when a run has finished." in text

    def test_a_report_that_does_not_tell_of_all_files_is_said_to_be_old(self, output):
        (output / f"{JOB}-00000002.parquet").write_bytes((output / f"{JOB}-00000001.parquet").read_bytes())
        text = page_of(output)
        assert re.search(r"left 2 files of [\d.]+ kB, and now there are 3 of [\d.]+ kB: another has begun since", text)
        assert "rows 33" in text

    def test_nor_does_one_tell_of_files_that_were_written_anew(self, output):
        (output / f"{JOB}-00000001.parquet").write_bytes(data_file(tables(8)[0], metadata()))
        text = page_of(output)
        assert "and now there are 2 of" in text and "another has begun since" in text
        assert "rows 15" in text

    def test_a_gpu_that_is_full_costs_the_decoding_alone(self, output, monkeypatch):
        def full(*_):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

        monkeypatch.setattr(LatentDecoder, "load", full)
        text = page_of(output, decoder=LatentDecoding())
        assert "Nothing is decoded: the VAE cannot be brought to the device: CUDA out of memory. Tried" in text

    def test_data_files_alone_are_enough(self, output):
        for path in output.glob("_*.json"):
            path.unlink()
        assert "rows 22" in page_of(output)

    def test_an_output_of_rejects_alone_has_a_page(self, tmp_path):
        folder = write_output(tmp_path / "out", [[]])
        write_rejects(folder, 0, [{"key": "bad", "error": "mask.missing", "message": "no mask"}])
        text = page_of(folder)
        assert "rows 0" in text and "There are no rows." in text and "No latents were read." in text
        assert "mask.missing 1 the row of a Parquet file has no mask" in text

    @pytest.mark.parametrize(
        ("about", "said"),
        [
            ({"latent_form": "packed"}, "They are packed and normalised as Flux.2 takes them"),
            ({"latent_form": "packed", "posterior": "moments"}, "stored behind them. They are packed"),
            ({"scaled": True, "latent_form": "scaled"}, "They are scaled as diffusion models take them."),
            ({"scaling_factor": None}, "by what a model has to scale them first is not known"),
            ({"shift_factor": 0.0609}, "take them scaled: (value - 0.0609) x 0.18215."),
            ({"latents_std": [1.0] * 4}, "take them normalised by channel first"),
            ({"grow_mask_by": 9}, "Settings that are not the default name value grow_mask_by 9"),
        ],
    )
    def test_what_the_numbers_are_is_told(self, tmp_path, about, said):
        assert said in page_of(write_output(tmp_path, tables(), metadata(**about)), gallery=0)

    def test_what_is_written_by_others_is_text(self, tmp_path):
        table = [row("<script>alert(1)</script>", latents(1)[0])]
        html = html_of(write_output(tmp_path, [table]))
        assert "&lt;script&gt;alert(1)" in html and "<script>alert" not in html

    def test_signatures_and_logins_stay_out(self, output):
        signed = "https://host/x.png?X-Amz-Signature=5ec2e7&X-Amz-Credential=AKIA"
        rejects = [{"key": "k", "error": "fetch.failed", "message": f"{signed}: no", "image_uri": signed}]
        said = "Max retries exceeded with url: /x.png?X-Amz-Signature=5ec2e7"
        rejects += [{"key": "l", "error": "fetch.unavailable", "message": said}]
        write_rejects(output, 1, rejects)
        write_report(output, unpaired_image_uris=["https://me:5ec2e7@host/y.png"])
        html = html_of(output)
        assert "https://host/x.png?…" in html and "https://…@host/y.png" in html
        assert "5ec2e7" not in html and "AKIA" not in html

    def test_nothing_is_asked_of_elsewhere(self, output):
        html = html_of(output)
        found = re.findall(r'(?:src|href|action)="([^"#]*)', html) + re.findall(r"url\(([^)]*)\)", html)
        assert found and [one for one in found if one and not one.startswith(("data:", "#"))] == []
        ids = re.findall(r'\bid="([^"]*)"', html)
        assert len(ids) == len(set(ids))

    def test_the_same_seed_makes_the_same_page(self, output):
        pages = {re.sub(r"looked at [^<]*", "", html_of(output)) for _ in range(2)}
        assert len(pages) == 1


def test_a_damaged_file_is_named(output):
    file = output / f"{JOB}-00000001.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(JobFailed, match=r"00000001\.parquet is not whole .* verify OUTPUT --repair"):
        page_of(output)
    with pytest.raises(JobFailed, match=r"00000001\.parquet is not whole"):
        find_row(Output.open(str(output)), "pair-20")


def test_a_damaged_file_of_rejects_is_named(output):
    (output / "_rejected" / f"{JOB}-00000000.parquet").write_bytes(b"PAR1")
    for read in (lambda: page_of(output), lambda: find_row(Output.open(str(output)), "bad-1")):
        with pytest.raises(JobFailed, match=r"_rejected/.*00000000\.parquet is not whole"):
            read()


def test_the_page_s_parts_are_packaged():
    root = Path(__file__).parents[4]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = root / "inpaint_encode" / "tools" / "inspect" / "page"
    parts = {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert parts == {path for pattern in patterns["inpaint_encode.tools.inspect.page"] for path in folder.glob(pattern)}


def test_every_reason_is_explained():
    assert REASONS.keys() == documented()


class TestMarks:
    def test_a_run_of_any_length_keeps_so_many_moments(self):
        tally = RunStats()
        for chunk in range(10_000):
            tally.encoded += 7
            tally._mark(float(chunk))
            assert len(tally.marks) <= MARKS
        seconds, decided = (np.array(values) for values in zip(*tally.marks, strict=True))
        assert len(seconds) >= MARKS / 4
        assert (decided == 7 * (seconds + 1)).all() and (np.diff(seconds) > 0).all()
        assert np.diff(seconds).max() <= 2 * np.diff(seconds)[1:].min() and seconds[-1] > 9_800

    def test_where_it_ended_is_the_last(self):
        tally = RunStats(encoded=5)
        assert tally.over_time[-1][1] == 5
        tally._mark(1.0)
        assert tally.over_time == [(1.0, 5)]
        assert RunStats().over_time == []


class TestFind:
    def test_every_row_is_found_where_it_is(self, output):
        opened = Output.open(str(output))
        for at in (0, 10, 11, 21):
            assert read_place(opened, find_row(opened, f"pair-{at:02d}"))["key"] == f"pair-{at:02d}"

    def test_of_one_that_is_not_there_near_ones_are_named(self, output):
        with pytest.raises(UsageError, match=r"has no row 'pair-1'; near it are ('pair-\d\d'(, )?){3}$"):
            find_row(Output.open(str(output)), "pair-1")
        with pytest.raises(UsageError, match=r"has no row 'zzzzzz'; near it are 'pair-21'$"):
            find_row(Output.open(str(output)), "zzzzzz")

    def test_of_a_rejected_one_the_reason_is_told(self, output):
        with pytest.raises(UsageError, match=r"'bad-1' is no row, it was rejected: decode\.truncated: cut"):
            find_row(Output.open(str(output)), "bad-1")

    def test_chunks_of_rejects_alone_are_passed_over(self, output):
        """Their files have no keys to look between."""
        write_output(output.parent / "empty", [[]])
        (output.parent / "empty" / f"{JOB}-00000000.parquet").rename(output / "00000000-00000000.parquet")
        opened = Output.open(str(output))
        assert read_place(opened, find_row(opened, "pair-12"))["key"] == "pair-12"
        with pytest.raises(UsageError, match="has no row 'zzzzzz'; near it are 'pair-21'"):
            find_row(opened, "zzzzzz")

    def test_of_a_chunk_of_rejects_alone_the_reason_is_told_too(self, tmp_path):
        output = write_output(tmp_path / "alone", [*tables(), []])
        write_rejects(output, 2, [{"key": "lost", "error": "fetch.not_found", "message": "gone"}])
        with pytest.raises(UsageError, match=r"'lost' is no row, it was rejected: fetch\.not_found: gone"):
            find_row(Output.open(str(output)), "lost")

    def test_a_generation_that_was_added_later_is_searched(self, output):
        later = write_output(output.parent / "later", [[row("aaa", latents(1)[0])]])
        (output / f"{JOB}-00000002.parquet").write_bytes((later / f"{JOB}-00000000.parquet").read_bytes())
        assert find_row(Output.open(str(output)), "aaa").row == 0


def test_dates_are_in_words(output):
    contents = gather(str(output), ReportOptions(gallery=0), lambda _: None)
    assert contents.looked_at.tzinfo is UTC and contents.looked_at <= datetime.now(UTC)
    assert "Last run finished 2 January 2026, 03:04 UTC" in page_of(output)
