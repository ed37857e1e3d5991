"""The cost of one more pair in each program, compared with the cost of decoding the pair's files alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from .cpu import CpuMeter
from .data import Pair
from .decode import UNIT, measure_decoding
from .figures import Figure, Measure, Ratio, in_turn
from .peers.task import Program, Task
from .record import Section
from .threads import one_thread

__all__ = ["compare_section"]

_DECODED = 192
"""Pairs that one sample of D decodes. The data sets repeat after half that number."""


class _Cost(NamedTuple):
    cpu_ms: float
    wall_ms: float
    workers: int
    """Ray workers that were started."""


def compare_section(
    title: str,
    programs: Sequence[Program],
    task: Task,
    local: Sequence[Pair],
    meter: CpuMeter,
    *,
    few: int,
    repeats: int = 3,
) -> Section:
    """Run each program on the first ``few`` pairs of ``task`` and on all pairs; the difference is what pairs cost.

    Ray's start and the loading of a VAE cancel out. A Ray worker that starts in only one of the two runs does not: it
    costs seconds. Use a thousand pairs or more between ``few`` and all, and look at the number of started workers.

    Args:
        title: title of the section.
        programs: what to compare; they take turns.
        task: the pairs and the output folder, which is created and removed by each run.
        local: the same pairs on a disk, for D.
        meter: measures CPU time.
        few: pairs of the smaller run.
        repeats: samples of each figure.
    """
    costs: dict[str, list[_Cost]] = {program.name: [] for program in programs}
    measures: dict[str, Measure] = {"D, Pillow alone": measure_decoding(local[:_DECODED])}
    for program in programs:
        measures[program.name] = partial(_sample, program, task, meter, few, costs[program.name])
    measures["D, Pillow alone"]()  # warm-up
    with one_thread():
        unit, *figures = in_turn(UNIT, measures, repeats, warm_ups=0).values()
    walls = [Figure(f"{name}, wall", "ms/pair", tuple(cost.wall_ms for cost in runs)) for name, runs in costs.items()]
    started = [
        Figure(f"{name}, Ray workers started", "processes/run", tuple(float(cost.workers) for cost in runs))
        for name, runs in costs.items()
        if any(cost.workers for cost in runs)
    ]
    text = (
        f"A run of {len(task.pairs):,} pairs minus a run of {few:,}, divided by the pairs between. CPU time of all "
        "processes except the S3 server. The programs took turns; torch had one thread in this process."
    )
    ratios = tuple(Ratio(f"{figure.name} over D", figure, unit) for figure in figures)
    return Section(title, text, (unit, *figures, *walls, *started), ratios)


def _sample(program: Program, task: Task, meter: CpuMeter, few: int, costs: list[_Cost]) -> float:
    """Return the CPU milliseconds of one more pair, and append all costs of one more pair to ``costs``."""
    small, large = (_run(program, task._replace(pairs=pairs), meter) for pairs in (task.pairs[:few], task.pairs))
    more = len(task.pairs) - few
    cpu_ms, wall_ms = (large.cpu_ms - small.cpu_ms) / more, (large.wall_ms - small.wall_ms) / more
    costs.append(_Cost(cpu_ms, wall_ms, large.workers))
    return cpu_ms


def _run(program: Program, task: Task, meter: CpuMeter) -> _Cost:
    """Return the cost of a whole run into an empty folder."""
    task.output.mkdir(parents=True)
    before, start = meter.read(), time.perf_counter()
    program.run(task)
    used, wall = meter.read().since(before), time.perf_counter() - start
    shutil.rmtree(task.output)
    return _Cost(1000 * used.seconds, 1000 * wall, used.workers_started)
