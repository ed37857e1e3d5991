"""SIGTERM ends a command as Ctrl-C does: receipts written, lease released, exit code 143; it starts again at once."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from inpaint_encode.demo.pairs import write_random_pairs
from tests.cluster.heads import wait_for
from tests.outputs import data_files, files_of, whole_output
from tests.warm import WarmWorkers

PAIRS, CHUNK = 96, 4


@pytest.fixture
def start(detached_ray, vae_folder, tmp_path):
    """Start ``encode`` in a process of its own; return the process."""
    write_random_pairs(tmp_path / "in", PAIRS, seed=12, smallest=64, largest=96)
    options = ["--images", tmp_path / "in/images", "--masks", tmp_path / "in/masks", "--vae", vae_folder]
    options += ["--output", tmp_path / "out", "--samples-dtype", "float32", "--chunk-rows", CHUNK, "--batch-size", "1"]
    job = {"runtime_env": {"py_executable": WarmWorkers.executable}}
    environment = {"RAY_ADDRESS": detached_ray, "RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps(job)}
    command = [sys.executable, "-m", "inpaint_encode", "encode", *map(str, options)]
    started = []

    def run() -> subprocess.Popen:
        process = subprocess.Popen(command, env={**os.environ, **environment}, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def test_a_job_that_gets_sigterm_releases_its_output_and_resumes_at_once(start, tmp_path):
    """The lease is gone when the process ends. The next run neither waits for it nor finds it abandoned."""
    output = tmp_path / "out"
    process = start()
    wait_for(lambda: output.exists() and len(data_files(str(output))) >= 2, 120, "two files")
    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    wait_for(lambda: not (output / "_lease.json").exists(), 20, "the end of the lease")
    released = time.monotonic() - begun
    said = process.communicate(timeout=60)[1]
    print(f"lease released after {released:.2f} s, process ended after {time.monotonic() - begun:.2f} s")
    assert released < 3  # `ray job stop` sends SIGKILL then
    assert process.returncode == 143
    assert said.splitlines()[-1] == "error: interrupted; run the same command again to resume"
    assert any(path.startswith("_receipts/") for path in files_of(str(output)))
    assert 2 <= len(data_files(str(output))) < PAIRS / CHUNK

    resumed = start()
    said = resumed.communicate(timeout=200)[1]
    assert resumed.returncode == 0, said
    assert "writing to this output" not in said
    assert whole_output(str(output))["encoded"] == PAIRS


DISCONNECT = """
import os, signal, sys, threading, time
from inpaint_encode.job.cluster import connect_ray
received = []
signal.signal(signal.SIGTERM, lambda *_: received.append(1))
def send():
    while not ended:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.03)
ended = []
with connect_ray(sys.argv[1]):
    thread = threading.Thread(target=send)
    thread.start()
    time.sleep(0.1)
time.sleep(0.1)
ended.append(1)
thread.join()
print(len(received) > 3)
"""


def test_the_handler_of_sigterm_survives_the_end_of_the_connection(detached_ray):
    """Ray's library sets the default action when it disconnects: a report or a clean-up after that would be cut."""
    command = [sys.executable, "-c", DISCONNECT, detached_ray]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
