"""Rows encoded again from their sources: equal rows, wrong values and masks, changed sources, another VAE."""

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from inpaint_encode.demo.pairs import write_random_pairs
from inpaint_encode.errors import JobFailed
from inpaint_encode.output.plan import chunk_name
from inpaint_encode.output.state import OutputState
from inpaint_encode.reader import Output
from inpaint_encode.settings import LatentDecoding, SourceReading
from inpaint_encode.stores import storage
from inpaint_encode.tools.inspect.row_inspector import RowInspector
from inpaint_encode.tools.inspect.row_sample import read_row
from inpaint_encode.tools.inspect.show import find_row
from inpaint_encode.tools.verify.findings import ReencodeResult
from inpaint_encode.tools.verify.reencode import draw_rows, latent_difference, reencode_rows
from tests import poison
from tests.conftest import save_vae
from tests.damage import CHUNK_ROWS, change_rows, data_file, in_row, with_first
from tests.files import saved
from tests.local import encode_here
from tests.warm import WARM_SITE

PAIRS = 6


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_random_pairs(folder, PAIRS, seed=11, largest=96)
    return folder


@pytest.fixture(scope="module")
def encoded(tmp_path_factory, source, make_job) -> Path:
    """An output of two chunks of three rows. Tests must not change it."""
    output = tmp_path_factory.mktemp("encoded") / "out"
    options = {"chunk_rows": CHUNK_ROWS, "dtype": "float32"}
    return Path(encode_here(make_job(source / "images", source / "masks", output, **options)))


@pytest.fixture
def output(encoded, tmp_path) -> Path:
    return Path(shutil.copytree(encoded, tmp_path / "out"))


def reencode(output: Path, rows: dict[int, list[int]], vae: str = "") -> ReencodeResult:
    """Encode rows again, by the number of their chunk."""
    by_name = {chunk_name(0, number): indices for number, indices in rows.items()}
    job = json.loads((output / "_job.json").read_text())
    reading = SourceReading(sources=(job["source"]["images"], job["source"]["masks"]))
    return reencode_rows(by_name, OutputState(str(output), job["job"], ""), job, vae or job["vae_source"], reading)


def test_an_intact_output_gives_the_same_rows(encoded):
    result = reencode(encoded, {0: [0, 1, 2], 1: [0, 2]})
    assert (result.rows, result.changed, result.other_masks, result.problems) == (5, 0, 0, [])
    assert result.largest < 1e-5


def test_a_wrong_value_is_found_in_its_row(output):
    in_row("samples", lambda tensor: with_first(tensor["data"][0] + 0.01)(tensor), chunk=1)(output)
    result = reencode(output, {1: [0, 1]})
    (problem,) = result.problems
    assert (problem.check, problem.chunk, problem.file) == ("reencode", "000000-00001", str(data_file(output, 1)))
    assert re.match(
        r"000/000004: 1 of [\d,]+ values of samples differ from the re-encoded source by up to 0\.01", problem[2]
    )
    assert (result.rows, len(result.problems)) == (2, 1)
    assert result.largest == pytest.approx(0.01, abs=1e-5)


def test_a_wrong_mask_pixel_is_found(output):
    def flip(rows):
        data = rows[1]["noise_mask"]["data"]
        data[0] = 1 - data[0]
        rows[1]["mask_coverage"] = float(np.float32(np.mean(data)))

    change_rows(data_file(output, 1), flip)
    result = reencode(output, {1: [1]})
    (problem,) = result.problems
    assert result.other_masks == 1
    assert re.match(r"000/000004: 1 of [\d,]+ pixels of noise_mask differ", problem.sentence)


def test_the_versions_that_made_a_different_row_are_named(output):
    job = json.loads((output / "_job.json").read_text())
    job["versions"]["python"] = "2.7.18"
    (output / "_job.json").write_text(json.dumps(job))
    in_row("samples", with_first(1000.0), chunk=1)(output)
    (problem,) = reencode(output, {1: [1]}).problems
    assert re.search(r" \(python 2\.7\.18 in the output, 3\.\d+\.\d+ now\)$", problem.sentence)


