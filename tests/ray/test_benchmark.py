"""The benchmark on a real Ray: the job as a compared program, utilization and the record."""

import subprocess
import sys

import pytest

from inpaint_encode.demo.pairs import upload
from inpaint_encode.reader import iter_rows
from jobs.benchmarks.compare import compare_section
from jobs.benchmarks.cpu import CpuMeter
from jobs.benchmarks.data import SQUARE_64, PairSet, pair_uris, write_pairs
from jobs.benchmarks.fake_vae import FakeVae
from jobs.benchmarks.our_job import our_job
from jobs.benchmarks.peers.task import Task
from jobs.benchmarks.utilisation import RatePlan, utilisation_sections
from tests.unit.benchmarks.reference import decoded

MIXED = PairSet("two sizes", ((64, 64), (56, 80)))


def test_the_job_writes_the_latents_of_the_fake_vae(s3, ray_cluster, tmp_path):
    local = write_pairs(tmp_path / "pairs", SQUARE_64, 6)
    upload(tmp_path / "pairs", s3.uri("bench"))
    remote = pair_uris(s3.uri("bench"), len(local))
    our_job("the job").run(Task(remote, FakeVae, tmp_path / "out"))
    rows = {row["key"]: row for row in iter_rows(str(tmp_path / "out"))}
    assert rows.keys() == {pair.key for pair in local}
    for pair in local:
        pixels, mask = decoded(pair)
        latents = FakeVae().encode_uint8(pixels[None], mask[None])[0]
        assert (rows[pair.key]["samples"] == latents).all()
        assert rows[pair.key]["mask_coverage"] >= mask.mean()


def test_the_job_is_compared_with_decoding(ray_cluster, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", SQUARE_64, 8)
    task = Task(pairs, FakeVae, tmp_path / "out")
    with CpuMeter() as meter:
        section = compare_section("", [our_job("the job")], task, pairs, meter, few=4, repeats=1)
    unit, job, wall, *_ = section.figures
    assert unit.median > 0
    assert section.ratios[0].figure.median == pytest.approx(job.median / unit.median)
    assert wall.unit == "ms/pair"


def test_utilisation_is_the_jobs_rate_over_the_vaes(ray_cluster, vae_folder, tmp_path):
    plan = RatePlan(vae_folder, "cpu", batch_size=2, chunk_rows=2, warm_up=2, images=4, repeats=1)
    rates, stages = utilisation_sections(plan, tmp_path, [SQUARE_64], MIXED)
    job, alone, mixed = (figure.median for figure in rates.figures)
    assert [ratio.figure.median for ratio in rates.ratios] == pytest.approx([job / alone, mixed / job])
    assert {figure.name.split(",")[0] for figure in stages.figures} >= {"fetch", "decode", "wait", "encode", "write"}


@pytest.mark.long
def test_the_command_writes_a_record(tmp_path):
    only = ["write", "fetch", "reading"]
    command = [sys.executable, "-m", "jobs.benchmarks", "--quick", "--only", *only, "--records", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("sd-vae-random-weights_*.md")
    written = record.read_text()
    assert "write, packed masks" in written
    assert "s3fs cat_file over D" in written
    assert written.count("open_latents over .npz, packed masks") == 2
    assert record.name in done.stdout.replace("\n", "")
