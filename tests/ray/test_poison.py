"""A file that kills the process that decodes it costs its pair, and nothing else: the job ends with all other rows."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from inpaint_encode.demo.pairs import write_random_pairs
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.settings import EncodeJob
from tests import poison
from tests.files import saved
from tests.outputs import rejects_of, rows_of, whole_output, whole_report


def encode(job: str) -> None:
    run_job(EncodeJob.model_validate_json(job))


def write_poisoned_pairs(folder: Path, count: int) -> Path:
    """Write pairs; return the image in the middle, which kills its decoder."""
    import numpy as np

    write_random_pairs(folder, count, seed=3, smallest=64, largest=96)
    image = sorted((folder / "images").rglob("*.*"))[count // 2]
    levels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    image.unlink()
    image = image.with_suffix(".jpg")
    image.write_bytes(poison.poisoned(saved(levels, "JPEG"), poison.CRASH))
    return image


def run(folder: Path, image: Path, count: int, make_job, driver) -> float:
    """Encode the pairs with workers whose JPEG decoder has the flaw; return the seconds."""
    job = make_job(
        folder / "images", folder / "masks", folder / "out", chunk_rows=max(10, count // 8), deterministic=True
    )
    start = time.monotonic()
    process = driver(encode, job.model_dump_json(), **{poison.VARIABLE: "1"})
    process.join(600)
    assert process.exitcode == 0
    seconds = time.monotonic() - start
    output = str(folder / "out")
    report = whole_output(output)
    assert (report["encoded"], report["rejected_by_error"]) == (count - 1, {"image.crashed": 1})
    (reject,) = rejects_of(output)
    assert reject["image_uri"] == str(image)
    assert "ended by SIGSEGV" in reject["message"]
    return seconds


def test_ray_counts_the_attempts_of_a_task(ray_cluster):
    """Also of one whose process has died."""
    import ray

    @ray.remote(max_retries=-1)
    def attempt() -> int:
        from inpaint_encode.job.private import task_attempt

        if task_attempt() < 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return task_attempt()

    assert 3 <= ray.get(attempt.remote(), timeout=120) < 10


@pytest.mark.long
def test_a_poison_file_among_1000_pairs(tmp_path, make_job, driver):
    """It costs the attempts of its chunk, and rows are those of a job without it."""
    image = write_poisoned_pairs(tmp_path, 1_000)
    seconds = run(tmp_path, image, 1_000, make_job, driver)
    job = make_job(tmp_path / "images", tmp_path / "masks", tmp_path / "plain", chunk_rows=125, deterministic=True)
    start = time.monotonic()
    process = driver(encode, job.model_dump_json())
    process.join(600)
    plain = time.monotonic() - start
    rows, wanted = rows_of(str(tmp_path / "out")), rows_of(str(tmp_path / "plain"))
    assert len(rows) == 999
    assert all(row == wanted[key] for key, row in rows.items())
    counters = json.dumps(whole_report(str(tmp_path / "plain"))["rejected_by_error"])
    print(f"\n1,000 pairs with a poison file: {seconds:.1f} s; without the flaw: {plain:.1f} s, rejects {counters}")
