"""The table of the command ``report``, and its errors without a report."""

import pytest

from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.state import ChunkResult
from inpaint_encode.sources import LeftOut


@pytest.fixture
def output(tmp_path):
    """A folder with the report of a run that encoded 1,200 pairs and rejected 34."""
    errors = {"image.truncated": 30, "mask.size": 4}
    chunk = ChunkResult(1_200, 34, errors, data_bytes=5_000_000, version="1", rejects_version="1")
    run = RunStats()
    run.add(chunk, [("encode_s", 75.25), ("fetch_s", 120.0), ("objects_fetched", 2_400), ("coverage_0", 1_200)])
    left_out = LeftOut(unpaired_images=1, unpaired_image_uris=["a.png"], ignored_files=3)
    write_report(f"{tmp_path}/_report.json", {}, {"pairs": 1_234}, left_out, RunStats.of([chunk]), run)
    return tmp_path


def test_a_report_is_readable(output, shell):
    done = shell("report", output, "--html", "")
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert {"pairs 1,234", "encoded 1,200", "rejected 34", "data_bytes 5,000,000", "unpaired_images 1"} <= set(lines)
    assert lines.index("image.truncated 30") < lines.index("mask.size 4")
    assert lines.index("fetch 120.0") < lines.index("encode 75.2")
    assert "objects_fetched 2,400 image and mask files fetched from the store" in lines
    assert any(line.startswith("warning: masks look empty: 1,200 of 1,200") for line in lines)


def test_an_output_without_a_report(tmp_path, shell):
    done = shell("report", tmp_path, "--html", "")
    assert done.returncode == 1
    assert (
        f"{tmp_path}/_report.json does not exist: no run has finished yet, or {tmp_path} is not an output"
        in done.stderr
    )
    (tmp_path / "_report.json").write_text("{")
    done = shell("report", tmp_path)
    assert (done.returncode, "_report.json is damaged" in done.stderr) == (1, True)
    (tmp_path / "_report.json").unlink()
    done = shell("report", tmp_path)
    assert (done.returncode, "has no rows; give the folder" in done.stderr) == (2, True)
    assert shell("report", "ftp://host/output").returncode == 2
