"""Estimates of a job against the test's own counts; hours and cost from real reports of finished runs."""

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.planner import Planner
from inpaint_encode.output.resume import job_record, row_metadata
from inpaint_encode.output.state import OutputState
from inpaint_encode.settings import (
    Chunks,
    Decoding,
    EncodeJob,
    Output,
    PlanOptions,
    RowSettings,
    RunOptions,
    Source,
    VaeSource,
)
from inpaint_encode.settings.commands import Estimation
from inpaint_encode.sources import open_source
from inpaint_encode.tools.plan.estimate import Rejects, Size, estimate, estimate_hours, read_finished_run
from inpaint_encode.tools.plan.sampling import Estimate
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata
from tests.conftest import save_vae
from tests.unit.sources.make_sources import write_manifest

from .conftest import (
    BAD,
    CHANNELS,
    CHUNK_ROWS,
    PAIRS,
    SCALE_FACTOR,
    estimate_of,
    images_of,
    options_for,
    true_sizes,
    write_run,
)

PLANNED_PAIRS = 90_000
LONG_RUN = [(40, 250), (90, 400), (140, 1_250)]


def hours_from(output, *, facts=None, price=0.0, **options):
    report = read_finished_run(str(output))
    return estimate_hours(
        report, options_for(Path("source"), rate_from=str(output), price=price, **options), PLANNED_PAIRS, facts
    )


def facts_of(folder):
    source = VaeSource(vae=folder)
    return vae_metadata(load_vae(source), source)


class TestWhole:
    """If the sample is the whole source, every number is a count."""

    @pytest.fixture(scope="class")
    def job(self, folder):
        return estimate_of(folder, sample=10_000)

    def test_counts(self, job, folder):
        count = PAIRS + 6
        assert job.all_sampled
        assert (job.pairs, job.sampled, job.chunks) == (count, count, math.ceil(count / CHUNK_ROWS))
        assert (job.unpaired_images, job.unpaired_masks, job.ignored_files) == (1, 2, 1)
        assert job.source_image_bytes == sum(path.stat().st_size for path in images_of(folder))
        masks = [path for path in (folder / "masks").rglob("*.png") if "lone" not in path.stem]
        assert job.source_mask_bytes == sum(path.stat().st_size for path in masks)

    def test_the_histogram_of_sizes(self, job, folder):
        expected = Counter(size for size in true_sizes(folder) if size)
        assert {(size.height, size.width): size.images for size in job.sizes} == expected
        assert expected[80, 48] >= 1  # the rotated one, stored as 48 x 80
        assert [size.images for size in job.sizes] == sorted(expected.values(), reverse=True)
        for size in job.sizes:
            assert size.share == Estimate(size.images / job.pairs, 0.0)

    def test_rejects_by_error(self, job):
        assert {one.error: one.images for one in job.rejects} == BAD
        assert job.rejected == Estimate(sum(BAD.values()) / job.pairs, 0.0)

    def test_means_and_bytes(self, job, folder):
        pixels = [height * width for height, width in filter(None, true_sizes(folder))]
        assert job.megapixels.value == pytest.approx(np.mean(pixels) / 1e6)
        assert job.latent_bytes.value == pytest.approx(sum(pixels) / SCALE_FACTOR**2 * CHANNELS * 2)
        assert job.mask_bytes.value == pytest.approx(sum(pixels) / 8)
        estimates = (job.megapixels, job.latent_bytes, job.mask_bytes)
        assert [one.half_width for one in estimates] == [0.0] * 3

    def test_latent_bytes_include_every_latent_column(self, folder, job):
        settings = {"posterior": "moments", "also_original": True, "latent_mask": "comfyui"}
        more = estimate_of(folder, sample=10_000, rows=settings)
        assert more.latent_bytes.value == pytest.approx((2 * 2 * 4 + 1) / 4 * job.latent_bytes.value)

    def test_a_vae_with_values_that_are_not_finite_is_an_error(self, folder, vae_folder, tmp_path):
        vae = load_vae(VaeSource(vae=vae_folder))
        vae.quant_conv.bias.fill_(float("nan"))
        vae.save_pretrained(tmp_path)
        with pytest.raises(UsageError, match="values that are not finite; give undamaged weights"):
            estimate_of(folder, sample=10, vae=str(tmp_path))

    def test_latent_bytes_follow_the_stored_type_and_the_vae(self, folder, job, vae_folder):
        wide = estimate_of(folder, sample=10_000, vae=vae_folder, rows={"samples_dtype": "float32"})
        assert wide.latent_bytes.value == pytest.approx(2 * job.latent_bytes.value)
        assert (job.latents.assumed, wide.latents.assumed) == (True, False)

    def test_sizes_and_limits_apply_as_in_the_job(self, folder):
        given = {"decoding": {"resolution": "48x32", "upscale": True}, "limits": {"max_bytes": 600}}
        job = estimate_of(folder, sample=10_000, **given)
        assert {(size.height, size.width) for size in job.sizes} == {(32, 48)}
        over = sum(path.stat().st_size > 600 for path in images_of(folder))
        assert {one.error: one.images for one in job.rejects}["fetch.too_large"] == over > 0
        large = estimate_of(folder, sample=10_000, decoding={"resize": 20_000, "upscale": True})
        assert large.sizes == [] and {one.error for one in large.rejects} >= {"size.too_large"}
        with pytest.raises(
            UsageError, match="--resolution 50x30 must be a multiple of 8 for this VAE; the nearest is 48x32"
        ):
            estimate_of(folder, decoding={"resolution": "50x30"})


