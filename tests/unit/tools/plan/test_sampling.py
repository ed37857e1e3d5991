"""Sampling errors against many samples of known populations, and sizes from headers against decoded images."""

import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from inpaint_encode.core.decode import PairDecoder, decode_image, upright_size
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.demo.pairs import upload
from inpaint_encode.errors import JobFailed
from inpaint_encode.sources import PairReader
from inpaint_encode.tools.plan.sampling import START, Estimate, Reservoir, mean, read_header, share, total
from tests.conftest import command
from tests.proxy import FaultyProxy

from .conftest import SCALE_FACTOR, encoded, oriented

DECODER = PairDecoder(sizing=Sizing(multiple=SCALE_FACTOR))


def header_of(path):
    return read_header({"image_uri": str(path)}, PairReader(), DECODER)


class TestIntervals:
    """About 95% of many samples have a 95% interval that contains the population's number."""

    POPULATION, SAMPLED, TIMES = 1_000, 120, 500

    def coverage(self, population, estimate_from) -> float:
        rng = np.random.default_rng(0)
        estimates = [estimate_from(rng.choice(population, self.SAMPLED, replace=False)) for _ in range(self.TIMES)]
        truth = estimate_from(population).value
        return float(np.mean([abs(one.value - truth) <= one.half_width for one in estimates]))

    @pytest.mark.parametrize("true_share", [0.02, 0.3, 0.95])
    def test_shares(self, true_share):
        population = np.arange(self.POPULATION) < true_share * self.POPULATION
        covered = self.coverage(population, lambda sample: share(int(sample.sum()), len(sample), self.POPULATION))
        assert covered >= 0.92
        not_sampled = 1 - self.SAMPLED / self.POPULATION
        known = 1.96 * math.sqrt(true_share * (1 - true_share) / self.SAMPLED * not_sampled)
        width = share(round(true_share * self.SAMPLED), self.SAMPLED, self.POPULATION).half_width
        assert width == pytest.approx(known, rel=0.1 if true_share == 0.3 else 0.8)

    def test_means(self):
        population = np.random.default_rng(1).lognormal(size=self.POPULATION)
        assert 0.9 <= self.coverage(population, lambda sample: mean(list(sample), len(sample), self.POPULATION)) <= 0.99

    def test_totals(self):
        population = np.random.default_rng(2).uniform(size=self.POPULATION) * (np.arange(self.POPULATION) % 10 > 0)
        assert 0.92 <= self.coverage(population, lambda sample: total(list(sample), self.POPULATION)) <= 0.98

    def test_a_share_of_none_has_an_error_unless_all_were_sampled(self):
        assert share(0, 256, 10**9).half_width == pytest.approx(0.0148, abs=1e-4)
        assert share(0, 256, 256).half_width == 0


def test_a_sample_of_one_has_no_known_error():
    assert mean([3.0], 1, 10) == Estimate(3.0, None)
    assert mean([3.0], 1, 10).scaled(2) == total([0.6], 10) == Estimate(6.0, None)
    assert mean([3.0], 1, 1) == Estimate(3.0, 0.0)


def test_equal_values_have_no_error():
    assert mean([0.004096] * 257, 257, 300) == Estimate(0.004096, 0.0)


def sample_of(population, size, seed, rows_per_table=7) -> list[int]:
    """Return the sampled ones of the numbers below ``population``."""
    reservoir = Reservoir(size, seed)
    for start in range(0, population, rows_per_table):
        reservoir.add(pa.table({"number": range(start, min(population, start + rows_per_table))}))
    assert reservoir.population == population
    return [row["number"] for row in reservoir.rows]


