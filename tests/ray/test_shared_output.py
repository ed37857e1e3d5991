"""Several drivers write one output, are killed and suspended: every pair comes out exactly once."""

import random
import signal
import time

import pytest

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.job.progress import Display
from inpaint_encode.stores import storage
from tests.outputs import rows_of, whole_output, whole_report
from tests.plans import run_in_small_units

PAIRS = 140
"""Of the source at first: six units of about 24 pairs."""

MORE = 30


@pytest.fixture(scope="module")
def sources(tmp_path_factory, s3):
    """The pairs in a bucket, and a folder of pairs that can be added to them."""
    folder = tmp_path_factory.mktemp("shared")
    keys = write_random_pairs(folder / "first", PAIRS, seed=3, smallest=24, largest=48)
    more = write_random_pairs(folder / "more", MORE, seed=4, smallest=24, largest=48)
    for side in ("images", "masks"):
        (folder / "more" / side / "000").rename(folder / "more" / side / "new")
    more = [key.replace("000/", "new/", 1) for key in more]
    assert not set(keys) & set(more)
    upload(folder / "first", s3.uri("shared-in"))
    return s3.uri("shared-in"), keys, folder / "more", more


@pytest.fixture
def start(sources, s3, driver, make_job, ray_cluster):
    """Start a driver on an output, with options of its own; its leases end after ``lease_s``."""

    def begin(output, prefix=sources[0], lease_s=1.5, **options):
        cpus = {"fetch_cpus": 0.5, "encode_cpus": "0.5", "write_cpus": 0.25}  # two runs share four CPUs
        job = make_job(f"{prefix}/images", f"{prefix}/masks", output, chunk_rows=6, **cpus, **options)
        return driver(run_in_small_units, job, Display(), lease_s)

    return begin


def ended(process) -> int:
    process.join(600)
    return process.exitcode


def check(output, keys):
    """Check that the output has every pair once, and nothing else."""
    assert sorted(rows_of(output)) == sorted(keys)
    report = whole_report(output)
    assert (report["pairs"], report["encoded"], report.get("pairs_left", 0)) == (len(keys), len(keys), 0)


@pytest.mark.long
def test_two_runs_share_an_output(sources, start, s3):
    output = s3.uri("shared-by-two")
    runs = [start(output, shard=f"{number}/2") for number in range(2)]
    assert [ended(run) for run in runs] == [0, 0]
    check(output, sources[1])
    done = whole_report(output)["this_run"]["encoded"]
    assert 0 < done < PAIRS


def test_a_run_takes_over_the_shards_of_runs_that_do_not_exist(sources, start, s3):
    output = s3.uri("shared-by-none")
    assert ended(start(output, shard="1/3")) == 0
    check(output, sources[1])


def test_a_run_without_a_shard_is_refused_while_another_writes(sources, start, s3):
    output = s3.uri("shared-exclusive")
    first = start(output, shard="0/2")
    wait_for(lambda: exists(f"{output}/_leases/0-of-2.json"))
    assert ended(start(output, lease_s=30)) == 1  # a busy machine may delay the renewals of the first run
    assert ended(first) == 0
    assert ended(start(output)) == 0
    whole_output(output)


def exists(uri):
    try:
        storage.stat(uri)
    except FileNotFoundError:
        return False
    return True


def wait_for(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_runs_that_are_killed_ten_times_each_are_exact(sources, start, s3):
    output, rng, kills = s3.uri("shared-killed"), random.Random(1), [0, 0]
    runs = [start(output, shard=f"{number}/2") for number in range(2)]
    while min(kills) < 10:
        number = 0 if kills[0] <= kills[1] else 1
        time.sleep(rng.uniform(0.5, 4))
        kills[number] += runs[number].is_alive()
        runs[number].kill()
        runs[number].join()
        if kills[number] < 10 and sum(path.endswith(".parquet") for path in data_paths(output)) > 20:
            storage.delete(f"{output}/{data_paths(output)[0]}")  # there is always something to do
        runs[number] = start(output, shard=f"{number}/2")
    assert [ended(run) for run in runs] == [0, 0]
    assert ended(start(output)) == 0
    check(output, sources[1])
    print(f"two runs, killed {kills} times, exact")


def data_paths(output):
    return [path for page in storage.list_objects(output) for path in page.paths if not path.startswith("_")]


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(10))
def test_a_suspended_run_never_doubles_what_another_run_does_meanwhile(sources, start, s3, seed):
    """The first run is stopped at a random moment, planning included; the source grows; a second run takes over; the
    first goes on while the second works, or after it."""
    rng = random.Random(seed)
    prefix, output = s3.uri(f"suspended-in-{seed}"), s3.uri(f"suspended-{seed}")
    for page in storage.list_objects(sources[0]):
        for path in page.paths:
            storage.write(f"{prefix}/{path}", storage.read(f"{sources[0]}/{path}").data)
    first = start(output, prefix)
    planned_first = seed % 2 == 0
    if planned_first:
        wait_for(lambda: exists(f"{output}/_job.json"))
    time.sleep(rng.uniform(0, 0.6 if planned_first else 8))
    first_pid = first.pid
    os_signal(first_pid, signal.SIGSTOP)
    upload(sources[2], prefix)
    second = start(output, prefix)
    time.sleep(rng.uniform(0, 10))
    os_signal(first_pid, signal.SIGCONT)
    codes = ended(first), ended(second)
    assert ended(start(output, prefix)) == 0
    check(output, [*sources[1], *sources[3]])
    print(f"seed {seed}: exit codes {codes}, exact")


def os_signal(pid, number):
    import contextlib
    import os

    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
