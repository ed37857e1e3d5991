"""What the page reads of an output: all of a small one, and a sample of bounded size of any other."""

import os
import random
import resource
import time

import numpy as np
import pytest

from inpaint_encode.reader import Output
from inpaint_encode.settings import LatentDecoding, ReportOptions
from inpaint_encode.tools.inspect.contents import gather
from inpaint_encode.tools.inspect.pictures import LatentColours
from inpaint_encode.tools.inspect.rejects import EXAMPLES, read_rejects
from inpaint_encode.tools.inspect.sample import Limits, Sample, read_place
from inpaint_encode.tools.inspect.statistics import LatentSums
from tests.fabricated import JOB, latents, metadata, row, write_output, write_rejects


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Five files of 12 rows, whose keys say where they are and whose masks all differ."""
    files = [
        [row(f"{file}-{at:02d}", latent, covered=10 * file + at) for at, latent in enumerate(latents(12, seed=file))]
        for file in range(5)
    ]
    return Output.open(str(write_output(tmp_path_factory.mktemp("small") / "out", files)))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """2,000 files of 8 rows; all but the first are links to it."""
    folder = write_output(
        tmp_path_factory.mktemp("large") / "out", [[row(f"{at}", one) for at, one in enumerate(latents(8))]]
    )
    for chunk in range(1, 2_000):
        os.link(folder / f"{JOB}-00000000.parquet", folder / f"{JOB}-{chunk:08d}.parquet")
    return Output.open(str(folder))


def summed(sample: Sample, count: int, about=None) -> LatentSums:
    sums = LatentSums()
    for part in sample.latents(
        sample.draw_latents(count), lambda drawn, them: LatentSums.of(drawn, them, about or metadata())
    ):
        sums.add(part)
    return sums


class TestSample:
    def test_of_a_small_output_every_row_is_read_once(self, small):
        sample = Sample(small, seed=3)
        facts = sample.facts()
        assert sample.is_whole and sample.rows == len(facts) == 60
        assert sorted(summed(sample, 1_000).keys) == [f"{file}-{at:02d}" for file in range(5) for at in range(12)]

    def test_facts_are_of_the_rows_that_their_places_name(self, small):
        facts = Sample(small, seed=1).facts()
        for at in (0, 17, 59):
            found = read_place(small, facts.places[at])
            assert found["mask_coverage"] == facts.coverage[at]
            assert found["noise_mask"].shape == (1, facts.height[at], facts.width[at]) == (1, 16, 24)
        assert set(facts.precision) == {"float32"} and facts.tiled == 0

    def test_the_seed_decides_what_is_drawn(self, large):
        drawn = [Sample(large, seed, Limits(files=5)).draw_latents(20) for seed in (1, 1, 2)]
        assert drawn[0] == drawn[1] != drawn[2]

    def test_no_more_is_read_than_the_limits_say(self, large):
        sample = Sample(large, 0, Limits(files=10, facts=30, latent_bytes=1))
        assert (len(sample.files), sample.of_files, sample.rows) == (10, 2_000, 80)
        assert len(sample.facts()) == 32  # whole groups of eight
        assert sum(len(one.rows) for one in sample.draw_latents(1_000)) == 8  # one group, whatever its bytes
        assert sum(len(one.rows) for one in Sample(large, 0, Limits(files=10)).draw_latents(20)) == 20

    def test_files_are_drawn_as_likely_as_each_other(self, small):
        seen = [Sample(small, seed, Limits(files=1)).files[0].path for seed in range(200)]
        counts = np.array([seen.count(file.path) for file in small.files])
        assert (counts > 20).all()

    def test_a_large_output_is_looked_at_through_a_hundred_files(self, large, monkeypatch):
        opened = []
        parquet = Output.parquet
        monkeypatch.setattr(Output, "parquet", lambda self, file: opened.append(file.path) or parquet(self, file))
        options = ReportOptions(gallery=4, sample=500, decoder=LatentDecoding(decode=False))
        contents = gather(large.uri, options, lambda _: None)
        assert (contents.reading.files, contents.reading.of_files, contents.reading.facts) == (100, 2_000, 800)
        assert contents.reading.latents == 500
        assert (contents.counts.rows, contents.counts.known) == (16_000, False)
        assert len(opened) <= 100 + 2 + 2 * 4 + 3 * 2  # how the rows were made, and rows in pictures
        assert len(contents.gallery.cards) <= 4 + 3 * 2


class TestStatistics:
    def test_figures_are_those_of_all_values(self, small):
        channels = summed(Sample(small, 0), 1_000).channels()
        values = np.concatenate([one.reshape(4, -1) for file in range(5) for one in latents(12, seed=file)], axis=1)
        values = values.astype(np.float64)
        assert np.allclose(channels.mean, values.mean(axis=1))
        assert np.allclose(channels.deviation, values.std(axis=1))
        assert (channels.least == values.min(axis=1)).all() and (channels.most == values.max(axis=1)).all()
        assert (channels.counts.sum(axis=1) == 60 * 64).all()
        assert ((channels.low > channels.least) & (channels.high < channels.most)).all()

    def test_colours_are_by_the_covariance_of_all_values(self, small):
        found = summed(Sample(small, 0), 1_000).colours()
        whole = LatentColours.fitted([one for file in range(5) for one in latents(12, seed=file)])
        assert np.allclose(found.mean, whole.mean) and np.allclose(found.axes, whole.axes)

    def test_of_moments_the_means_count(self, tmp_path):
        about = metadata(posterior="moments")
        both = [np.concatenate([one, one - 100]) for one in latents(3)]
        output = Output.open(str(write_output(tmp_path, [[row(str(at), one) for at, one in enumerate(both)]], about)))
        channels = summed(Sample(output, 0), 10, about).channels()
        assert len(channels.mean) == 4 and channels.least.min() > -10

    def outliers(self, folder, odd, count=40):
        them = [*latents(count - 1), odd]
        output = Output.open(str(write_output(folder, [[row(f"{at:03d}", one) for at, one in enumerate(them)]])))
        return summed(Sample(output, 0), 1_000)

    def test_a_row_that_is_unlike_the_others_is_told(self, tmp_path):
        odd = latents(1, seed=9)[0]
        odd[2] += 8
        found = self.outliers(tmp_path, odd).outliers(10)
        assert found[0].key == "039" and found[0].place.row == 39
        assert found[0].what.startswith(f"mean of channel 2 is {odd[2].astype(float).mean():.2f}, of most rows 2.")
        assert found[0].score > 10 and all(one.score < found[0].score for one in found[1:])

    def test_a_wide_spread_is_told_too(self, tmp_path):
        odd = latents(1, seed=9)[0]
        odd[1] = np.resize([-20, 21], odd[1].shape)
        assert self.outliers(tmp_path, odd).outliers(1)[0].what.startswith("spread of channel 1 is 20.5")

    def test_of_few_rows_none_is_unusual(self, tmp_path):
        assert self.outliers(tmp_path, latents(1)[0] + 100, count=19).outliers(10) == []

    def test_values_that_are_not_finite_are_counted_and_spoil_nothing(self, tmp_path):
        odd = latents(1)[0]
        odd[0, 0, 0] = np.nan
        sums = self.outliers(tmp_path, odd)
        assert (sums.rows, sums.not_finite) == (39, 1)
        assert np.isfinite(sums.channels().mean).all()


class TestRejects:
    def test_all_are_counted_and_some_are_named(self, tmp_path):
        for chunk in range(3):
            write_rejects(tmp_path, chunk, [{"key": f"{chunk}-{at}", "error": "decode.truncated"} for at in range(4)])
        write_rejects(tmp_path, 3, [{"key": "odd", "error": "mask.missing", "message": "no mask"}])
        found = read_rejects(str(tmp_path), random.Random(0))
        assert (found.files, found.of_files) == (4, 4)
        assert found.counts == {"decode.truncated": 12, "mask.missing": 1}
        assert len(found.examples["decode.truncated"]) == EXAMPLES
        assert found.examples["mask.missing"][0]["message"] == "no mask"

    def test_without_any_there_are_none(self, tmp_path):
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
    assert f"Of {whole:,} data files 100 were opened" in page and "about 10,000,128" in page
    assert "latents of 2,000 rows in 63 row groups in" in page
    assert len(page) < 5_000_000
    about = f"{seconds:.1f} s and {(peak - before) / 1024:,.0f} MB of memory more; it has {len(page):,} bytes"
    print(f"\n{256 * whole:,} rows in {whole:,} files: the page took {about}")
