"""What the page reads of large outputs is limited; counts are exact where metadata has them."""

import os
import random
import resource
import time

import pytest

from inpaint_encode.reader import Output
from inpaint_encode.settings import LatentDecoding, ReportOptions
from inpaint_encode.tools.inspect import row_sample
from inpaint_encode.tools.inspect.page_data import MAX_EXAMPLES, collect_page_data, read_rejects
from tests.fabricated import JOB, JobOutput, latents, row, write_output, write_rejects


def test_a_large_output_is_read_through_a_hundred_files(large, monkeypatch):
    opened = []
    parquet = Output.parquet
    monkeypatch.setattr(Output, "parquet", lambda self, file: opened.append(file.path) or parquet(self, file))
    options = ReportOptions(gallery=4, sample=500, decoder=LatentDecoding(decode=False))
    found = collect_page_data(large.uri, options, lambda _: None)
    assert (len(found.sample.files), len(found.sample.output.files), len(found.columns.locations)) == (100, 2_000, 800)
    assert found.latents.rows == 500
    assert (found.rows, found.exact) == (16_000, False)
    assert len(set(opened)) <= 100 + 1  # the first file has the metadata
    assert len(opened) <= 100 + 63 + 1 + 2 * 4 + 3 * 2  # plain columns, latents, metadata, and rows in pictures
    assert len(found.gallery.cards) <= 4 + 3 * 2


def test_rows_of_an_unfinished_job_are_counted_by_its_receipts(tmp_path, make_job, monkeypatch):
    monkeypatch.setattr(row_sample, "MAX_FILES", 1)
    written = JobOutput(tmp_path / "out", make_job)
    written.plan(6)
    for number in (0, 1):
        written.chunk(number, rejected=number)
    options = ReportOptions(gallery=0)
    sampled = collect_page_data(written.output, options, lambda _: None)
    assert (sampled.rows in (4, 6), sampled.exact) == (True, False)
    written.keep_receipts()
    counted = collect_page_data(written.output, options, lambda _: None)
    assert (counted.rows, counted.rejected, counted.exact) == (5, {"image.truncated": 1}, True)


def test_all_rejected_pairs_are_counted_and_some_are_named(tmp_path):
    for chunk in range(3):
        write_rejects(tmp_path, chunk, [{"key": f"{chunk}-{at}", "error": "image.truncated"} for at in range(4)])
    write_rejects(tmp_path, 3, [{"key": "odd", "error": "mask.missing", "message": "no mask"}])
    found = read_rejects(str(tmp_path), random.Random(0))
    assert (found.files, found.of_files) == (4, 4)
    assert found.counts == {"image.truncated": 12, "mask.missing": 1}
    assert [one["error"] for one in found.examples] == ["image.truncated"] * MAX_EXAMPLES + ["mask.missing"]
    assert found.examples[-1]["message"] == "no mask"


def test_an_output_without_rejects(tmp_path):
    found = read_rejects(str(tmp_path), random.Random(0))
    assert (found.files, found.of_files, found.counts) == (0, 0, {})


@pytest.mark.long
def test_ten_million_rows(tmp_path, shell):
    """39,063 files of 256 rows of 512 x 512, all but the first links to it; nothing is decoded."""
    table = [row(f"{at:03d}", one, covered=512 * at) for at, one in enumerate(latents(256, height=64, width=64))]
    folder = write_output(tmp_path / "out", [table])
    whole = 1 + 10_000_000 // 256
    for chunk in range(1, whole):
        os.link(folder / f"{JOB}-00000000.parquet", folder / f"{JOB}-{chunk:08d}.parquet")
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    done = shell("report", folder, "--html", tmp_path / "report.html", "--no-decode")
    seconds, peak = time.monotonic() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report.html").read_text()
    assert f"100 of {whole:,} data files were opened" in page and "about 10,000,128" in page
    assert "2,000 latents in 63 row groups in" in page
    assert len(page) < 5_000_000
    about = f"{seconds:.1f} s and {(peak - before) / 1024:,.0f} MB of memory more; it has {len(page):,} bytes"
    print(f"\n{256 * whole:,} rows in {whole:,} files: the page took {about}")
