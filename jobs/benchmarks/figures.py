"""Figures with their spread, and ratios between figures that were measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

__all__ = ["Figure", "Measure", "Ratio", "cpu_ms", "in_turn", "number"]

Measure = Callable[[], float]
"""Does the work once and returns one sample."""


@dataclass(frozen=True)
class Figure:
    """One quantity, measured as often as there are samples."""

    name: str
    unit: str
    samples: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.samples:
            raise ValueError(f"{self.name} has no samples; a figure is something that was measured")

    @property
    def median(self) -> float:
        """The middle sample, or the mean of the middle two."""
        return statistics.median(self.samples)

    @property
    def minimum(self) -> float:
        """The least sample."""
        return min(self.samples)

    @property
    def maximum(self) -> float:
        """The greatest sample."""
        return max(self.samples)

    def __str__(self) -> str:
        """Median, least and greatest, as ``4.1 (3.9..4.5)``."""
        if len(self.samples) == 1:
            return f"{number(self.median)} (once)"
        return f"{number(self.median)} ({number(self.minimum)}..{number(self.maximum)})"


@dataclass(frozen=True)
class Ratio:
    """How many times ``numerator`` is as much as ``denominator``, sample by sample: the two were measured in turn.

    A neighbour on the machine slows both samples of a pair, so that the quotients scatter less than the figures.

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
        """The quotients, sample by sample."""
        pairs = zip(self.numerator.samples, self.denominator.samples, strict=True)
        return Figure(self.name, "ratio", tuple(above / below for above, below in pairs))


def in_turn(unit: str, measures: Mapping[str, Measure], repeats: int, warm_ups: int = 1) -> dict[str, Figure]:
    """Take one sample of each measure, ``repeats`` times over, every other time in the opposite order.

    Samples of the same number are of the same time, as a `Ratio` needs. ``warm_ups`` rounds go before and are not kept.
    """
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(-warm_ups, repeats):
        for name in list(measures)[:: -1 if turn % 2 else 1]:
            sample = measures[name]()
            if turn >= 0:
                samples[name].append(sample)
    return {name: Figure(name, unit, tuple(values)) for name, values in samples.items()}


def cpu_ms(work: Callable[[], object], count: int = 1) -> float:
    """Milliseconds of CPU, of all threads of this process, that ``work`` takes for each of ``count`` items."""
    start = time.process_time()
    work()
    return 1000.0 * (time.process_time() - start) / count


def number(value: float) -> str:
    """Three significant digits, never as a power of ten."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 2 if abs(value) >= 1 else 3
    return f"{value:.{1 if abs(value) >= 10 else digits}f}"
