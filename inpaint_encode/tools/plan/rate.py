"""Hours and cost of a job, from the rate of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import PlanOptions
from inpaint_encode.tools.inspect.summary import read_report

if TYPE_CHECKING:
    from inpaint_encode.metadata import VaeMetadata

__all__ = ["RateEstimate", "estimate_hours", "read_finished_run"]

_AFFECTS_RATE = (
    *("config_sha256", "compute_dtype", "also_original", "tile", "tile_size", "deterministic", "mask_encoding"),
    *("resize", "resolution", "buckets", "bucket_step", "upscale"),
)
"""Recorded settings that change the work per pair."""


@dataclass(frozen=True)
class RateEstimate:
    """Hours and cost at the rate of a finished run."""

    output: str
    """Output of that run, as given to ``--rate-from``."""
    pairs: int
    """Pairs that it encoded or rejected in ``seconds``."""
    seconds: float
    startup_excluded: bool
    """Whether ``seconds`` begin when the first chunk was done, not when the run started."""
    pairs_per_second: float
    hours: float
    """For all planned pairs, without the start of Ray and of the workers if that is excluded."""
    cost: float | None
    """Of these hours, in the currency of ``--price``; None without it."""
    assumes: str
    differs: list[str]
    """Settings that change the work per pair and differ from those of the output; ``config_sha256`` is the VAE's."""


def read_finished_run(output: str) -> dict[str, Any]:
    """Return the ``_report.json`` of an output whose last run encoded pairs.

    Raises:
        UsageError: there is no report, or its run encoded nothing.
        JobFailed: the report is damaged.
    """
    report = read_report(output)
    if not report:
        raise UsageError(f"--rate-from {output}: there is no _report.json; the encode run writes it when it finishes")
    if not report["this_run"]["encoded"]:
        raise UsageError(f"--rate-from {output}: its last run encoded no pairs; name an output whose last run did")
    return report


def estimate_hours(
    report: Mapping[str, Any], options: PlanOptions, pairs: int, vae: VaeMetadata | None
) -> RateEstimate:
    """Estimate the hours and the cost of ``pairs`` pairs.

    Args:
        report: of `read_finished_run`.
        options: of the command: ``--rate-from``, ``--price``, and the settings to compare with the report's.
        pairs: number of planned pairs.
        vae: the planned VAE; None without ``--vae``.
    """
    run, asked = report["this_run"], options.estimation
    decided, seconds = run["encoded"] + run["rejected"], run["seconds"]
    marks = run.get("decided_over_time") or [(0.0, 0)]
    (first_time, first_count), (last_time, last_count) = marks[0], marks[-1]
    # In a short run most chunks end soon after the first one, and the rate between them would be far too high.
    startup_excluded = last_count > first_count and last_time - first_time >= seconds / 2
    if startup_excluded:
        decided, seconds = last_count - first_count, last_time - first_time
    rate = decided / seconds
    hours = pairs / rate / 3600
    known = {"config_sha256": vae.config_sha256} if vae else {}
    planned = {**options.rows.recorded(), **options.decoding.recorded(), **known}
    rows = report["job"].get("rows", {})
    return RateEstimate(
        output=asked.rate_from,
        pairs=decided,
        seconds=seconds,
        startup_excluded=startup_excluded,
        pairs_per_second=rate,
        hours=hours,
        cost=hours * asked.price if asked.price else None,
        assumes="the same cluster and images of similar sizes" + ("" if known else ", and the same VAE"),
        differs=[name for name in _AFFECTS_RATE if name in planned and planned[name] != rows.get(name, planned[name])],
    )
