"""The benchmark runs: the job as a contestant, the feed ratio, and the record; nothing is held against a clock."""

import subprocess
import sys
from pathlib import Path

import pytest

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.demo.pairs import upload
from inpaint_encode.reader import iter_rows
from jobs.benchmarks.compare import contest
from jobs.benchmarks.cpu import CpuMeter
from jobs.benchmarks.data import SMALL, BenchSet, pairs_below, write_pairs
from jobs.benchmarks.fake_vae import NullVae
from jobs.benchmarks.our_job import product
from jobs.benchmarks.peers.contestant import LoadStandIn, Task
from jobs.benchmarks.utilisation import FeedPlan, feed_sections

MIXED = BenchSet("two sizes", ((64, 64), (56, 80)))


def test_the_job_makes_what_the_stand_in_makes(s3, ray_cluster, tmp_path):
    local = write_pairs(tmp_path / "pairs", SMALL, 6)
    upload(tmp_path / "pairs", s3.uri("bench"))
    remote = pairs_below(s3.uri("bench"), len(local))
    product("the job").run(Task(remote, LoadStandIn(), tmp_path / "out"))
    rows = {row["key"]: row for row in iter_rows(str(tmp_path / "out"))}
    assert rows.keys() == {pair.key for pair in local}
    for pair in local:
        decoder = PairDecoder(sizing=Sizing(multiple=8))
        image = decoder.image(Path(pair.image).read_bytes())
        binary = decoder.mask(Path(pair.mask).read_bytes(), image)
        latents = NullVae().encode_levels(image.pixels[None], binary[None])[0]
        assert (rows[pair.key]["samples"] == latents).all()
        assert rows[pair.key]["mask_coverage"] >= binary.mean()


def test_a_contest_is_beside_bare_decoding(ray_cluster, tmp_path):
    pairs = write_pairs(tmp_path / "pairs", SMALL, 8)
    task = Task(pairs, LoadStandIn(), tmp_path / "out")
    with CpuMeter() as meter:
        section = contest("", [product("the job")], task, pairs, meter, few=4, repeats=1)
    unit, job, pace, *_ = section.figures
    assert unit.median > 0
    assert section.ratios[0].figure.median == pytest.approx(job.median / unit.median)
    assert pace.unit == "ms/pair"


def test_the_feed_ratio_is_of_one_run(ray_cluster, vae_folder, tmp_path):
    plan = FeedPlan(vae_folder, "cpu", batch_size=2, chunk_rows=2, settle=2, images=4, repeats=1)
    feed, stages = feed_sections(plan, tmp_path, [SMALL], MIXED)
    job, alone, mixed = (figure.median for figure in feed.figures)
    assert [ratio.figure.median for ratio in feed.ratios] == pytest.approx([job / alone, mixed / job])
    assert {figure.name.split(",")[0] for figure in stages.figures} >= {"fetch", "decode", "wait", "encode", "write"}


def test_the_command_writes_a_record(tmp_path):
    only = ["write", "fetch", "reading"]
    command = [sys.executable, "-m", "jobs.benchmarks", "--quick", "--only", *only, "--records", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (record,) = tmp_path.glob("sd-vae-random-weights_*.md")
    written = record.read_text()
    assert "write, packed masks" in written
    assert "s3fs cat_file over D" in written
    assert written.count("open_latents over .npz, packed masks") == 2
    assert record.name in done.stdout.replace("\n", "")