@pytest.fixture
def tiny_batches(monkeypatch):
    """A function that makes batches and units of a few pairs."""

    def shrink(pairs):
        for module in ("sources.pairs", "sources.prefixes", "output.planner"):
            monkeypatch.setattr(f"inpaint_encode.{module}.BATCH_PAIRS", pairs)

    return shrink


def without_files(job) -> dict:
    """Return the estimate as JSON without the counts that depend on chunks."""
    return {name: value for name, value in job.as_dict().items() if name not in ("chunks", "requests")}


class TestUnits:
    """The source is planned in units, as by the job."""

    @pytest.mark.parametrize("sample", [20, 10_000])
    def test_numbers_do_not_depend_on_the_size_of_batches(self, folder, tiny_batches, sample):
        large = estimate_of(folder, sample=sample)
        tiny_batches(10)
        small = estimate_of(folder, sample=sample)
        assert without_files(small) == without_files(large)
        assert (large.chunks, small.chunks) == (math.ceil((PAIRS + 6) / CHUNK_ROWS), 13)  # units of 10 pairs

    def test_requests(self, folder, tiny_batches):
        pairs, chunks = PAIRS + 6, math.ceil((PAIRS + 6) / CHUNK_ROWS)
        requests = estimate_of(folder, sample=1).requests
        assert requests.put == chunks + 2 + 3  # a part and a marker of one unit
        assert requests.get == 2 * pairs + 2 * chunks
        tiny_batches(10)
        requests = estimate_of(folder, sample=1).requests
        assert requests.put == 13 + 2 * 13 + 3
        assert requests.get == 2 * pairs + 2 * 13

    def test_a_unit_of_many_chunks_has_several_parts(self, folder):
        options = options_for(folder, sample=1).model_copy(update={"chunks": Chunks(chunk_rows=2)})
        job = estimate(options, lambda line: None)
        assert (job.chunks, job.requests.put) == (63, 63 + 2 + 1 + 3)


