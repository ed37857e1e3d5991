"""Estimates from a sample drawn without replacement, with their 95% confidence intervals."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Estimate", "draw", "mean", "share", "total"]

_Z = 1.959964
"""Standard errors in half of a 95% interval of the normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """An estimated number and its sampling error."""

    value: float
    half_width: float | None
    """Half the width of the 95% interval. 0 if the sample is the whole population; None if the sample is too small."""

    def scaled(self, factor: float) -> Estimate:
        """Return the estimate of ``factor`` times the number."""
        return Estimate(self.value * factor, None if self.half_width is None else self.half_width * factor)


def draw(population: int, count: int, seed: int) -> list[int]:
    """Draw ``count`` different positions below ``population``, or all if there are fewer; ascending."""
    return sorted(random.Random(seed).sample(range(population), min(count, population)))  # noqa: S311 - not a secret


def share(count: int, sampled: int, population: int) -> Estimate:
    """Estimate the share of a population that has a property, if ``count`` of ``sampled`` members have it.

    The error is the wider side of Wilson's interval, which is not 0 if no member or every member has the property.
    """
    p, z2 = count / sampled, _Z * _Z / sampled
    centre = (p + z2 / 2) / (1 + z2)
    half = _Z * math.sqrt(p * (1 - p) / sampled + z2 / (4 * sampled)) / (1 + z2)
    return Estimate(p, (half + abs(centre - p)) * _finite_population_correction(sampled, population))


def mean(values: Sequence[float], sampled: int, population: int) -> Estimate:
    """Estimate the mean of a population; ``values`` may be fewer than ``sampled`` if some members have no value."""
    value = statistics.fmean(values) if values else 0.0
    if sampled == population:
        return Estimate(value, 0.0)
    if len(values) < 2:
        return Estimate(value, None)
    standard_error = statistics.stdev(values) / math.sqrt(len(values))  # exactly 0 for equal values, unlike numpy's
    return Estimate(value, _Z * standard_error * _finite_population_correction(sampled, population))


def total(values: Sequence[float], population: int) -> Estimate:
    """Estimate the sum over a population from the values of all sampled members."""
    return mean(values, len(values), population).scaled(population)


def _finite_population_correction(sampled: int, population: int) -> float:
    """Factor of a standard error for a sample without replacement; 0 if the sample is the population."""
    return math.sqrt(1 - sampled / population)
