"""A worker node is drained before its machine is taken away: it gets no new chunk, and those in flight end or move.

Nodes are raylets on this machine; their GPUs are only numbers.
"""

import contextlib
import subprocess
import threading
import time

import psutil
import pytest

from inpaint_encode.demo.pairs import write_random_pairs
from tests.cluster.heads import BIN, head, node, wait_for
from tests.conftest import command
from tests.outputs import data_files, whole_output

PAIRS, CHUNK = 720, 6
DEADLINE_S = 3


class Drainer(threading.Thread):
    """Drains a node with a VAE worker in the middle of a job, and ends it at the deadline."""

    def __init__(self, cluster, nodes, output, how):
        super().__init__(daemon=True)
        self.cluster, self.nodes, self.output, self.how = cluster, nodes, output, how
        self.before = 0

    def run(self):
        wait_for(lambda: self.output.exists() and len(data_files(str(self.output))) >= 4, 300, "four files")
        self.victim, self.id = next((one, id_of(one)) for one in self.nodes if id_of(one) in self.encoding())
        self.before = len(data_files(str(self.output)))
        begun = time.monotonic()
        if self.how == "sigterm":
            self.victim.terminate()
        else:
            order = [BIN / "ray", "drain-node", "--address", self.cluster.address, "--node-id", self.id]
            order += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot notice"]
            subprocess.run([*order, "--deadline-remaining-seconds", str(DEADLINE_S)], check=True, capture_output=True)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.victim.wait(DEADLINE_S)
            self.victim.kill()
        self.victim.wait(60)
        self.seconds, self.after = time.monotonic() - begun, len(data_files(str(self.output)))

    def encoding(self):
        """Ids of the nodes on which VAE workers run."""
        actors = self.cluster.state("actors", state="ALIVE")
        return {actor["node_id"] for actor in actors if "EncodeStage" in actor["repr_name"]}


def id_of(process) -> str:
    """Ray's id of a node that runs in a process of its own."""
    words = [word for child in psutil.Process(process.pid).children(recursive=True) for word in child.cmdline()]
    return next(word.removeprefix("--node_id=") for word in words if word.startswith("--node_id="))


@pytest.mark.long
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("how", ["drain-node", "sigterm"])
def test_a_drained_node_loses_no_row(tmp_path, s3, warm_workers, vae_folder, how):
    """``ray drain-node`` is what an autoscaler calls at a spot notice; SIGTERM is what Kubernetes sends."""
    write_random_pairs(tmp_path / "in", PAIRS, seed=4, smallest=100, largest=220)
    output = tmp_path / "out"
    options = ["--images", tmp_path / "in/images", "--masks", tmp_path / "in/masks", "--vae", vae_folder]
    options += ["--output", output, "--samples-dtype", "float32", "--chunk-rows", CHUNK, "--batch-size", "1"]
    options += ["--gpus-per-worker", "1", "--min-workers", "2", "--max-workers", "2"]
    store = f"--object-store-memory={2 * 10**8}"
    limit = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(DEADLINE_S)}
    with contextlib.ExitStack() as stack:
        cluster = stack.enter_context(head("--num-cpus=1", "--num-gpus=0", store))
        joining = ["--num-cpus=1", "--num-gpus=1", store]
        nodes = [stack.enter_context(node(cluster, *joining, **limit)) for _ in range(3)]
        drainer = Drainer(cluster, nodes, output, how)
        drainer.start()
        done = command("encode", *options, RAY_ADDRESS=cluster.address)
        drainer.join(60)
    print(
        f"{how} after {drainer.before} of {PAIRS // CHUNK} files; the node was gone after {drainer.seconds:.1f} s and "
        f"{drainer.after} files"
    )
    print(done.stderr)
    assert done.returncode == 0, done.stderr
    assert drainer.before < PAIRS / CHUNK
    report = whole_output(str(output))
    assert (report["encoded"], report["rejected"]) == (PAIRS, 0)
