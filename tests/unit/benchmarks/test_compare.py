import time

import psutil
import pytest
import torch

from jobs.benchmarks.compare import compare_section
from jobs.benchmarks.cpu import CpuMeter
from jobs.benchmarks.fake_vae import FakeVae
from jobs.benchmarks.peers.task import Program, Task


def test_only_the_pairs_between_two_runs_count(pairs, tmp_path):
    """A program that uses 0.2 s at its start and 0.04 s per pair costs 40 ms per pair, by its own account."""
    used = {}

    def run(task):
        start = time.process_time()
        assert not list(task.output.iterdir())
        assert torch.get_num_threads() == 1
        while time.process_time() - start < 0.2 + 0.04 * len(task.pairs):
            pass
        (task.output / "one").touch()
        used[len(task.pairs)] = time.process_time() - start

    task = Task(pairs, FakeVae, tmp_path / "out")
    others = [child.pid for child in psutil.Process().children()]  # they may work at the same time
    with CpuMeter(exclude=others, period=5) as meter:
        section = compare_section("Mine", [Program("mine", run)], task, pairs, meter, few=2, repeats=1)
    assert list(used) == [2, 10]
    assert not task.output.exists()
    unit, mine, wall = section.figures
    assert mine.median == pytest.approx(1000 * (used[10] - used[2]) / 8, abs=10)  # the kernel counts in ticks of 10 ms
    assert wall.unit == "ms/pair"
    assert section.ratios[0].figure.median == pytest.approx(mine.median / unit.median)
