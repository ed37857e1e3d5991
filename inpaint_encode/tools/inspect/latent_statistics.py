"""Statistics of stored latents by channel, and rows whose latents are unusual."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from inpaint_encode.metadata import RowMetadata

from .row_sample import RowLocation

UNUSUAL = 5.0
"""Robust standard deviations from the median at which a row counts as unusual."""

MIN_ROWS = 20
"""Rows that are needed to find unusual ones."""

_CELLS = 64
"""Values of each row and channel that are kept for quantiles, histograms and colors."""


class RowStatistics(NamedTuple):
    """Statistics of one row's latent."""

    location: RowLocation
    key: str
    cells: int
    """Values of each channel."""
    figures: NDArray[np.float64]
    """``[4, C]``: mean, standard deviation, minimum and maximum of each channel."""
    sample: NDArray[np.float32]
    """``[C, n]``, the same randomly drawn cells of each channel; all of a small latent."""


class ChannelStatistics(NamedTuple):
    """Statistics of many rows; arrays have one value per channel ``[C]``."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    minimum: NDArray[np.float64]
    low: NDArray[np.float64]
    """1% quantile of the kept cells."""
    high: NDArray[np.float64]
    """99% quantile of the kept cells."""
    maximum: NDArray[np.float64]
    counts: NDArray[np.int64]
    """``[C, 40]``, histogram of the kept cells; all channels have the same bins."""
    edges: NDArray[np.float64]
    """``[41]``, from the smallest ``low`` to the largest ``high``."""


class Outlier(NamedTuple):
    """A row whose latent is unusual."""

    location: RowLocation
    key: str
    score: float
    """Distance from the median in robust standard deviations."""
    reason: str


def latent_of(row: Mapping[str, Any], metadata: RowMetadata) -> NDArray[Any]:
    """Return a row's latent ``[C, h, w]``; of stored moments the means."""
    samples: NDArray[Any] = row["samples"]
    return samples[: len(samples) // 2] if metadata.posterior == "moments" else samples


def row_statistics(location: RowLocation, row: Mapping[str, Any], metadata: RowMetadata) -> RowStatistics | None:
    """Return the statistics of a row's latent; None if it has NaN or infinite values."""
    latent = latent_of(row, metadata)
    cells = latent.reshape(len(latent), -1).astype(np.float64)
    if not np.isfinite(cells).all():
        return None
    count = cells.shape[1]
    kept = np.arange(count) if count <= _CELLS else np.random.default_rng(location.row).integers(0, count, _CELLS)
    figures = np.stack([cells.mean(axis=1), cells.std(axis=1), cells.min(axis=1), cells.max(axis=1)])
    return RowStatistics(location, row["key"], count, figures, cells[:, kept].astype(np.float32))


def channel_statistics(rows: Sequence[RowStatistics]) -> ChannelStatistics:
    """Combine the statistics of at least one row."""
    weights = np.array([row.cells for row in rows])
    means, stds, minima, maxima = np.stack([row.figures for row in rows], axis=1)
    mean = np.average(means, axis=0, weights=weights)
    std = np.sqrt(np.average(stds**2 + (means - mean) ** 2, axis=0, weights=weights))
    kept = np.concatenate([row.sample for row in rows], axis=1).astype(np.float64)
    low, high = np.quantile(kept, [0.01, 0.99], axis=1)
    edges = np.linspace(low.min(), max(high.max(), low.min() + 1e-6), 41)
    counts = np.stack([np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0] for values in kept])
    return ChannelStatistics(mean, std, minima.min(axis=0), low, high, maxima.max(axis=0), counts, edges)


def find_outliers(rows: Sequence[RowStatistics]) -> list[Outlier]:
    """Return up to 10 rows with a channel whose mean or spread is far from that of other rows, the farthest first.

    The distance is measured in robust standard deviations, 1.4826 times the median distance from the median, so that
    outliers do not hide each other. A figure that is equal in most rows is ignored: its robust deviation is 0. Fewer
    than `MIN_ROWS` rows have no outliers.
    """
    if len(rows) < MIN_ROWS:
        return []
    figures = np.stack([row.figures[:2] for row in rows])
    median = np.median(figures, axis=0)
    deviation = 1.4826 * np.median(np.abs(figures - median), axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(deviation > 1e-6, np.abs(figures - median) / deviation, 0.0)
    outliers = []
    for number in np.argsort(-scores.max(axis=(1, 2)), kind="stable")[:10]:
        kind, channel = np.unravel_index(scores[number].argmax(), scores[number].shape)
        value, usual, spread = (float(of[kind, channel]) for of in (figures[number], median, deviation))
        score = float(scores[number, kind, channel])
        if score >= UNUSUAL:
            name = ("mean", "spread")[kind]
            reason = f"{name} of channel {channel} is {value:.2f}; most rows have {usual:.2f} ± {spread:.2f}"
            outliers.append(Outlier(rows[number].location, rows[number].key, score, reason))
    return outliers
