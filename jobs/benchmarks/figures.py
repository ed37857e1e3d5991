"""Figures with their spread, and ratios of figures that were measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Figure", "Measure", "Ratio", "cpu_ms", "format_number", "in_turn"]

Measure = Callable[[], float]
"""Does the work once and returns one sample."""


@dataclass(frozen=True)
class Figure:
    """One measured quantity; raises ValueError without samples."""

    name: str
    unit: str
    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"{self.name} has no samples; measure it at least once")

    @classmethod
    def once(cls, name: str, unit: str, value: float) -> Figure:
        """Return a figure with one sample."""
        return cls(name, unit, (float(value),))

    @property
    def median(self) -> float:
        """The middle sample, or the mean of the middle two."""
        return statistics.median(self.samples)

    def __str__(self) -> str:
        """Median, minimum and maximum, for example ``4.1 (3.9..4.5)``."""
        if len(self.samples) == 1:
            return f"{format_number(self.median)} (once)"
        low, high = format_number(min(self.samples)), format_number(max(self.samples))
        return f"{format_number(self.median)} ({low}..{high})"


@dataclass(frozen=True)
class Ratio:
    """``numerator`` over ``denominator``, sample by sample; both were measured in turn.

    Another load on the machine slows both samples, so ratios scatter less than the figures.

    Raises:
        ValueError: units or numbers of samples differ.
    """

    name: str
    numerator: Figure
    denominator: Figure

    def __post_init__(self) -> None:
        above, below = self.numerator, self.denominator
        if above.unit != below.unit or len(above.samples) != len(below.samples):
            raise ValueError(
                f"{self.name}: {len(above.samples)} samples in {above.unit} over {len(below.samples)} in {below.unit}; "
                "measure both in turn, in one unit"
            )

    @property
    def figure(self) -> Figure:
        """The ratios, sample by sample."""
        pairs = zip(self.numerator.samples, self.denominator.samples, strict=True)
        return Figure(self.name, "ratio", tuple(above / below for above, below in pairs))


def in_turn(unit: str, measures: Mapping[str, Measure], repeats: int, warm_ups: int = 1) -> dict[str, Figure]:
    """Take one sample of each measure in each of ``repeats`` rounds; every second round runs in the opposite order.

    Sample n of all figures is from the same round, which a `Ratio` needs. The first ``warm_ups`` rounds do not count.
    """
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(-warm_ups, repeats):
        for name in list(measures)[:: -1 if turn % 2 else 1]:
            sample = measures[name]()
            if turn >= 0:
                samples[name].append(sample)
    return {name: Figure(name, unit, tuple(values)) for name, values in samples.items()}


def cpu_ms(work: Callable[[], object], count: int = 1) -> float:
    """Return the CPU milliseconds of ``work`` per item, for ``count`` items, in all threads of this process."""
    start = time.process_time()
    work()
    return 1000.0 * (time.process_time() - start) / count


def format_number(value: float) -> str:
    """Format with three significant digits, without an exponent."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 3
    return f"{value:.{1 if abs(value) >= 10 else digits}f}"
