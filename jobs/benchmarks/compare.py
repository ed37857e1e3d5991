"""What each program for the same work costs a pair, once it runs, beside the decoding of the pair's files alone."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from inpaint_encode.core.threads import one_thread

from .cpu import CpuMeter
from .data import Pair
from .decode import UNIT, bare_decoding
from .figures import Figure, Measure, Ratio, in_turn
from .peers.contestant import Contestant, Task
from .record import Section

__all__ = ["contest"]

_DECODED = 192
"""Pairs that one sample of D decodes; the benchmark's sets repeat after half as many."""


class _Cost(NamedTuple):
    """Of one pair more, or of a whole run."""

    cpu_ms: float
    wall_ms: float
    workers: int


def contest(
    title: str,
    contestants: Sequence[Contestant],
    task: Task,
    local: Sequence[Pair],
    meter: CpuMeter,
    *,
    few: int,
    repeats: int = 3,
) -> Section:
    """Run each contestant on the first ``few`` pairs of ``task`` and on all of them; what differs is what pairs cost.

    So that neither Ray's start nor the loading of a VAE counts as a pair's cost. A Ray worker that starts in only one
    of the two runs does: it costs seconds, so give a thousand pairs or more between ``few`` and all, and look at how
    many were started. ``local`` names the same pairs on a disk, for D. Outputs are made in ``task.output`` and removed.
    """
    costs: dict[str, list[_Cost]] = {one.name: [] for one in contestants}
    decoding = bare_decoding(local[:_DECODED])
    decoding()
    measures: dict[str, Measure] = {"D, Pillow alone": decoding}
    for one in contestants:
        measures[one.name] = partial(_sample, one, task, meter, few, costs[one.name])
    with one_thread():
        unit, *figures = in_turn(UNIT, measures, repeats, warm_ups=0).values()
    walls = [Figure(f"{name}, pace", "ms/pair", tuple(cost.wall_ms for cost in of)) for name, of in costs.items()]
    started = [
        Figure(f"{name}, Ray workers started", "processes/run", tuple(float(cost.workers) for cost in of))
        for name, of in costs.items()
        if any(cost.workers for cost in of)
    ]
    text = (
        f"A run of {len(task.pairs):,} pairs less one of {few:,}, over the pairs between; CPU time of every process, "
        "the S3 server's left out. The programs took turns, with one torch thread in this process."
    )
    ratios = tuple(Ratio(f"{figure.name} over D", figure, unit) for figure in figures)
    return Section(title, text, (unit, *figures, *walls, *started), ratios)


def _sample(one: Contestant, task: Task, meter: CpuMeter, few: int, costs: list[_Cost]) -> float:
    """CPU milliseconds of one pair more; the pace and the workers of the larger run are kept in ``costs``."""
    small, large = (_cost(one, task._replace(pairs=pairs), meter) for pairs in (task.pairs[:few], task.pairs))
    more = len(task.pairs) - few
    costs.append(
        _Cost(
            cpu_ms=(large.cpu_ms - small.cpu_ms) / more,
            wall_ms=(large.wall_ms - small.wall_ms) / more,
            workers=large.workers,
        )
    )
    return costs[-1].cpu_ms


def _cost(one: Contestant, task: Task, meter: CpuMeter) -> _Cost:
    """Of a whole run into an empty folder, which is removed when the clock has stopped."""
    task.output.mkdir(parents=True)
    before, start = meter.read(), time.perf_counter()
    one.run(task)
    used, wall = meter.read().since(before), time.perf_counter() - start
    shutil.rmtree(task.output)
    return _Cost(1000 * used.seconds, 1000 * wall, used.workers_started)
