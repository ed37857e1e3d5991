"""The driver is killed with SIGKILL and started again: every row comes out exactly once, bit for bit.

Each run is a driver process of its own on the session's Ray.
"""

import os
import random
import signal
import time
from functools import partial

import pytest

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from tests.outputs import rows_of, whole_output
from tests.plans import run_in_small_units

PAIRS = 160


@pytest.fixture(scope="module")
def source(tmp_path_factory, s3):
    folder = tmp_path_factory.mktemp("kill")
    keys = write_random_pairs(folder, PAIRS, seed=11, smallest=32, largest=96)
    (folder / "images" / f"{keys[5]}.png").unlink(missing_ok=True)
    (folder / "images" / f"{keys[5]}.jpg").write_bytes(b"not a jpeg")
    upload(folder, s3.uri("kill-in"))
    return s3.uri("kill-in", "images"), s3.uri("kill-in", "masks"), sorted(keys)


@pytest.fixture(scope="module")
def undisturbed(source, s3, ray_cluster, make_job):
    """Rows of a run that was not killed."""
    run_job(make_job(*source[:2], s3.uri("kill-undisturbed"), chunk_rows=8, deterministic=True), Display())
    return rows_of(s3.uri("kill-undisturbed"))


class KillsItself(Display):
    """A display that kills its own process when as many chunks of this run are done."""

    def __init__(self, chunks: int) -> None:
        super().__init__()
        self.left = chunks

    def start(self, total: int, done: int) -> None:
        self._kill_at_zero()

    def update(self, done: int, total: int, rejected: int, rate: float) -> None:
        self.left -= 1
        self._kill_at_zero()

    def _kill_at_zero(self) -> None:
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def wait(process) -> int:
    process.join(600)
    return process.exitcode


def killed_after(process, seconds: float) -> bool:
    """Kill the process then; return whether it was still alive."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def kill_and_finish(run, kills: int, seed: int, longest_s: float) -> int:
    """Kill a job at random moments until it has been killed ``kills`` times or is done; let it finish."""
    rng, killed = random.Random(seed), 0
    while killed < kills and killed_after(run(), rng.uniform(0.0, longest_s)):
        killed += 1
    assert wait(run()) == 0
    return killed


def check(source, output, undisturbed):
    """Compare the output with the one of the run that was not killed."""
    report = whole_output(output)
    assert (report["encoded"], report["rejected"]) == (PAIRS - 1, 1)
    rows = rows_of(output)
    assert sorted(rows) == sorted(undisturbed)
    assert len(rows) == PAIRS - 1
    assert rows == undisturbed


@pytest.fixture
def killed_job(source, undisturbed, s3, driver, make_job):
    """Kill one job at ``kills`` random moments, let it finish and check it; return how often it was killed."""

    def run(kills: int, seed: int, longest_s: float = 5.0, **options) -> int:
        output = s3.uri(f"killed-{kills}-{seed}")
        job = make_job(*source[:2], output, chunk_rows=8, deterministic=True)
        start = partial(driver, run_in_small_units, job, Display(), **options)
        killed = kill_and_finish(start, kills=kills, seed=seed, longest_s=longest_s)
        check(source, output, undisturbed)
        return killed

    return run


def test_a_job_that_is_killed_between_chunks_resumes(source, undisturbed, s3, driver, make_job):
    """Of 20 chunks none, one, two and three are done in the runs that are killed."""
    output = s3.uri("killed-between-chunks")
    job = make_job(*source[:2], output, chunk_rows=8, deterministic=True)
    for chunks in range(4):
        assert wait(driver(run_in_small_units, job, KillsItself(chunks))) == -signal.SIGKILL
    assert wait(driver(run_in_small_units, job, Display())) == 0
    check(source, output, undisturbed)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_job_that_is_killed_25_times_at_random_moments_resumes(killed_job):
    """The workers start slowly, without the fork server, so that no run can finish before its kill."""
    killed = killed_job(kills=25, seed=2, longest_s=4.0, runtime_env={})
    print(f"killed {killed} times, exact")
    assert killed == 25


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_100_jobs_that_are_killed_at_random_moments_resume(killed_job):
    """``INPAINT_ENCODE_SEEDS`` jobs, each killed at up to six random moments."""
    seeds, total, begun = int(os.environ.get("INPAINT_ENCODE_SEEDS", "100")), 0, time.monotonic()
    for seed in range(100, 100 + seeds):
        total += killed_job(kills=6, seed=seed)
        print(f"seed {seed}: exact; {total} kills so far, {time.monotonic() - begun:,.0f} s", flush=True)
