"""Ray's own autoscaler, with GPU nodes that are raylets on this machine: from none to two, one lost, and to none again.

The provider of such nodes has port 6379 built in, so one such run can go on at a time.
"""

import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from inpaint_encode.demo.pairs import upload, write_random_pairs
from tests.cluster.heads import answers, head, wait_for
from tests.outputs import whole_output

PORT = 6379
PAIRS, CHUNK = 1_200, 8
"""So many that a replacement comes before they are done."""


@pytest.fixture
def cluster(s3):
    """An autoscaling cluster without a GPU node, as yet."""
    if answers(PORT):
        pytest.skip(f"port {PORT}, which Ray's provider of logical nodes has built in, is taken")
    config = Path(__file__).with_name("autoscaler.json")
    options = [f"--autoscaling-config={config}", "--num-cpus=4", "--num-gpus=0", f"--object-store-memory={2 * 10**8}"]
    fast = {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "AUTOSCALER_HEARTBEAT_TIMEOUT_S": "10"}
    with head(*options, port=PORT, RAY_FAKE_CLUSTER="1", **fast) as started:
        yield started


class TimeLine:
    """What happens to the GPU nodes, by the second, from Ray's state API; printed as it happens."""

    def __init__(self, cluster):
        self.begun, self.cluster = time.monotonic(), cluster
        self.alive, self.seen, self.encoding = set(), set(), {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def say(self, what):
        print(f"{time.monotonic() - self.begun:7.1f} s  {what}", flush=True)

    def _watch(self):
        while not self._stop.wait(0.5):
            nodes = {
                n["node_id"] for n in self.cluster.state("nodes") if n["state"] == "ALIVE" and not n["is_head_node"]
            }
            actors = {
                a["node_id"]
                for a in self.cluster.state("actors")
                if a["state"] == "ALIVE" and "Encoder" in a["repr_name"]
            }
            for node in nodes - self.alive:
                self.say(f"GPU node {node[-4:]} is up, {len(nodes)} in all")
            for node in self.alive - nodes:
                self.say(f"GPU node {node[-4:]} is gone, {len(nodes)} left")
            for node in actors - self.encoding.keys():
                self.encoding[node] = time.monotonic()
                self.say(f"a VAE worker runs on {node[-4:]}")
            self.alive = nodes
            self.seen |= nodes


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_from_no_gpu_node_to_two_and_back(cluster, tmp_path, s3, vae_folder):
    """The job's demand alone brings the nodes; the one that is killed is replaced, and costs no row."""
    output = s3.uri("scaled-out")
    options = ["--pairs", manifest_of_few_images(tmp_path, s3.uri("scaled-in")), "--key-column", "id"]
    options += ["--output", output, "--vae", vae_folder, "--samples-dtype", "float32", "--batch-size", "1"]
    options += ["--chunk-rows", CHUNK, "--gpus-per-worker", "1", "--min-workers", "2", "--max-workers", "2"]
    command = [sys.executable, "-m", "inpaint_encode.cli", "encode", *map(str, options)]
    with TimeLine(cluster) as line:
        assert line.alive == set()
        line.say(f"no GPU node; the job begins, {PAIRS // CHUNK} chunks")
        process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address})
        try:
            wait_for(lambda: len(line.encoding) == 2, 240, "two nodes that encode")
            victim = max(line.encoding, key=line.encoding.get)
            time.sleep(2)  # it is in the middle of its chunks
            assert process.poll() is None
            cluster.kill_raylet(victim)
            line.say(f"GPU node {victim[-4:]} is killed")
            wait_for(lambda: len(line.encoding) == 3 or process.poll() is not None, 240, "a replacement that encodes")
            assert process.poll() is None, "the job was done before the replacement came; it needs more pairs"
            assert process.wait(400) == 0
        finally:
            process.kill()
        line.say("the job is done")
        wait_for(lambda: not line.alive, 120, "the end of the GPU nodes")
    report = whole_output(output)
    assert (report["encoded"], report["rejected"]) == (PAIRS, 0)
    assert len(line.seen) == 3


def manifest_of_few_images(folder, prefix):
    """A list of many pairs of few files: every image with every mask."""
    write_random_pairs(folder, 35, seed=5, smallest=320, largest=320)
    upload(folder, prefix)
    sides = [sorted(path.relative_to(folder) for path in (folder / side).rglob("*.*")) for side in ("images", "masks")]
    lines = ["id,image,mask"]
    for number, (image, mask) in zip(range(PAIRS), itertools.product(*sides), strict=False):
        lines.append(f"{number:05d},{prefix}/{image},{prefix}/{mask}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"