class TestList:
    """A list with repeated lines, duplicate keys, and images that have several masks."""

    PAIRS, REPEATED, DUPLICATES = 30, 7, 5

    @pytest.fixture(scope="class")
    def lines(self, folder):
        masks = sorted((folder / "masks").rglob("*.png"))
        image = next(path for path in images_of(folder) if path.stem == "rotated")
        pairs = [{"image": image, "mask": masks[number % 6], "id": number // 2 * 2} for number in range(self.PAIRS)]
        lines = [{**pair, "id": pair["id"] + number % 2} for number, pair in enumerate(pairs)]
        lines += lines[: self.REPEATED]
        lines += [{**line, "mask": masks[9]} for line in lines[: self.DUPLICATES]]
        return [{name: str(value) for name, value in line.items()} for line in lines]

    @pytest.fixture(scope="class")
    def source(self, lines, tmp_path_factory):
        path = write_manifest(tmp_path_factory.mktemp("list") / "list.jsonl", lines)
        return Source(pairs=str(path), key_column="id")

    def estimate_of(self, source, **estimation):
        options = PlanOptions(source=source, chunks=Chunks(chunk_rows=4), estimation=Estimation(**estimation))
        return estimate(options, lambda line: None)

    @pytest.mark.parametrize("batch", [65_536, 6])
    def test_counts(self, source, tiny_batches, batch):
        tiny_batches(batch)
        job = self.estimate_of(source, sample=1_000)
        assert (job.pairs, job.repeated_lines) == (self.PAIRS + self.DUPLICATES, self.REPEATED)
        assert (job.duplicate_keys, job.sampled, job.all_sampled) == (self.DUPLICATES, self.PAIRS, True)
        (rejects,) = job.rejects
        share = self.DUPLICATES / job.pairs
        assert rejects == Rejects("list.duplicate_key", self.DUPLICATES, Estimate(share, 0.0))
        assert job.rejected == Estimate(share, 0.0)
        assert job.sizes == [Size(80, 48, self.PAIRS, Estimate(self.PAIRS / job.pairs, 0.0))]
        assert job.mask_bytes.value == pytest.approx(self.PAIRS * 80 * 48 / 8)

    def test_duplicate_keys_are_exact_if_headers_are_sampled(self, source):
        job = self.estimate_of(source, sample=8)
        assert (job.duplicate_keys, job.sampled, job.all_sampled) == (self.DUPLICATES, 8, False)
        assert job.rejected.value == pytest.approx(self.DUPLICATES / job.pairs)
        assert job.rejected.half_width > 0

    def test_an_image_is_fetched_once_in_a_unit(self, source, tiny_batches):
        assert self.estimate_of(source).requests.get == 1 + self.PAIRS + 2 * self.estimate_of(source).chunks
        tiny_batches(6)
        job = self.estimate_of(source)
        units = self.PAIRS // 6 + 1  # the last has the duplicate keys alone, so that it reads no image
        assert job.requests.get == units - 1 + self.PAIRS + 2 * job.chunks

    def test_the_job_plans_the_same(self, source, tmp_path):
        job = self.estimate_of(source)
        log = PlanLog(OutputState(str(tmp_path), "01234567", "01234567"), pa.schema([]))
        for _ in Planner(log, open_source(source), Chunks(chunk_rows=4), RunOptions(), lambda unit: ()).plan():
            pass
        assert (log.pairs, log.repeated, len(log.chunks)) == (job.pairs, job.repeated_lines, job.chunks)
        rejected = sum(table["error"].is_valid().to_pylist().count(True) for _, table in log.read_units())
        assert rejected == job.duplicate_keys


class TestSample:
    def test_errors_shrink_with_the_sample(self, folder):
        estimates = [estimate_of(folder, sample=count) for count in (15, 60, 110, 1_000)]
        for name in ("rejected", "megapixels", "latent_bytes", "mask_bytes"):
            errors = [getattr(job, name).half_width for job in estimates]
            assert errors == sorted(errors, reverse=True), name
            assert errors[0] > 2 * errors[1] > errors[-1] == 0, name

    def test_the_same_seed_draws_the_same_sample(self, folder):
        one, same, other = (estimate_of(folder, sample=30, seed=seed).as_dict() for seed in (1, 1, 2))
        assert one == same != other

    def test_json_of_a_sample_of_one_has_no_nan(self, folder):
        single = estimate_of(folder, sample=1).as_dict()
        assert single["megapixels"]["half_width"] is None
        json.dumps(single, allow_nan=False)


class TestRate:
    def test_a_long_run_counts_from_its_first_chunk(self, tmp_path):
        assert write_run(tmp_path, LONG_RUN, pairs=1_250) == 10
        found = hours_from(tmp_path, price=3.0)
        assert (found.startup_excluded, found.pairs) == (True, 1_000)
        assert found.seconds == pytest.approx(100, abs=1)
        assert found.pairs_per_second == pytest.approx(10, rel=0.01)
        assert found.hours == pytest.approx(PLANNED_PAIRS / 10 / 3600, rel=0.01)
        assert found.cost == pytest.approx(3.0 * found.hours)

    def test_a_short_run_counts_from_its_start(self, tmp_path):
        write_run(tmp_path, [(60, 100), (60.5, 500), (61, 610)], pairs=610)
        found = hours_from(tmp_path)
        assert (found.startup_excluded, found.pairs, found.cost) == (False, 610, None)
        assert found.hours == pytest.approx(PLANNED_PAIRS / 10 / 3600, rel=0.01)

    def test_a_run_of_one_chunk_counts_from_its_start(self, tmp_path):
        write_run(tmp_path, [(20, 100)], pairs=100)
        assert hours_from(tmp_path).pairs_per_second == pytest.approx(5, rel=0.01)

    def test_pairs_of_earlier_runs_do_not_count(self, tmp_path):
        write_run(tmp_path, LONG_RUN, pairs=50_000)
        assert hours_from(tmp_path).pairs_per_second == pytest.approx(10, rel=0.01)

    def test_a_report_on_s3(self, s3):
        write_run(s3.uri("rate-of"), LONG_RUN, pairs=1_250)
        assert hours_from(s3.uri("rate-of/")).pairs_per_second == pytest.approx(10, rel=0.01)


class TestDifferences:
    @pytest.fixture(scope="class")
    def facts(self, vae_folder):
        return facts_of(vae_folder)

    @pytest.fixture
    def output(self, tmp_path, vae_folder, facts):
        """A report with the settings that a job records."""
        job = EncodeJob(
            source=Source(images="i", masks="m"),
            vae=VaeSource(vae=vae_folder),
            output=Output(output=str(tmp_path)),
            decoding=Decoding(resize=64, upscale=True),
            rows=RowSettings(also_original=True, dtype="float32"),
        )
        write_run(
            tmp_path, LONG_RUN, pairs=1_250, rows=job_record(job, row_metadata(job.rows, job.decoding, facts))["rows"]
        )
        return tmp_path

    def test_equal_settings(self, output, facts):
        equal = {"rows": {"also_original": True, "dtype": "float32"}, "decoding": {"resize": 64, "upscale": True}}
        known, unknown = hours_from(output, facts=facts, **equal), hours_from(output, **equal)
        assert known.differs == unknown.differs == []
        assert ("VAE" in known.assumes, "and the same VAE" in unknown.assumes) == (False, True)

    def test_settings_that_change_the_work_are_named(self, output, facts):
        other = {"rows": {"grow_mask_by": 3, "deterministic": True}, "decoding": {"resolution": "64x48"}}
        assert hours_from(output, facts=facts, **other).differs == [
            *("compute_dtype", "also_original", "deterministic", "resize", "resolution", "upscale"),
        ]

    def test_another_vae_is_named(self, output, tmp_path_factory):
        other = facts_of(save_vae(tmp_path_factory.mktemp("vae"), levels=3))
        assert hours_from(output, facts=other).differs[0] == "config_sha256"


class TestErrors:
    def test_no_report(self, tmp_path):
        with pytest.raises(UsageError, match=r"there is no _report\.json; the encode run writes it when it finishes"):
            read_finished_run(str(tmp_path))

    def test_a_run_that_encoded_nothing(self, tmp_path):
        write_run(tmp_path, [], pairs=1_250)
        with pytest.raises(
            UsageError, match="its last run encoded no pairs; give an output whose last run encoded some"
        ):
            read_finished_run(str(tmp_path))

    def test_a_damaged_report(self, tmp_path):
        (tmp_path / "_report.json").write_text("{")
        with pytest.raises(JobFailed, match=r"_report\.json is damaged"):
            read_finished_run(str(tmp_path))
