"""Ray's autoscaler starts and ends GPU nodes for a job; the nodes are raylets on this machine.

As in the files of cluster/, the head has no CPU, and both pools start without a node.
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
"""Enough pairs that a replacement node starts before they are done."""


@pytest.fixture
def cluster(s3, tmp_path):
    """An autoscaling cluster that has only a head, which runs no tasks."""
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
    """Watches nodes and VAE workers by Ray's state API and prints each change with its time."""

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
        """Wait until ``count`` nodes have had a VAE worker; fail if the job ends before."""
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
        encoders = {actor["node_id"] for actor in actors if "EncodeStage" in actor["repr_name"]}
        for node in encoders - self.encoding.keys():
            self.encoding[node] = time.monotonic()
            self.say(f"a VAE worker runs on {node[-4:]}")
        self.alive = alive


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_nodes_start_for_a_job_are_replaced_and_end(cluster, tmp_path, s3, vae_folder):
    """Two GPU nodes start for the job; one is killed and replaced, and no row is lost."""
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
    """Write a list of pairs of every image with every mask; return its path."""
    write_random_pairs(folder, 35, seed=5, smallest=320, largest=320)
    upload(folder, prefix)
    sides = [sorted(path.relative_to(folder) for path in (folder / side).rglob("*.*")) for side in ("images", "masks")]
    lines = ["id,image,mask"]
    for number, (image, mask) in zip(range(PAIRS), itertools.product(*sides), strict=False):
        lines.append(f"{number:05d},{prefix}/{image},{prefix}/{mask}")
    (folder / "pairs.csv").write_text("\n".join(lines))
    return folder / "pairs.csv"
