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
from tests.cluster.heads import wait_for
from tests.unit.benchmarks.reference import LoadVae, expected

SIZES = ((64, 64), (83, 61), (64, 96))


@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param(SIZES, id="mixed sizes"),
        pytest.param(SIZES[:1], id="one size", marks=pytest.mark.long),
    ],
)
def test_the_ray_data_template_writes_the_contracts_values(ray_cluster, s3, vae_folder, tmp_path, sizes):
    """The template reads pairs from a bucket and writes Parquet."""
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


def test_the_time_of_a_worker_that_has_ended_counts(ray_cluster):
    """The raylet drops this time. Another worker stays alive."""

    @ray.remote
    class Burner:
        def burn(self):
            import os
            import time

            start = time.process_time()
            while time.process_time() - start < 3:
                pass
            return os.getpid()

    with CpuMeter() as meter:
        before = meter.read()
        ending, staying = Burner.options(num_cpus=0).remote(), Burner.options(num_cpus=0).remote()
        pid = ray.get(ending.burn.remote())
        ray.get(staying.__ray_ready__.remote())
        assert meter.read().since(before).seconds > 2
        ray.kill(ending)
        wait_for(lambda: not psutil.pid_exists(pid), 120, "the end of the worker")
        after = meter.read()
        assert after.since(before).seconds > 2
        assert any(worker[0] == pid for worker in meter._workers)
