"""How much of their images a run's masks repaint: what shows that they are inverted, empty or full.

Workers count rows by coverage, a counter for each percent, so that the driver knows the median of any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["PREFIX", "counted", "masks_found", "suspicion"]

PREFIX = "coverage_"
"""How the counters' names begin; what follows is the percent, rounded up, and 101 for all of the image."""

_FULL = 101
_INVERTED = 80
"""Percent of its image that the median mask must repaint to look inverted."""


def counted(coverage: NDArray[np.float32]) -> Iterator[tuple[str, int]]:
    """Yield the counters of some rows' ``mask_coverage``."""
    percents = np.where(coverage == 1, _FULL, np.ceil(coverage * 100)).astype(int)
    for percent, rows in zip(*np.unique(percents, return_counts=True), strict=True):
        yield f"{PREFIX}{percent}", int(rows)


def masks_found(counters: Mapping[str, float]) -> dict[str, Any]:
    """What the report says of all rows' masks: how many, how many are empty or full, the median in percent."""
    rows = _rows_by_percent(counters)
    median = min(100, _median(rows)) if rows else None
    return {"rows": sum(rows.values()), "empty": rows.get(0, 0), "full": rows.get(_FULL, 0), "median_percent": median}


def suspicion(counters: Mapping[str, float]) -> str | None:
    """What a person should be told of the masks, if anything, with the numbers."""
    rows = _rows_by_percent(counters)
    if not rows:
        return None
    total, median = sum(rows.values()), _median(rows)
    if median == 0:
        return (
            f"masks look empty: {rows[0]:,} of {total:,} repaint nothing; what is to be repainted may be in another "
            "--mask-channel, or be black (--mask-polarity black)"
        )
    if median == _FULL:
        return f"masks look full: {rows[_FULL]:,} of {total:,} repaint all of the image; see --mask-channel"
    if median > _INVERTED:
        return (
            f"masks look inverted: half of {total:,} repaint {median - 1}% of the image or more; if it is the rest "
            "that is to be repainted, say --mask-polarity black, or opaque of --mask-channel alpha"
        )
    return None


def _rows_by_percent(counters: Mapping[str, float]) -> dict[int, int]:
    return {int(name[len(PREFIX) :]): int(rows) for name, rows in counters.items() if name.startswith(PREFIX)}


def _median(rows: Mapping[int, int]) -> int:
    """The lower one, if there are two."""
    before, middle = 0, (sum(rows.values()) + 1) // 2
    for percent in sorted(rows):
        before += rows[percent]
        if before >= middle:
            return percent
    raise AssertionError("there is a middle one of any rows")
