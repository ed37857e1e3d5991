"""Ray's own autoscaler, whose GPU nodes are raylets on this machine: from none to two, one lost, and to none again.

The nodes are laid out as the files of cluster/ have them: a head without a CPU, and both pools from nothing.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.util import get_node_ip_address

from inpaint_encode.demo.pairs import upload, write_random_pairs
from tests.cluster.heads import free_port, head, wait_for
from tests.outputs import data_files, whole_output

PAIRS, CHUNK = 1_200, 8
"""So many that a replacement comes before they are done."""


@pytest.fixture
def cluster(s3, tmp_path):
    """An autoscaling cluster of a head that does no work, as yet."""
    port, config = free_port(), json.loads(Path(__file__).with_name("autoscaler.json").read_text())
    config["provider"]["gcs_address"] = f"{get_node_ip_address()}:{port}"
    written = tmp_path / "autoscaler.json"
    written.write_text(json.dumps(config))
    options = [f"--autoscaling-config={written}", "--num-cpus=0", "--num-gpus=0", f"--object-store-memory={2 * 10**8}"]
    environment = {"RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    own_id = {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    with head(*options, port=port, **environment, **own_id) as started:
        yield started


class TimeLine:
    """What happens to the nodes, by the second, from Ray's state API; printed as it happens."""

    def __init__(self, cluster):
        self.begun, self.cluster = time.monotonic(), cluster
        self.alive, self.seen, self.encoding = set(), {}, {}
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

    def wait_for_encoders(self, count, job):
        """Until so many nodes have had a VAE worker; a job that ends before has too few pairs, or failed."""
        wait_for(lambda: len(self.encoding) == count or job.poll() is not None, 240, f"the {count}. node that encodes")
        assert job.poll() is None

    def _watch(self):
        while not self._stop.wait(0.5):
            with contextlib.suppress(OSError):  # a busy dashboard may not answer for a moment
                self._look()

    def _look(self):
        nodes, actors = (
            [one for one in self.cluster.state(kind) if one["state"] == "ALIVE"] for kind in ("nodes", "actors")
        )
        workers = [node for node in nodes if not node["is_head_node"]]
        alive = {node["node_id"] for node in workers}
        self.seen |= {node["node_id"]: "GPU" if "GPU" in node["resources_total"] else "CPU" for node in workers}
        for node in alive - self.alive:
            self.say(f"{self.seen[node]} node {node[-4:]} is up, {len(alive)} in all")
        for node in self.alive - alive:
            self.say(f"{self.seen[node]} node {node[-4:]} is gone, {len(alive)} left")
        for node in {actor["node_id"] for actor in actors if "Encoder" in actor["repr_name"]} - self.encoding.keys():
            self.encoding[node] = time.monotonic()
            self.say(f"a VAE worker runs on {node[-4:]}")
        self.alive = alive


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_from_no_gpu_node_to_two_and_back(cluster, tmp_path, s3, vae_folder):
    """The job's demand and labels bring the nodes; the one that is killed is replaced, and costs no row."""
    output = s3.uri("scaled-out")
    options = ["--pairs", manifest_of_few_images(tmp_path, s3.uri("scaled-in")), "--key-column", "id"]
    options += ["--output", output, "--vae", vae_folder, "--samples-dtype", "float32", "--batch-size", "1"]
    options += ["--chunk-rows", CHUNK, "--gpus-per-worker", "1", "--min-workers", "2", "--max-workers", "2"]
    options += ["--encode-on", "pool=vae", "--fetch-on", "pool=data"]
    command = [sys.executable, "-m", "inpaint_encode", "encode", *map(str, options)]
    with TimeLine(cluster) as line:
        assert line.alive == set()
        line.say(f"no node but the head; the job begins, {PAIRS // CHUNK} chunks")
        process = subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": cluster.address})
        try:
            line.wait_for_encoders(2, process)
            victim = max(line.encoding, key=line.encoding.get)
            done = len(data_files(output))
            wait_for(lambda: len(data_files(output)) >= done + 4, 240, "chunks of both workers")
            cluster.kill_raylet(victim)
            line.say(f"GPU node {victim[-4:]} is killed")
            line.wait_for_encoders(3, process)
            assert process.wait(400) == 0
        finally:
            process.kill()
        line.say("the job is done")
        wait_for(lambda: not line.alive, 120, "the end of the nodes")
    report = whole_output(output)
    assert (report["encoded"], report["rejected"]) == (PAIRS, 0)
    assert sorted(line.seen.values()) == ["CPU", "GPU", "GPU", "GPU"]
    assert {line.seen[node] for node in line.encoding} == {"GPU"}


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
