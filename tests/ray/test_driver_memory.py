"""The driver drops Ray's statistics of blocks."""

import gc

import ray.data
from ray.data.block import BlockStats

from inpaint_encode.job.cluster import joined

BLOCKS = 60


def test_the_driver_keeps_no_statistics_of_blocks(ray_cluster):
    with joined(""):
        squares = ray.data.range(BLOCKS, override_num_blocks=BLOCKS).map_batches(lambda batch: {"n": batch["id"] ** 2})
    found = []
    for batch in squares.iter_batches(batch_size=None, prefetch_batches=0):
        found += batch["n"].tolist()
        kept = sum(type(one) is BlockStats for one in gc.get_objects())
        assert kept < BLOCKS // 2 or len(found) < BLOCKS // 2
    assert sorted(found) == [n**2 for n in range(BLOCKS)]
