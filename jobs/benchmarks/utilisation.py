"""Device utilization: the whole job's rate with a real VAE, over the rate of the VAE alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from inpaint_encode.core.batch import Batch
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.job.progress import Display
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import Source, VaeSource
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata

from .data import PairSet, write_pairs
from .figures import Figure, Measure, Ratio, in_turn
from .our_job import run_our_job
from .record import Section

__all__ = ["RatePlan", "utilisation_sections"]

_STAGES = ("fetch", "decode", "wait", "copy", "encode", "copy_back", "write")


@dataclass(frozen=True)
class RatePlan:
    """How to measure a rate."""

    vae: str
    """Folder of an ``AutoencoderKL``."""
    device: str
    batch_size: int
    chunk_rows: int
    warm_up: int
    """Pairs before the clock starts: meanwhile workers start and compile."""
    images: int
    """Pairs that are timed."""
    repeats: int = 3


class _RateDisplay(Display):
    """A display that measures the rate after a warm-up, in pairs a second."""

    def __init__(self, warm_up: int) -> None:
        super().__init__()
        self._warm_up = warm_up
        self._commits: list[tuple[float, int]] = []

    def update(self, done: int, total: int, rejected: int, rate: float) -> None:
        """Record the time of a commit."""
        if done >= self._warm_up:
            self._commits.append((time.perf_counter(), done))

    @property
    def rate(self) -> float:
        """Pairs a second since the warm-up."""
        (start, before), (end, after) = self._commits[0], self._commits[-1]
        return (after - before) / (end - start)


def utilisation_sections(plan: RatePlan, folder: Path, single: Sequence[PairSet], mixed: PairSet) -> list[Section]:
    """Measure the VAE alone and the job in turn, for each size of ``single`` and for ``mixed``.

    The data go to ``folder``. The second section has the jobs' time by stage, from their reports.
    """
    reports: dict[str, list[Any]] = {}
    measures: dict[str, Measure] = {}
    for chosen in (*single, mixed):
        source = folder / chosen.name.replace(" ", "-")
        write_pairs(source, chosen, plan.warm_up + plan.images)
        measures[f"job, {chosen.name}"] = partial(_job_rate, plan, source, chosen, reports)
        if chosen is not mixed:
            measures[f"VAE alone, {chosen.name}"] = partial(_vae_rate, plan, chosen)
    rates = in_turn("megapixels/s", measures, plan.repeats, warm_ups=0)
    jobs = {chosen.name: rates[f"job, {chosen.name}"] for chosen in single}
    ratios = [Ratio(f"utilisation, {name}", job, rates[f"VAE alone, {name}"]) for name, job in jobs.items()]
    ratios += [Ratio(f"{mixed.name} over {name}", rates[f"job, {mixed.name}"], job) for name, job in jobs.items()]
    text = (
        f"The job's rate over the last {plan.images:,} of {plan.warm_up + plan.images:,} images, and the VAE's rate on "
        f"batches of {plan.batch_size} in memory, on {plan.device}, in turn. Utilisation is the job's rate over the "
        "VAE's."
    )
    return [Section("Device utilization", text, tuple(rates.values()), tuple(ratios)), _stages_section(reports)]


def _stages_section(reports: dict[str, list[Any]]) -> Section:
    """Return the milliseconds of each stage per pair, from the reports of each set's runs."""
    figures = [
        Figure(
            f"{stage}, {name}",
            "ms/pair",
            tuple(1e3 * run["this_run"]["counters"].get(f"{stage}_s", 0.0) / run["pairs"] for run in runs),
        )
        for name, runs in reports.items()
        for stage in _STAGES
    ]
    text = (
        "Wall time by stage, from `_report.json`. Fetch, decode and write run at the same time in several processes. "
        "Wait is how long a worker's device was idle, including the time until its first batch."
    )
    return Section("Time by stage", text, tuple(figures))


def _job_rate(plan: RatePlan, source: Path, chosen: PairSet, reports: dict[str, list[Any]]) -> float:
    """Return the job's megapixels a second, and append its report to ``reports``."""
    display = _RateDisplay(plan.warm_up)
    report = run_our_job(
        Source(images=f"{source}/images", masks=f"{source}/masks"),
        source / "out",
        backend_of=None,
        vae=plan.vae,
        display=display,
        gpus_per_worker="1" if plan.device == "cuda" else "0",
        batch_size=plan.batch_size,
        chunk_rows=plan.chunk_rows,
    )
    reports.setdefault(chosen.name, []).append(report)
    return display.rate * chosen.megapixels


def _vae_rate(plan: RatePlan, chosen: PairSet) -> float:
    """Return the megapixels a second of the job's encoder, with one batch always in flight."""
    ((width, height),) = chosen.sizes
    source = VaeSource(vae=plan.vae)
    vae = load_vae(source)
    encoder = BatchEncoder(vae, RowMetadata(vae=vae_metadata(vae, source)), torch.device(plan.device), compiled=True)
    pixels = np.random.default_rng(0).integers(0, 256, (plan.batch_size, height * width * 3), np.uint8)
    batch = Batch(height, width, list(pixels), [np.zeros(height * width // 8, np.uint8)] * plan.batch_size)

    def encode(count: int) -> None:
        launched = encoder.launch(batch)
        for _ in range(count - 1):
            following = encoder.launch(batch)
            launched.result()
            launched = following
        launched.result()

    encode(max(1, plan.warm_up // plan.batch_size))
    count = max(2, plan.images // plan.batch_size)
    start = time.perf_counter()
    encode(count)
    return count * chosen.megapixels * plan.batch_size / (time.perf_counter() - start)