def test_a_source_that_has_changed_is_no_damage(output, source):
    image = next((source / "images").rglob("000004.*"))
    stat = image.stat()
    os.utime(image, (stat.st_atime, stat.st_mtime + 1))
    try:
        result = reencode(output, {1: [0, 1, 2]})
    finally:
        os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (result.problems, result.rows, result.changed) == ([], 2, 1)


def test_another_vae_is_refused(encoded, tmp_path):
    with pytest.raises(JobFailed, match=r"is not the VAE that the output was encoded with: .*weights_sha256"):
        reencode(encoded, {0: [0]}, vae=save_vae(tmp_path, levels=4, seed=1))


def test_every_row_is_equally_likely_to_be_drawn():
    drawn = [draw_rows({"3": 1, "7": 9}, 1, seed) for seed in range(1_000)]
    assert 60 < sum(one == {"3": [0]} for one in drawn) < 140
    assert draw_rows({"3": 1, "7": 2}, 10, 0) == {"3": [0], "7": [0, 1]}


class TestLatentDifference:
    """The tolerance by dtype; each half of moments has its own."""

    @pytest.mark.parametrize(("dtype", "over"), [("float32", 2), ("float16", 1), ("bfloat16", 0)])
    def test_the_tolerance_is_a_share_of_the_largest_value(self, dtype, over):
        stored = np.array([10, 0, 0], np.float32)
        encoded = stored + np.array([0, 0.2, 0.5], np.float32)
        largest, count = latent_difference(stored, encoded, dtype, moments=False)
        assert (largest, count) == (0.5, over)

    def test_half_a_step_of_float16_is_allowed(self):
        encoded = np.array([1000.2], np.float32)
        stored = encoded.astype(np.float16)
        assert latent_difference(stored, encoded, "float32", moments=False)[1] == 0
        assert latent_difference(stored.astype(np.float32), encoded, "float32", moments=False)[1] == 1

    @pytest.mark.parametrize(("moments", "over"), [(False, 0), (True, 1)])
    def test_means_and_deviations_have_their_own_tolerance(self, moments, over):
        stored = np.array([100, 1], np.float32)
        encoded = stored + np.array([0, 0.5], np.float32)
        assert latent_difference(stored, encoded, "float16", moments=moments) == (0.5, over)

    @pytest.mark.parametrize("where", ["stored", "encoded"])
    def test_nan_differs(self, where):
        values = {"stored": np.ones(8, np.float16), "encoded": np.ones(8, np.float32)}
        values[where][3] = np.nan
        assert latent_difference(**values, dtype="auto", moments=False)[1] == (8 if where == "stored" else 1)


@pytest.fixture
def poisoned(source, monkeypatch):
    """Replace an image by one that kills its decoder; return its key."""
    monkeypatch.setenv(poison.VARIABLE, "1")
    monkeypatch.setattr(sys, "path", [WARM_SITE, *sys.path])
    image = source / "images/000/000004.png"
    levels = np.zeros((64, 64, 3), np.uint8)
    before = image.read_bytes()
    image.write_bytes(poison.poisoned(saved(levels, "JPEG"), poison.CRASH))
    yield "000/000004"
    image.write_bytes(before)


def test_a_source_that_kills_its_decoder_is_a_finding(output, poisoned):
    """It must not kill the command."""
    result = reencode(output, {1: [0, 1, 2]})
    (problem,) = result.problems
    assert f"{poisoned}: its source is rejected now, image.crashed: " in problem[2]
    assert "ended by SIGSEGV" in problem[2]
    assert result.rows == 3


def test_a_source_that_kills_its_decoder_is_not_shown(output, source, poisoned):
    opened = Output.open(str(output))
    row = dict(read_row(opened, find_row(opened, poisoned)))
    row["image_version"] = storage.stat(row["image_uri"])[1]
    reading = SourceReading(sources=(str(source),))
    with RowInspector(opened, LatentDecoding(decode=False), reading, print) as inspector:
        found = inspector.inspect(row)
    assert found.image is None
    assert found.missing == ["its source cannot be read: the process that read and decoded it was ended by SIGSEGV"]
