"""Statistics of ``mask_coverage`` over a run; they show masks that are inverted, empty or full.

Workers count rows in one counter per percent of coverage. From these the driver knows the median of any number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

PREFIX = "coverage_"
"""Prefix of the counters' names. The rest is the coverage in percent, rounded up; 101 if all of the image is masked."""

_FULL = 101
_INVERTED = 80
"""Above this median coverage in percent, masks look inverted."""


def coverage_counters(coverage: NDArray[np.float32]) -> Iterator[tuple[str, int]]:
    """Yield the name and count of each counter for ``mask_coverage`` ``[rows]`` in 0..1."""
    percents = np.where(coverage == 1, _FULL, np.ceil(coverage * 100)).astype(int)
    for percent, rows in zip(*np.unique(percents, return_counts=True), strict=True):
        yield f"{PREFIX}{percent}", int(rows)


def coverage_summary(counters: Mapping[str, float]) -> dict[str, Any]:
    """Return the report's numbers: rows, rows with an empty mask, rows with a full mask, median coverage in percent."""
    rows = _rows_by_percent(counters)
    median = min(100, _median(rows)) if rows else None
    return {"rows": sum(rows.values()), "empty": rows.get(0, 0), "full": rows.get(_FULL, 0), "median_percent": median}


def coverage_warning(counters: Mapping[str, float]) -> str | None:
    """Return a sentence if the masks look empty, full or inverted, else None."""
    rows = _rows_by_percent(counters)
    if not rows:
        return None
    total, median = sum(rows.values()), _median(rows)
    if median == 0:
        return (
            f"masks look empty: {rows[0]:,} of {total:,} masks repaint nothing; the mask may be in another "
            "--mask-channel, or black may mark what to repaint (--mask-polarity black)"
        )
    if median == _FULL:
        return f"masks look full: {rows[_FULL]:,} of {total:,} masks repaint all of their image; see --mask-channel"
    if median > _INVERTED:
        return (
            f"masks look inverted: half of {total:,} masks cover at least {median - 1}% of their image; to repaint the "
            "rest instead, change --mask-polarity (white or black; with alpha transparent or opaque)"
        )
    return None


def _rows_by_percent(counters: Mapping[str, float]) -> dict[int, int]:
    return {int(name[len(PREFIX) :]): int(rows) for name, rows in counters.items() if name.startswith(PREFIX)}


def _median(rows: Mapping[int, int]) -> int:
    """Return the median percent; of two middle rows the lower."""
    before, middle = 0, (sum(rows.values()) + 1) // 2
    for percent in sorted(rows):
        before += rows[percent]
        if before >= middle:
            return percent
    raise AssertionError("a nonempty count has a median")
