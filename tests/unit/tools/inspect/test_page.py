"""The page describes an output, says what is unknown, and contains no secrets."""

import json
import re
import tomllib
from datetime import UTC, datetime
from html import unescape
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from inpaint_encode.errors import JobFailed
from inpaint_encode.settings import LatentDecoding, ReportOptions, SourceReading
from inpaint_encode.tools.inspect import row_inspector
from inpaint_encode.tools.inspect.page import render
from inpaint_encode.tools.inspect.page.sections import REASONS
from inpaint_encode.tools.inspect.page_data import collect_page_data
from tests.fabricated import JOB, data_file, latents, metadata, row, tables, write_output, write_rejects
from tests.unit.core.decode.test_mutated import documented

REPORT = {
    "finished": "2026-01-02T03:04:05+00:00",
    "pairs": 24,
    "encoded": 22,
    "rejected": 2,
    "rejected_by_error": {"image.truncated": 2},
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


@pytest.fixture
def output(tmp_path):
    """Two files of eleven rows, whose sources are missing, with a report."""
    folder = write_output(tmp_path / "out", tables())
    write_report(folder)
    write_rejects(folder, 0, [{"key": f"bad-{at}", "error": "image.truncated", "message": "cut"} for at in range(2)])
    return folder


def write_report(folder: Path, **changes) -> None:
    """Write a report of the present files."""
    size = sum(path.stat().st_size for path in folder.glob("*.parquet"))
    (folder / "_report.json").write_text(json.dumps({**REPORT, "data_bytes": size, **changes}))


def page_of(folder: Path, **options) -> str:
    """Return the page's text without tags."""
    html = html_of(folder, **options)
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def html_of(folder: Path, **options) -> str:
    given = {"decoder": LatentDecoding(decode=False), "gallery": 2, **options}
    return render(collect_page_data(str(folder), ReportOptions(**given), lambda _: None))


class TestPage:
    def test_it_describes_the_output(self, output):
        text = page_of(output)
        assert "rows 22 each with a latent and a mask" in text
        assert "rejected pairs 2 8.33% of all pairs" in text
        assert "stores 4 numbers for every 8 x 8 pixels" in text
        assert "Figures cover all 22 rows. All these rows were encoded in float32, without tiling." in text
        assert "24 x 16 22 100.0%" in text
        assert "models in diffusers expect value x 0.18215." in text
        assert "image.truncated 2 image: the file ends before its last pixel" in text
        assert "image.truncated bad-0 cut /images/bad-0.png /masks/bad-0.png" in text
        assert "images without mask 3, masks without image 0, other files 1" in text and "lonely.png" in text
        assert "Masks look inverted: half of 24 repaint 90%" in text
        assert "No latent is decoded: --no-decode was given." in text

    def test_it_has_the_speed(self, output):
        text = page_of(output)
        assert "Its first chunk was done after 8.0 s." in text
        assert "Pairs per second after the first chunk, mean 1.7." in text
        assert "Devices waited for pixels about 25% of their time." in text
        assert "fetch read files from the store 10.0 0.50" in text

    def test_charts_are_drawn(self, output):
        """The masks cover 0 to 21 of 384 pixels: 16 masks less than 4%, and 6 masks less than 8%."""
        svg = re.search(r'<svg class="chart".*?Coverage of the grown mask.*?</svg>', html_of(output), re.DOTALL)[0]
        drawing = ElementTree.fromstring(svg)
        bars = [{name: float(bar.get(name)) for name in ("x", "y", "width", "height")} for bar in drawing.iter("rect")]
        heights = [bar["height"] for bar in bars]
        assert len(bars) == 25 and heights[0] / heights[1] == pytest.approx(16 / 6, abs=0.01) and not any(heights[2:])
        assert all(bar["y"] + bar["height"] == pytest.approx(184) for bar in bars)
        assert [text.text for text in drawing.iter("text")][-1] == "share of the image"

    def test_chunks_that_were_done_at_once_give_no_rate(self, output):
        for marks in ([[8.0, 4], [8.0, 8], [12.0, 12], [20.0, 24]], [[8.0, 4], [8.0, 24]]):
            write_report(output, this_run={**REPORT["this_run"], "decided_over_time": marks})
            drawn = page_of(output).partition("Rate over time")[2].partition("Pairs per second")[0]
            assert ("pairs/s" in drawn) == (len(marks) > 2)
            assert "1e" not in drawn

    def test_cards_say_what_is_missing(self, output):
        reading = SourceReading(sources=("/images", "/masks"))
        text = page_of(output, reading=reading)
        assert text.count("Missing: its image or mask was deleted or has changed since it was encoded.") == 2 + 1 + 1
        assert "grown mask covers" in text and "masked image</figcaption>" not in html_of(output)

    def test_an_unfinished_output_has_a_page(self, output):
        (output / "_report.json").unlink()
        text = page_of(output)
        assert "This output is not finished, and no run is writing to it." in text
        assert "rows 22" in text and "rejected pairs 2" in text
        assert "Speed is known after a run has finished." in text

    def test_a_report_without_the_newest_files_is_outdated(self, output):
        (output / f"{JOB}-00000002.parquet").write_bytes((output / f"{JOB}-00000001.parquet").read_bytes())
        text = page_of(output)
        assert re.search(
            r"left 2 files \([\d.]+ kB\); now there are 3 \([\d.]+ kB\)\. Another run has begun since", text
        )
        assert "rows 33" in text

    def test_a_report_of_replaced_files_is_outdated(self, output):
        (output / f"{JOB}-00000001.parquet").write_bytes(data_file(tables(8)[0], metadata()))
        text = page_of(output)
        assert "now there are 2 (" in text and "Another run has begun since" in text
        assert "rows 15" in text

    def test_a_full_gpu_only_prevents_decoding(self, output, monkeypatch):
        def full(*_):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")

        monkeypatch.setattr(row_inspector, "load_decoder", full)
        text = page_of(output, decoder=LatentDecoding(vae="/a/vae"))
        assert "No latent is decoded: the VAE cannot be moved to the device (CUDA out of memory. Tried" in text

    def test_latents_with_nan_are_counted(self, tmp_path):
        one, *others = latents(3)
        one[0, 0, 0] = np.nan
        text = page_of(write_output(tmp_path, [[row(str(at), each) for at, each in enumerate([one, *others])]]))
        assert "1 of the latents that were read have NaN or infinite values." in text
        assert "Figures cover all 3 latents." in text and "nan" not in text.partition("Channels")[2]

    def test_data_files_alone_are_enough(self, output):
        for path in output.glob("_*.json"):
            path.unlink()
        assert "rows 22" in page_of(output)

    def test_an_output_of_rejects_alone_has_a_page(self, tmp_path):
        folder = write_output(tmp_path / "out", [[]])
        write_rejects(folder, 0, [{"key": "bad", "error": "mask.missing", "message": "no mask"}])
        text = page_of(folder)
        assert "rows 0" in text and "There are no rows." in text and "No latents were read." in text
        assert "mask.missing 1 the row of the Parquet file has no mask" in text

    @pytest.mark.parametrize(
        ("about", "said"),
        [
            ({"latent_form": "packed"}, "Latents are packed and normalized for Flux.2"),
            ({"latent_form": "packed", "posterior": "moments"}, "is stored too. Latents are packed"),
            ({"scaled": True, "latent_form": "scaled"}, "Latents are stored scaled, as diffusion models use them."),
            ({"scaling_factor": None}, "the scaling factor of their model is unknown"),
            ({"shift_factor": 0.0609}, "expect (value - 0.0609) x 0.18215."),
            ({"latents_std": [1.0] * 4}, "expect them normalized by channel"),
            ({"grow_mask_by": 9}, "Changed settings name value grow_mask_by 9"),
        ],
    )
    def test_the_scaling_is_described(self, tmp_path, about, said):
        assert said in page_of(write_output(tmp_path, tables(), metadata(**about)), gallery=0)

    def test_keys_are_escaped(self, tmp_path):
        table = [row("<script>alert(1)</script>", latents(1)[0])]
        html = html_of(write_output(tmp_path, [table]))
        assert "&lt;script&gt;alert(1)" in html and "<script>alert" not in html

    def test_signatures_and_logins_are_removed(self, output):
        signed = "https://host/x.png?X-Amz-Signature=5ec2e7&X-Amz-Credential=AKIA"
        rejects = [{"key": "k", "error": "fetch.failed", "message": f"{signed}: no", "image_uri": signed}]
        said = "Max retries exceeded with url: /x.png?X-Amz-Signature=5ec2e7"
        rejects += [{"key": "l", "error": "fetch.unavailable", "message": said}]
        write_rejects(output, 1, rejects)
        write_report(output, unpaired_image_uris=["https://me:5ec2e7@host/y.png"])
        html = html_of(output)
        assert "https://host/x.png?X-Amz-Signature=…&amp;X-Amz-Credential=…" in html and "https://…@host/y.png" in html
        assert "5ec2e7" not in html and "AKIA" not in html

    def test_it_loads_nothing(self, output):
        html = html_of(output)
        found = re.findall(r'(?:src|href|action)="([^"#]*)', html) + re.findall(r"url\(([^)]*)\)", html)
        assert found and [one for one in found if one and not one.startswith(("data:", "#"))] == []
        ids = re.findall(r'\bid="([^"]*)"', html)
        assert len(ids) == len(set(ids))

    def test_the_same_seed_makes_the_same_page(self, output):
        pages = {re.sub(r"page created [^<]*", "", html_of(output)) for _ in range(2)}
        assert len(pages) == 1


def test_a_damaged_file_is_named(output):
    file = output / f"{JOB}-00000001.parquet"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(JobFailed, match=r"00000001\.parquet is damaged .* verify OUTPUT --repair"):
        page_of(output)


def test_a_damaged_file_of_rejects_is_named(output):
    (output / "_rejected" / f"{JOB}-00000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(JobFailed, match=r"_rejected/.*00000000\.parquet is damaged"):
        page_of(output)


def test_the_templates_are_packaged():
    root = Path(__file__).parents[4]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    folder = root / "inpaint_encode" / "tools" / "inspect" / "page"
    parts = {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}
    assert parts == {path for pattern in patterns["inpaint_encode.tools.inspect.page"] for path in folder.glob(pattern)}


def test_dates_are_in_words(output):
    data = collect_page_data(str(output), ReportOptions(gallery=0), lambda _: None)
    assert data.created.tzinfo is UTC and data.created <= datetime.now(UTC)
    assert "Last run finished 2 January 2026, 03:04 UTC" in page_of(output)


def test_every_reason_of_a_rejected_pair_is_explained():
    assert REASONS.keys() == documented()
