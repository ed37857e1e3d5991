"""The Ray Data template of the benchmark, on a real Ray."""

import numpy as np
import psutil
import pytest
import ray
import ray.data

from inpaint_encode import load_vae
from inpaint_encode.demo.pairs import upload
from inpaint_encode.settings import VaeSource
from jobs.benchmarks.cpu import CpuMeter
from jobs.benchmarks.data import PairSet, pair_uris, write_pairs
from jobs.benchmarks.peers.task import Task
from jobs.benchmarks.peers.template import TEMPLATE
from tests.unit.benchmarks.reference import LoadVae, expected

SIZES = ((64, 64), (83, 61), (64, 96))


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:1]], ids=["mixed sizes", "one size"])
def test_values_follow_the_contract(ray_cluster, s3, vae_folder, tmp_path, sizes):
    """From a bucket to Parquet."""
    local = write_pairs(tmp_path / "in", PairSet("sizes", sizes), 20)
    prefix = s3.uri(f"bench-{len(sizes)}")
    upload(tmp_path / "in", prefix)
    TEMPLATE.run(Task(pair_uris(prefix, 20), LoadVae(vae_folder), tmp_path / "out"))
    rows = {row["key"]: row for row in ray.data.read_parquet(str(tmp_path / "out")).take_all()}
    vae = load_vae(VaeSource(vae=vae_folder))
    assert rows.keys() == {pair.key for pair in local}
    for pair in local:
        samples, noise_mask = expected(pair, vae)
        np.testing.assert_array_equal(rows[pair.key]["noise_mask"], noise_mask, strict=True)
        np.testing.assert_allclose(rows[pair.key]["samples"], samples, atol=1e-3, strict=True)


def test_an_ended_worker_counts(ray_cluster):
    """The meter counts its CPU time, which the raylet drops, and the worker."""

    @ray.remote(max_calls=1)
    def burn():
        import os
        import time

        start = time.process_time()
        while time.process_time() - start < 3:
            pass
        return os.getpid()

    with CpuMeter() as meter:
        before = meter.read()
        worker = psutil.Process(ray.get(burn.remote()))
        worker.wait(60)
        after = meter.read()
    assert after.since(before).seconds > 2
    assert (worker.pid, worker.create_time()) in meter._workers
