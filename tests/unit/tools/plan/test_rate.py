"""Hours and cost from real reports of finished runs."""

from pathlib import Path

import pytest

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.resume import job_record, row_metadata
from inpaint_encode.settings import Decoding, EncodeJob, Output, RowSettings, Source, VaeSource
from inpaint_encode.tools.plan.rate import estimate_hours, read_finished_run
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata
from tests.conftest import save_vae

from .conftest import options_for, write_run

PAIRS = 90_000
LONG_RUN = [(40, 250), (90, 400), (140, 1_250)]


def hours_from(output, *, facts=None, price=0.0, **options):
    report = read_finished_run(str(output))
    return estimate_hours(
        report, options_for(Path("source"), rate_from=str(output), price=price, **options), PAIRS, facts
    )


def facts_of(folder):
    source = VaeSource(vae=folder)
    return vae_metadata(load_vae(source), source)


class TestRate:
    def test_a_long_run_counts_from_its_first_chunk(self, tmp_path):
        assert write_run(tmp_path, LONG_RUN, pairs=1_250) == 10
        found = hours_from(tmp_path, price=3.0)
        assert (found.startup_excluded, found.pairs) == (True, 1_000)
        assert found.seconds == pytest.approx(100, abs=1)
        assert found.pairs_per_second == pytest.approx(10, rel=0.01)
        assert found.hours == pytest.approx(PAIRS / 10 / 3600, rel=0.01)
        assert found.cost == pytest.approx(3.0 * found.hours)

    def test_a_short_run_counts_from_its_start(self, tmp_path):
        write_run(tmp_path, [(60, 100), (60.5, 500), (61, 610)], pairs=610)
        found = hours_from(tmp_path)
        assert (found.startup_excluded, found.pairs, found.cost) == (False, 610, None)
        assert found.hours == pytest.approx(PAIRS / 10 / 3600, rel=0.01)

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
        with pytest.raises(UsageError, match="its last run encoded no pairs; name an output whose last run did"):
            read_finished_run(str(tmp_path))

    def test_a_damaged_report(self, tmp_path):
        (tmp_path / "_report.json").write_text("{")
        with pytest.raises(JobFailed, match=r"_report\.json is damaged"):
            read_finished_run(str(tmp_path))
