"""Charts of the page, in the quantities that they show, and their positions in an SVG that the template draws."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from .latent_statistics import ChannelStatistics

_FILLED = 0.92
"""Share of the space between two bars' centers that a bar fills."""

_TIME_UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))

Ticks = list[tuple[float, str]]
"""Values on an axis and their labels."""


@dataclass(frozen=True)
class Chart:
    """A chart in values; `x` and `y` convert them to the units of the SVG's view box."""

    title: str
    note: str
    """Caption below the chart: the main figures in a sentence."""
    x_label: str
    y_label: str
    x_range: tuple[float, float]
    """Smallest and largest value on the x axis; the y axis reaches from its first to its last tick."""
    x_ticks: Ticks
    y_ticks: Ticks
    bars: list[tuple[float, float, float, float]]
    """Left, right, lower and upper value."""
    points: Sequence[tuple[float, float]] = ()
    width: ClassVar = 420
    height: ClassVar = 230
    right: ClassVar = 398
    top: ClassVar = 30
    bottom: ClassVar = 184

    @property
    def left(self) -> float:
        """Left edge of the plot: the labels of the y axis need the space before it."""
        return 12 + 7.5 * max(len(label) for _, label in self.y_ticks)  # a digit is 7.5 wide

    def x(self, value: float) -> float:
        """Return the horizontal position of a value."""
        low, high = self.x_range
        return round(float(self.left + (value - low) * (self.right - self.left) / ((high - low) or 1.0)), 1)

    def y(self, value: float) -> float:
        """Return the vertical position of a value."""
        low, high = self.y_ticks[0][0], self.y_ticks[-1][0]
        return round(float(self.bottom - (value - low) * (self.bottom - self.top) / (high - low)), 1)


def histogram(
    title: str, note: str, counts: NDArray[Any], edges: NDArray[Any], x_label: str, *, percent: bool = False
) -> Chart:
    """Draw the rows of each bin, whose ``edges`` ascend. ``percent``: label the x axis, 0 to 1, in percent."""
    x_ticks = _ticks(edges[0], edges[-1], inside=True)
    if percent:
        x_ticks = [(value, f"{value:.0%}") for value, _ in x_ticks]
    y_ticks = _ticks(0, max(counts), integer=True)
    return Chart(title, note, x_label, "rows", (edges[0], edges[-1]), x_ticks, y_ticks, _bars(edges, counts))


def rate_chart(marks: Sequence[Sequence[float]]) -> Chart:
    """Draw pairs per second over the time of a run.

    The pairs are interpolated at equal steps: two chunks may be done in the same millisecond, which gives no rate.

    Args:
        marks: seconds since the start of the run, ascending, and the pairs that were done then.
    """
    seconds, pairs = (np.array(values, float) for values in zip(*marks, strict=True))
    note = f"Pairs per second after the first chunk, mean {(pairs[-1] - pairs[0]) / (seconds[-1] - seconds[0]):,.1f}."
    steps = np.linspace(seconds[0], seconds[-1], min(60, len(seconds) - 1) + 1)  # at most 60 bars
    rates = np.diff(np.interp(steps, seconds, pairs)) / np.diff(steps)
    unit, name = next((unit, name) for unit, name in _TIME_UNITS if seconds[-1] >= 2 * unit or unit == 1)
    moments, x_label = steps / unit, f"{name} since the start of the run"
    x_ticks, y_ticks = _ticks(0, moments[-1], inside=True), _ticks(0, max(rates))
    bars = _bars(moments, rates)
    return Chart("Rate over time", note, x_label, "pairs/s", (0, moments[-1]), x_ticks, y_ticks, bars)


def channels_chart(channels: ChannelStatistics) -> Chart:
    """Draw each channel's mean as a point and its 1% to 99% range as a bar."""
    means = f"Channel means are between {channels.mean.min():.2f} and {channels.mean.max():.2f}."
    reach = f"Histograms in the table span {channels.edges[0]:.2f} to {channels.edges[-1]:.2f}."
    note = f"Points are means, bars span the 1% to 99% quantiles. {means} {reach}"
    count = len(channels.mean)
    half = _FILLED * min(6, 160 / count) * count / (2 * (Chart.right - 40))  # bars are at most 6 wide
    ranges = zip(range(count), channels.low, channels.high, strict=True)
    bars = [(number - half, number + half, low, high) for number, low, high in ranges]
    x_range, x_ticks = (-0.6, count - 0.4), _ticks(0, count - 1, inside=True, integer=True)
    y_ticks = _ticks(min(channels.low.min(), 0), max(channels.high.max(), 0))
    points = list(enumerate(channels.mean))
    return Chart("Values by channel", note, "channel", "value", x_range, x_ticks, y_ticks, bars, points)


def _bars(edges: NDArray[Any], heights: NDArray[Any]) -> list[tuple[float, float, float, float]]:
    gaps = (1 - _FILLED) / 2 * np.diff(edges)
    return [(*sides, 0, height) for *sides, height in zip(edges[:-1] + gaps, edges[1:] - gaps, heights, strict=True)]


def _ticks(low: float, high: float, *, inside: bool = False, integer: bool = False) -> Ticks:
    """Return about six round values from ``low`` to ``high``, with labels.

    Args:
        low: smallest value on the axis.
        high: largest value on the axis.
        inside: all values are from ``low`` to ``high``; otherwise the first and the last enclose them.
        integer: whole numbers only.
    """
    least = max((high - low) / 6, 1.0 if integer else 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    first, last = low / step, high / step
    if inside:
        first, last = math.ceil(first - 1e-9), math.floor(last + 1e-9)
    else:
        first, last = math.floor(first + 1e-9), math.ceil(last - 1e-9)
        last = max(last, first + 1)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(number * step, f"{number * step:,.{decimals}f}") for number in range(first, last + 1)]
