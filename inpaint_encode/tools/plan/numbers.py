"""Figures with their errors, from samples drawn without replacement; nothing is read here.

Errors are half-widths of 95% intervals by the normal distribution. They are sampling errors alone, and none where
all there is was looked at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Figure", "Passes", "Z", "mean", "passes", "product", "ratio", "share", "total"]

Z = 1.959964
"""Standard errors in half of a 95% interval."""

_SIMULATED = 400
"""Chunks whose batches are counted, if there are more."""


@dataclass(frozen=True)
class Figure:
    """A number and half the width of its 95% interval; the latter is NaN where one observation says nothing of it."""

    value: float
    half_width: float

    @property
    def standard_error(self) -> float:
        """The standard deviation of the value over samples."""
        return self.half_width / Z

    def scaled(self, factor: float) -> Figure:
        """The figure of another unit, or of ``factor`` times as many."""
        return Figure(self.value * factor, self.half_width * factor)


@dataclass(frozen=True)
class Passes:
    """How often the VAE will run."""

    estimate: float
    """If sizes come in no order."""
    least: int
    """If images of one size are neighbours in the planned order."""
    exact: bool
    """Whether every size is known, so that the estimate is a count."""
    sparse: bool
    """Whether a chunk is longer than the sample, which shows fewer sizes then than the chunk may have."""


def share(count: int, sampled: int, population: int) -> Figure:
    """Estimate the share of a population of which ``count`` of ``sampled`` have a property.

    The error is that of Wilson's interval on its wider side: it says something where none or all have the property.
    """
    p, z2 = count / sampled, Z * Z / sampled
    centre = (p + z2 / 2) / (1 + z2)
    half = Z * math.sqrt(p * (1 - p) / sampled + z2 / (4 * sampled)) / (1 + z2)
    return Figure(p, (half + abs(centre - p)) * _unseen(sampled, population))


def mean(values: Sequence[float], sampled: int, population: int) -> Figure:
    """Estimate a population's mean by values of a part of it; ``sampled`` of ``population`` were looked at."""
    if not values:
        return Figure(0.0, math.nan)
    unseen = _unseen(sampled, population)
    error = np.std(values, ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Figure(float(np.mean(values)), Z * float(error) * unseen if unseen else 0.0)


def total(values: Sequence[float], population: int) -> Figure:
    """Estimate a population's sum by values of a part of it, where what is not counted has the value 0."""
    return mean(values, len(values), population).scaled(population)


def ratio(amounts: Sequence[float], units: Sequence[float]) -> Figure:
    """Estimate the amount for one unit, such as seconds a megapixel, by some trials; their spread gives the error."""
    y, x = np.asarray(amounts, float), np.asarray(units, float)
    value = y.sum() / x.sum()
    if len(y) < 2:
        return Figure(float(value), math.nan)
    error = math.sqrt(float(((y - value * x) ** 2).sum()) * len(y) / (len(y) - 1)) / x.sum()
    return Figure(float(value), float(Z * error))


def product(one: Figure, other: Figure) -> Figure:
    """Multiply two independent figures, whose errors are small beside them."""
    half_width = math.hypot(one.half_width * other.value, other.half_width * one.value)
    return Figure(one.value * other.value, half_width)


def passes(
    lengths: NDArray[np.int64],
    positions: NDArray[np.int64],
    kinds: NDArray[np.int64],
    batch_sizes: Sequence[int] | int,
    seed: int,
) -> Passes:
    """Count the forward passes of a plan: in each chunk, every size is cut into batches of its ``batch_sizes`` at most.

    Pairs that were not sampled are given the sizes of the sample in random order, each once as long as they last.

    Args:
        lengths: pairs in each chunk, in order.
        positions: of the sampled pairs in the whole plan, ascending.
        kinds: a number for the size of each sampled pair, -1 for one that will be rejected.
        batch_sizes: most images in a pass, of every size or by the sizes' numbers.
        seed: of the random order.
    """
    rng = np.random.default_rng(seed)
    at_most = np.broadcast_to(batch_sizes, kinds.max(initial=-1) + 1)
    starts = np.cumsum(lengths) - lengths
    exact = len(positions) == lengths.sum()
    looked_at = rng.permutation(len(lengths))[: None if exact else _SIMULATED]
    counts = []
    for start, length in zip(starts[looked_at], lengths[looked_at], strict=True):
        first, last = np.searchsorted(positions, [start, start + length])
        counts.append(_batches(_filled(kinds, first, last, length, rng), at_most))
    estimate = sum(counts) if len(counts) == len(lengths) else float(np.mean(counts)) * len(lengths)
    good = float((kinds >= 0).mean())
    least = int(np.ceil(lengths * good / at_most.max(initial=1)).sum())
    return Passes(
        estimate=float(estimate),
        least=min(least, math.floor(estimate)),
        exact=bool(exact),
        sparse=bool(not exact and lengths.max() > len(kinds)),
    )


def _filled(
    kinds: NDArray[np.int64], first: int, last: int, length: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """A chunk of ``length`` pairs of which ``kinds[first:last]`` are known; the others are drawn from the rest."""
    if last - first == length:
        return kinds[first:last]
    elsewhere = np.concatenate([kinds[:first], kinds[last:]])
    drawn = np.resize(rng.permutation(elsewhere if len(elsewhere) else kinds), length - (last - first))
    return np.concatenate([kinds[first:last], drawn])


def _batches(kinds: NDArray[np.int64], at_most: NDArray[np.int64]) -> int:
    found, counts = np.unique(kinds[kinds >= 0], return_counts=True)
    return int(np.ceil(counts / at_most[found]).sum())


def _unseen(sampled: int, population: int) -> float:
    """What is left of an error where a part of the population was looked at, and not put back."""
    return math.sqrt(max(0.0, 1 - sampled / population))
