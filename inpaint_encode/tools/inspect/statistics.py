"""What the latents of some rows are like, channel by channel, and which rows are unlike the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from inpaint_encode.metadata import RowMetadata

from .pictures import LatentColours
from .sample import Drawn, Place

__all__ = ["BINS", "FEWEST", "UNUSUAL", "Channels", "LatentSums", "Outlier", "latent_of"]

BINS = 40
"""Bars of a channel's histogram."""

UNUSUAL = 5.0
"""Robust standard deviations from the median from which on a row is told as an outlier."""

FEWEST = 20
"""Rows of which outliers are told at least: of fewer, nobody knows what is usual."""
_TAKEN = 64
"""Cells of each row that are kept, for quantiles and histograms."""


def latent_of(row: Mapping[str, Any], metadata: RowMetadata) -> NDArray[Any]:
    """A row's latent ``[C, h, w]``; of moments the means."""
    samples: NDArray[Any] = row["samples"]
    return samples[: len(samples) // 2] if metadata.posterior == "moments" else samples


class Channels(NamedTuple):
    """Figures of all sampled values, one for each channel ``[C]``."""

    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    least: NDArray[np.float64]
    most: NDArray[np.float64]
    low: NDArray[np.float64]
    """What one in a hundred values is below, and ``high`` above; of the cells that are kept of each row."""
    high: NDArray[np.float64]
    counts: NDArray[np.int64]
    """``[C, BINS]``, a histogram of the kept cells from the least ``low`` to the largest ``high`` of all channels."""
    edges: NDArray[np.float64]
    """``[BINS + 1]``"""


class Outlier(NamedTuple):
    """A row that is unlike the others."""

    place: Place
    key: str
    score: float
    """How far off it is, in robust standard deviations."""
    what: str


class _Sums(NamedTuple):
    """Over cells, one for each channel ``[C]``."""

    cells: int
    total: NDArray[np.float64]
    products: NDArray[np.float64]
    """``[C, C]``, of all pairs of channels."""
    least: NDArray[np.float64]
    most: NDArray[np.float64]

    @classmethod
    def of(cls, cells: NDArray[np.float64]) -> Self:
        """Sum over cells ``[C, n]``."""
        return cls(cells.shape[1], cells.sum(axis=1), cells @ cells.T, cells.min(axis=1), cells.max(axis=1))

    def plus(self, other: _Sums | None) -> _Sums:
        """Return the sums over the cells of both."""
        if other is None:
            return self
        least, most = np.minimum(self.least, other.least), np.maximum(self.most, other.most)
        return _Sums(self.cells + other.cells, self.total + other.total, self.products + other.products, least, most)


@dataclass
class LatentSums:
    """Sums over some rows' latents; those of other rows can be added."""

    rows: int = 0
    not_finite: int = 0
    """Rows that have such values; they are in no sum."""
    sums: _Sums | None = None
    kept: list[NDArray[np.float32]] = field(default_factory=list)
    """``[C, n]`` of each row."""
    features: list[NDArray[np.float64]] = field(default_factory=list)
    """``[2, C]`` of each row: mean and standard deviation of each channel."""
    places: list[Place] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, drawn: Drawn, rows: Iterable[Mapping[str, Any]], metadata: RowMetadata) -> Self:
        """Sum over the drawn rows of one row group."""
        sums = cls()
        for index, row in zip(drawn.rows, rows, strict=True):
            sums._add(Place(drawn.file, drawn.group, index), row["key"], latent_of(row, metadata))
        return sums

    def _add(self, place: Place, key: str, latent: NDArray[Any]) -> None:
        cells = latent.reshape(len(latent), -1).astype(np.float64)
        if not np.isfinite(cells).all():
            self.not_finite += 1
            return
        picked = np.random.default_rng(place.row).integers(0, cells.shape[1], _TAKEN)
        self.sums = _Sums.of(cells).plus(self.sums)
        self.rows += 1
        self.kept.append(cells[:, picked].astype(np.float32))
        self.features.append(np.stack([cells.mean(axis=1), cells.std(axis=1)]))
        self.places.append(place)
        self.keys.append(key)

    def add(self, other: Self) -> None:
        """Add the sums over other rows."""
        self.sums = other.sums.plus(self.sums) if other.sums else self.sums
        self.rows += other.rows
        self.not_finite += other.not_finite
        for name in ("kept", "features", "places", "keys"):
            getattr(self, name).extend(getattr(other, name))

    def channels(self) -> Channels:
        """Figures of all rows; there must be one."""
        assert self.sums is not None
        kept = np.concatenate(self.kept, axis=1).astype(np.float64)
        low, high = np.quantile(kept, [0.01, 0.99], axis=1)
        edges = np.linspace(low.min(), max(high.max(), low.min() + 1e-6), BINS + 1)
        counts = np.stack([np.histogram(np.clip(one, edges[0], edges[-1]), edges)[0] for one in kept])
        mean, covariance = self._moments()
        deviation = np.sqrt(np.maximum(np.diag(covariance), 0))
        return Channels(mean, deviation, self.sums.least, self.sums.most, low, high, counts, edges)

    def colours(self) -> LatentColours:
        """Colours by the directions in which all these rows' cells vary; there must be one."""
        return LatentColours.of(*self._moments())

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        assert self.sums is not None
        mean = self.sums.total / self.sums.cells
        return mean, self.sums.products / self.sums.cells - np.outer(mean, mean)

    def outliers(self, most: int) -> list[Outlier]:
        """Rows of which a channel's mean or spread is far from the other rows', the farthest first.

        How far is told in robust standard deviations, 1.4826 times the median distance from the median, so that
        outliers do not hide each other. A figure that is the same in most rows tells none, since its distance is 0;
        and none are told of fewer than 20 rows.
        """
        if self.rows < FEWEST:
            return []
        features = np.stack(self.features)
        median = np.median(features, axis=0)
        scale = 1.4826 * np.median(np.abs(features - median), axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            scores = np.where(scale > 1e-6, np.abs(features - median) / scale, 0.0)
        worst = scores.max(axis=(1, 2))
        order = np.argsort(-worst, kind="stable")[:most]
        found = self._outliers(order[worst[order] >= UNUSUAL], scores, features, median, scale)
        return list(found)

    def _outliers(self, order: NDArray[Any], scores: Any, features: Any, median: Any, scale: Any) -> Iterator[Outlier]:
        for row in order:
            kind, channel = np.unravel_index(scores[row].argmax(), scores[row].shape)
            here, usual, spread = (float(of[kind, channel]) for of in (features[row], median, scale))
            name = ("mean", "spread")[kind]
            what = f"{name} of channel {channel} is {here:.2f}, of most rows {usual:.2f} ± {spread:.2f}"
            yield Outlier(self.places[row], self.keys[row], float(scores[row].max()), what)
