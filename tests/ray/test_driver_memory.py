"""The driver drops Ray's statistics of blocks."""

import gc
import subprocess
import sys

import ray.data
from ray.data.block import BlockStats

from inpaint_encode.job import private
from inpaint_encode.job.cluster import connect_ray

BLOCKS = 60


def test_the_driver_keeps_no_statistics_of_blocks(ray_cluster):
    with connect_ray(""):
        squares = ray.data.range(BLOCKS, override_num_blocks=BLOCKS).map_batches(lambda batch: {"n": batch["id"] ** 2})
    found = []
    gc.collect()
    gc.freeze()  # objects from before are not statistics of this run; listing them takes a quarter of a second
    try:
        for batch in squares.iter_batches(batch_size=None, prefetch_batches=0):
            found += batch["n"].tolist()
            kept = sum(type(one) is BlockStats for one in gc.get_objects())
            assert kept < BLOCKS // 2 or len(found) < BLOCKS // 2
    finally:
        gc.unfreeze()
    assert sorted(found) == [n**2 for n in range(BLOCKS)]


def test_without_the_private_api_the_job_goes_on_with_one_log_line(ray_cluster, monkeypatch, caplog):
    """A later Ray may move or remove what `inpaint_encode.job.private` uses."""
    monkeypatch.setattr(private, "ExecutionCallback", None)
    monkeypatch.setattr(ray.data.DataContext.get_current(), "custom_execution_callback_classes", [])
    with caplog.at_level("WARNING", logger="inpaint_encode"), connect_ray(""):
        assert ray.data.range(10).map_batches(lambda batch: batch).count() == 10
    assert [record.getMessage() for record in caplog.records if record.name.startswith("inpaint_encode")] == [
        "this version of Ray keeps statistics of every block; the driver needs more memory"
    ]


def test_a_ray_without_the_module_can_be_imported():
    """The import itself is guarded, not only the use."""
    code = (
        "import sys, ray.data; sys.modules['ray.data._internal.execution.execution_callback'] = None\n"
        "import logging; logging.basicConfig(format='%(message)s')\n"
        "from inpaint_encode.job.private import drop_block_statistics\n"
        "drop_block_statistics()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("keeps statistics of every block") == 1
