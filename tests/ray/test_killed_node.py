"""A worker node dies. Nodes are raylets on this machine; their GPUs are only numbers."""

import contextlib
import subprocess
import threading
import time

import pytest

from inpaint_encode.demo.pairs import write_random_pairs
from tests.cluster.heads import ray_start
from tests.conftest import command
from tests.outputs import data_files, whole_output


@pytest.mark.long
def test_a_killed_node_loses_no_row(tmp_path, detached_ray, vae_folder):
    """One of two encoding nodes is killed in the middle; the job finishes without a restart."""
    write_random_pairs(tmp_path / "in", 240, seed=4, smallest=100, largest=220)
    output = tmp_path / "out"
    options = ["--images", tmp_path / "in/images", "--masks", tmp_path / "in/masks", "--vae", vae_folder]
    options += ["--output", output, "--samples-dtype", "float32", "--chunk-rows", "6", "--batch-size", "1"]
    options += ["--gpus-per-worker", "1", "--min-workers", "2", "--max-workers", "2"]
    joining = [f"--address={detached_ray}", "--num-cpus=2", "--num-gpus=1"]
    with contextlib.ExitStack() as stack:
        cluster = [stack.enter_context(ray_start(*joining)) for _ in range(3)]
        killed = []
        killer = threading.Thread(target=lambda: killed.append(kill_in_mid_job(cluster, output)))
        killer.start()
        done = command("encode", *options, RAY_ADDRESS=detached_ray)
        killer.join()
    assert killed[0] < 40
    assert done.returncode == 0, done.stderr
    assert whole_output(str(output))["encoded"] == 240
    print(f"a node was killed after {killed[0]} of 40 files")


def kill_in_mid_job(cluster, output) -> int:
    """Kill a node on which an encoder runs as soon as a few files are there; return how many."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        count = len(data_files(str(output))) if output.exists() else 0
        if count >= 4:
            victim = next(node for node in cluster if runs_an_encoder(node))
            victim.kill()
            victim.wait(30)
            return count
        time.sleep(0.05)
    raise TimeoutError("the job has not written four files")


def runs_an_encoder(node) -> bool:
    listing = subprocess.run(["ps", "-eo", "pid,ppid,args"], capture_output=True, text=True, check=True).stdout
    family = {node.pid}
    processes = [line.split(None, 2) for line in listing.splitlines()[1:]]
    for _ in range(3):
        family |= {int(pid) for pid, parent, _ in processes if int(parent) in family}
    return any(int(pid) in family and "MapBatches(EncodeStage" in title for pid, _, title in processes)
