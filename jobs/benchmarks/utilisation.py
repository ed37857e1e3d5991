"""Whether the device ever waits: the whole job's rate with a real VAE, over the rate of the VAE alone."""

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
from inpaint_encode.job.progress import Silent
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import Source, VaeSource
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.properties import vae_metadata

from .data import BenchSet, write_pairs
from .figures import Figure, Measure, Ratio, in_turn
from .our_job import run_product
from .record import Section

__all__ = ["FeedPlan", "feed_sections", "utilisation_section"]

_STAGES = ("fetch", "decode", "wait", "copy", "encode", "copy_back", "write")


@dataclass(frozen=True)
class FeedPlan:
    """How a rate is found."""

    vae: str
    """Folder of an ``AutoencoderKL``."""
    device: str
    batch_size: int
    chunk_rows: int
    settle: int
    """Pairs that are decided before a job's pace counts: in them workers start and graphs are built."""
    images: int
    """Pairs whose pace counts."""
    repeats: int = 3


class _Paced(Silent):
    """A display that remembers when how many pairs were decided."""

    def __init__(self, settle: int) -> None:
        super().__init__()
        self._settle = settle
        self._seen: list[tuple[float, int]] = []

    def update(self, done: int, rejected: int, rate: float) -> None:
        """Remember the moment."""
        if done >= self._settle:
            self._seen.append((time.perf_counter(), done))

    @property
    def rate(self) -> float:
        """Pairs a second since it has settled."""
        (start, before), (end, after) = self._seen[0], self._seen[-1]
        return (after - before) / (end - start)


def feed_sections(plan: FeedPlan, folder: Path, single: Sequence[BenchSet], mixed: BenchSet) -> list[Section]:
    """Measure the VAE alone and the job, all in turns, for each size of ``single`` and for ``mixed``.

    The data go to ``folder``. The second section says where the jobs' time went, by their own counters.
    """
    reports: dict[str, list[Any]] = {}
    measures: dict[str, Measure] = {}
    for chosen in (*single, mixed):
        source = folder / chosen.name.replace(" ", "-")
        write_pairs(source, chosen, plan.settle + plan.images)
        measures[f"job, {chosen.name}"] = partial(_job_rate, plan, source, chosen, reports)
        if chosen is not mixed:
            measures[f"VAE alone, {chosen.name}"] = partial(_kernel_rate, plan, chosen)
    rates = in_turn("megapixels/s", measures, plan.repeats, warm_ups=0)
    ratios = [Ratio(f"feed ratio, {n}", rates[f"job, {n}"], rates[f"VAE alone, {n}"]) for n in _names(single)]
    ratios += [Ratio(f"{mixed.name} over {n}", rates[f"job, {mixed.name}"], rates[f"job, {n}"]) for n in _names(single)]
    text = (
        f"The job's pace over the last {plan.images:,} of {plan.settle + plan.images:,} images, and the VAE's on "
        f"batches of {plan.batch_size} that lie in memory, on {plan.device}, in turns."
    )
    return [Section("Feed ratio", text, tuple(rates.values()), tuple(ratios)), utilisation_section(reports)]


def _names(sets: Sequence[BenchSet]) -> list[str]:
    return [one.name for one in sets]


def utilisation_section(reports: dict[str, list[Any]]) -> Section:
    """Where jobs' time went: seconds by stage for each pair, from the reports of each set's runs."""
    figures = [
        Figure(f"{stage}, {name}", "ms/pair", tuple(_stage_ms(report, stage) for report in runs))
        for name, runs in reports.items()
        for stage in _STAGES
    ]
    text = (
        "Wall time by stage as `_report.json` has it. Fetch, decode and write go on beside each other in several "
        "processes; wait is how long a worker's device had nothing to do, the time until its first batch included."
    )
    return Section("Stage utilisation", text, tuple(figures))


def _stage_ms(report: dict[str, Any], stage: str) -> float:
    return float(1e3 * report["this_run"]["counters"].get(f"{stage}_s", 0.0) / report["pairs"])


def _job_rate(plan: FeedPlan, source: Path, chosen: BenchSet, reports: dict[str, list[Any]]) -> float:
    """Megapixels a second."""
    display = _Paced(plan.settle)
    report = run_product(
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


def _kernel_rate(plan: FeedPlan, chosen: BenchSet) -> float:
    """Megapixels a second of the job's own encoder, with the next batch always launched before one is waited for."""
    ((width, height),) = chosen.sizes
    source = VaeSource(vae=plan.vae)
    vae = load_vae(source)
    encoder = BatchEncoder(vae, RowMetadata(vae=vae_metadata(vae, source)), torch.device(plan.device), compiled=True)
    pixels = np.random.default_rng(0).integers(0, 256, (plan.batch_size, height * width * 3), np.uint8)
    batch = Batch(height, width, list(pixels), [np.zeros(height * width // 8, np.uint8)] * plan.batch_size)
    _run(encoder, batch, max(1, plan.settle // plan.batch_size))
    count = max(2, plan.images // plan.batch_size)
    begun = time.perf_counter()
    _run(encoder, batch, count)
    return count * chosen.megapixels * plan.batch_size / (time.perf_counter() - begun)


def _run(encoder: BatchEncoder, batch: Batch, count: int) -> None:
    ahead = encoder.launch(batch)
    for _ in range(count - 1):
        following = encoder.launch(batch)
        ahead.result()
        ahead = following
    ahead.result()
