"""Kill the driver at random moments, start it again, and find every row exactly once, bit for bit.

Each run is a process of its own, forked from one that has imported torch already, so that a restart costs a second;
it connects to the session's Ray as any driver does, and SIGKILL gives it no chance to clean up.
"""

import multiprocessing
import os
import random
import signal
import time
from functools import partial

import pytest

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Silent
from tests.outputs import rows_of, whole_output
from tests.warm import WarmWorkers

PAIRS = 160
WARM = {"py_executable": WarmWorkers.executable}


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
    """The rows of a run that nothing befell."""
    run_job(make_job(*source[:2], s3.uri("kill-undisturbed"), chunk_rows=8, deterministic=True), Silent())
    return rows_of(s3.uri("kill-undisturbed"))


def run_forked(job, address, runtime_env):
    """A run of ``job``, in a process that the fork server made."""
    import ray

    ray.init(address, log_to_driver=False, logging_level="ERROR", runtime_env=runtime_env)
    run_job(job, Silent())


@pytest.fixture(scope="module")
def forked_run(detached_ray):
    """Start a run in a process of its own, which has all modules already but no client and no Ray."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["inpaint_encode.job.pipeline", "inpaint_encode.core.encoder", "diffusers.models"])

    def start(job, runtime_env):
        process = processes.Process(target=run_forked, args=(job, detached_ray, runtime_env))
        process.start()
        return process

    return start


def wait(process) -> int:
    process.join(120)
    return process.exitcode


def killed_after(process, seconds: float) -> bool:
    """SIGKILL it then; whether it was still alive."""
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


def kill_and_finish(run, job, kills: int, seed: int, longest_s: float) -> int:
    """Kill a job at random moments until it has been killed ``kills`` times or is done; let it finish."""
    rng, killed = random.Random(seed), 0
    while killed < kills and killed_after(run(job), rng.uniform(0.0, longest_s)):
        killed += 1
    assert wait(run(job)) == 0
    return killed


def check(source, output, undisturbed):
    report = whole_output(output)
    assert (report["encoded"], report["rejected"]) == (PAIRS - 1, 1)
    rows = rows_of(output)
    assert sorted(rows) == sorted(undisturbed)
    assert len(rows) == PAIRS - 1
    assert rows == undisturbed


@pytest.fixture
def killed_job(source, undisturbed, s3, forked_run, make_job):
    """Kill one job ``kills`` times, let it finish, hold it against the undisturbed one; return the kills it met."""

    def run(kills: int, seed: int, longest_s: float = 5.0, runtime_env=WARM) -> int:
        output = s3.uri(f"killed-{kills}-{seed}")
        job = make_job(*source[:2], output, chunk_rows=8, deterministic=True)
        start = partial(forked_run, runtime_env=runtime_env)
        killed = kill_and_finish(start, job, kills=kills, seed=seed, longest_s=longest_s)
        check(source, output, undisturbed)
        return killed

    return run


def test_killed_at_random_moments(killed_job):
    assert killed_job(kills=6, seed=1) >= 2


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_25_times(killed_job):
    """So early, and with workers that begin so late, that a run may do a part of the job at most, and not all of it."""
    killed = killed_job(kills=25, seed=2, longest_s=4.0, runtime_env={})
    print(f"killed {killed} times, exact")
    assert killed == 25


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_100_seeds(killed_job):
    """``INPAINT_ENCODE_SEEDS`` jobs, each killed at up to six random moments."""
    seeds, total, begun = int(os.environ.get("INPAINT_ENCODE_SEEDS", "100")), 0, time.monotonic()
    for seed in range(100, 100 + seeds):
        total += killed_job(kills=6, seed=seed)
        print(f"seed {seed}: exact; {total} kills so far, {time.monotonic() - begun:,.0f} s", flush=True)
