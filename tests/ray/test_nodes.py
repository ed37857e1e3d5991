"""A worker node dies: raylets of their own on this machine, each with a GPU that is only a number."""

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inpaint_encode.demo.pairs import write_random_pairs
from tests.conftest import command
from tests.outputs import data_files, whole_output


class Node:
    """A raylet that joins the cluster, with two CPUs and one logical GPU."""

    def __init__(self, address):
        ray = Path(sys.executable).parent / "ray"
        arguments = [
            "start",
            f"--address={address}",
            "--block",
            "--num-cpus=2",
            "--num-gpus=1",
            "--disable-usage-stats",
        ]
        self.process = subprocess.Popen([ray, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def die(self):
        """Without a word: its raylet and its workers die with the process."""
        self.process.kill()
        self.process.wait(30)


@pytest.mark.long
def test_a_killed_node_costs_no_row(tmp_path, detached_ray, vae_folder):
    """Two GPU nodes encode, one is killed in mid-job; the job ends exact without a restart."""
    write_random_pairs(tmp_path / "in", 240, seed=4, smallest=100, largest=220)
    output = tmp_path / "out"
    options = ["--images", tmp_path / "in/images", "--masks", tmp_path / "in/masks", "--vae", vae_folder]
    options += ["--output", output, "--samples-dtype", "float32", "--chunk-rows", "6", "--batch-size", "1"]
    options += ["--gpus-per-worker", "1", "--min-workers", "2", "--max-workers", "2"]
    with nodes(detached_ray, 3) as cluster:
        killed = []
        killer = threading.Thread(target=lambda: killed.append(kill_in_mid_job(cluster, output)))
        killer.start()
        done = command("encode", *options, RAY_ADDRESS=detached_ray)
        killer.join()
    assert killed[0] < 40
    assert done.returncode == 0, done.stderr
    assert whole_output(str(output))["encoded"] == 240
    print(f"a node was killed after {killed[0]} of 40 files")


@contextlib.contextmanager
def nodes(address, count):
    started = [Node(address) for _ in range(count)]
    try:
        yield started
    finally:
        for node in started:
            node.die()


def kill_in_mid_job(cluster, output) -> int:
    """Kill a node on which an encoder runs as soon as a few files are there; return how many."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        count = len(data_files(str(output))) if output.exists() else 0
        if count >= 4:
            victim = next(node for node in cluster if runs_an_encoder(node))
            victim.die()
            return count
        time.sleep(0.05)
    raise TimeoutError("the job has not written four files")


def runs_an_encoder(node) -> bool:
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    family = {node.process.pid}
    processes = [line.split(None, 2) for line in listing.splitlines()[1:]]
    for _ in range(3):
        family |= {int(pid) for pid, parent, _ in processes if int(parent) in family}
    return any(int(pid) in family and "MapBatches(Encoder" in title for pid, _, title in processes)