class TestReservoir:
    @pytest.mark.parametrize(("population", "size"), [(10, 3), (40, 1), (60, 20)])
    def test_every_row_is_drawn_equally_often(self, population, size):
        times, share = 3_000, size / population
        counts = np.bincount([number for seed in range(times) for number in sample_of(population, size, seed)])
        assert len(counts) == population
        assert counts.sum() == times * size
        chi_squared = ((counts - times * share) ** 2 / (times * share * (1 - share))).sum()
        assert abs(chi_squared - population) < 4 * math.sqrt(2 * population)

    def test_all_pairs_of_rows_are_drawn_equally_often(self):
        drawn = Counter(tuple(sample_of(6, 2, seed)) for seed in range(6_000))
        assert len(drawn) == 15
        assert max(abs(count - 400) for count in drawn.values()) < 4.5 * math.sqrt(6_000 / 15 * 14 / 15)

    def test_the_tables_make_no_difference(self):
        samples = [sample_of(5_000, 50, 3, rows_per_table=rows) for rows in (1, 13, 50, 4_999, 5_000)]
        assert all(sample == samples[0] for sample in samples)
        assert len(set(samples[0])) == 50
        assert sample_of(5_000, 50, 4) != samples[0]

    def test_a_small_population_is_the_sample(self):
        assert sample_of(4, 9, 0) == [0, 1, 2, 3]
        assert sample_of(9, 9, 0) == list(range(9))
        assert sample_of(0, 9, 0) == []


class TestHeaders:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_the_size_equals_that_of_the_decoded_image(self, kind, orientation):
        data = encoded(Image.new("RGB", (60, 20)), kind, exif=oriented(orientation))
        assert upright_size(data) == decode_image(data).levels.shape[:2]
        assert upright_size(data) == ((60, 20) if orientation > 4 else (20, 60))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
    def test_of_a_large_file_only_the_start_is_read(self, tmp_path, kind):
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (304, 500, 3), np.uint8))
        exif = {} if kind in {"BMP", "GIF"} else {"exif": oriented(8)}
        lossless = {"lossless": True} if kind == "WEBP" else {}
        path = tmp_path / "x"
        path.write_bytes(encoded(picture, kind, **exif, **lossless))
        size = path.stat().st_size
        assert size > START
        header = header_of(path)
        assert header.size == ((496, 304) if exif else (304, 496))
        assert header.bytes_read == START + (size if kind == "WEBP" else 0)

    def test_a_header_longer_than_the_start(self, tmp_path):
        path = tmp_path / "x.jpg"
        path.write_bytes(encoded(Image.new("RGB", (64, 32)), "JPEG", icc_profile=bytes(3 * START)))
        assert header_of(path).size == (32, 64)

    def test_a_missing_file_is_a_reject(self, tmp_path):
        assert header_of(tmp_path / "none.png") == (None, "fetch.not_found", 0)

    def test_an_unreadable_file_is_an_error(self, tmp_path):
        (tmp_path / "folder.png").mkdir()
        with pytest.raises(JobFailed, match=r"folder\.png cannot be read"):
            header_of(tmp_path / "folder.png")


class CountingProxy(FaultyProxy):
    """Counts the bytes of GET responses."""

    async def _forward(self, request, *, cut):
        response = await super()._forward(request, cut=cut)
        self.counts["bytes"] += len(response.body) if request.start[0] == "GET" else 0
        return response


def test_only_the_starts_of_files_are_read_from_s3(s3, tmp_path):
    count, sampled = 12, 8
    for number in range(count):
        picture = np.random.default_rng(number).integers(0, 256, (400, 600 + 8 * number, 3), np.uint8)
        for side, image in (("images", Image.fromarray(picture)), ("masks", Image.new("L", (600, 400)))):
            path = tmp_path / side / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encoded(image))
    upload(tmp_path, s3.uri("plan"))
    sources = ("--images", s3.uri("plan/images"), "--masks", s3.uri("plan/masks"))
    with CountingProxy(s3) as proxy:
        done = command("plan", *sources, "--sample", sampled, "--as-json", **proxy.environment)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["source_image_bytes"] > 8e6
    assert printed["header_bytes"] == sampled * START
    assert sampled * START <= proxy.counts["bytes"] < sampled * START + 20_000  # and the listings
    assert proxy.counts["requests"] == sampled + 4  # of each prefix, the first page is also listed when it is opened
    assert {size["height"] for size in printed["sizes"]} == {400}
