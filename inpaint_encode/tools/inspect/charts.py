"""Charts of the page: positions of bars, points and ticks, which the page's template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .latent_statistics import ChannelStatistics

__all__ = ["Chart", "channels_chart", "histogram", "rate_chart"]

Values = Sequence[float] | NDArray[Any]

_WIDTH, _HEIGHT = 420, 230
_RIGHT, _TOP, _BOTTOM = _WIDTH - 18, 30, _HEIGHT - 46
"""Edges of the plot, in the units of the SVG's view box; its left edge depends on the labels of the y axis."""

_CHARACTER = 7.5
"""Width of a digit in a tick's label."""

_TIME_UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


class Tick(NamedTuple):
    """A labelled position on an axis."""

    at: float
    label: str


class Bar(NamedTuple):
    """A rectangle: its upper left corner and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Chart:
    """A chart, in the units of the SVG's view box."""

    title: str
    description: str
    """The chart in a sentence, for screen readers."""
    note: str
    """Caption below the chart."""
    x_label: str
    y_label: str
    left: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    bars: list[Bar]
    points: list[tuple[float, float]]
    width: int = _WIDTH
    height: int = _HEIGHT
    right: int = _RIGHT
    bottom: int = _BOTTOM


def histogram(title: str, note: str, counts: Values, edges: Values, x_label: str, *, percent: bool = False) -> Chart:
    """Draw the number of rows in each bin.

    Args:
        title: heading of the chart.
        note: the main figures in a sentence.
        counts: rows in each bin.
        edges: limits of the bins, one more than ``counts``, ascending.
        x_label: quantity on the x axis.
        percent: label the x axis, 0 to 1, in percent.
    """
    plot = _Plot((edges[0], edges[-1]), (0, max(counts)), integer=True)
    bars = [plot.bar(low, high, 0, count) for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)]
    labels = plot.x_ticks(percent=percent)
    return plot.chart(title, f"Histogram. {note}", note, (x_label, "rows"), labels, bars)


def rate_chart(title: str, note: str, seconds: NDArray[Any], pairs: NDArray[Any]) -> Chart:
    """Draw pairs per second over the time of a run.

    Args:
        title: heading of the chart.
        note: the main figures in a sentence.
        seconds: moments since the start of the run, ascending.
        pairs: pairs that were done at each moment.
    """
    unit, name = next((unit, name) for unit, name in _TIME_UNITS if seconds[-1] >= 2 * unit or unit == 1)
    rates, moments = np.diff(pairs) / np.diff(seconds), seconds / unit
    plot = _Plot((0, moments[-1]), (0, max(rates)))
    bars = [plot.bar(low, high, 0, rate) for low, high, rate in zip(moments[:-1], moments[1:], rates, strict=True)]
    return plot.chart(title, note, note, (f"{name} since the start of the run", "pairs/s"), plot.x_ticks(), bars)


def channels_chart(title: str, note: str, description: str, channels: ChannelStatistics) -> Chart:
    """Draw each channel's mean as a point and its 1% to 99% range as a bar."""
    count = len(channels.mean)
    plot = _Plot((-0.6, count - 0.4), (min(channels.low.min(), 0), max(channels.high.max(), 0)))
    half = min(6, 160 / count) / plot.x_scale / 2
    ranges = zip(range(count), channels.low, channels.high, strict=True)
    bars = [plot.bar(number - half, number + half, low, high, gap=0) for number, low, high in ranges]
    points = [plot.position(number, mean) for number, mean in enumerate(channels.mean)]
    ticks = plot.x_ticks(integer=True)
    return plot.chart(title, description, note, ("channel", "value"), ticks, bars, points)


class _Plot:
    """Converts values to positions; the y axis ends at the ticks around its values.

    Args:
        x: smallest and largest value on the x axis.
        y: the same of the y axis.
        integer: label whole numbers only on the y axis.
    """

    def __init__(self, x: tuple[float, float], y: tuple[float, float], *, integer: bool = False) -> None:
        low, high = float(y[0]), float(y[1]) if y[1] > y[0] else float(y[0]) + 1
        self._step = _nice_step((high - low) / 6, integer=integer)
        ticks = range(math.floor(low / self._step + 1e-9), math.ceil(high / self._step - 1e-9) + 1)
        self._y_values = [number * self._step for number in ticks]
        labels = _labels(self._y_values, self._step)
        self._left = 12 + _CHARACTER * max(map(len, labels))
        self._x_low, self._x_high = map(float, x)
        self.x_scale = (_RIGHT - self._left) / ((self._x_high - self._x_low) or 1.0)
        self._y_scale = (_BOTTOM - _TOP) / (self._y_values[-1] - self._y_values[0])
        self._y_ticks = [
            Tick(self.position(0, value)[1], label) for value, label in zip(self._y_values, labels, strict=True)
        ]

    def position(self, x: float, y: float) -> tuple[float, float]:
        """Return where a value is drawn."""
        across = self._left + (x - self._x_low) * self.x_scale
        return round(across, 1), round(_BOTTOM - (y - self._y_values[0]) * self._y_scale, 1)

    def bar(self, x_low: float, x_high: float, y_low: float, y_high: float, gap: float = 0.08) -> Bar:
        """Return a bar; ``gap`` is the share of its width that is left free."""
        (left, bottom), (right, top) = self.position(x_low, y_low), self.position(x_high, y_high)
        return Bar(left, top, round((right - left) * (1 - gap), 1), round(bottom - top, 1))

    def x_ticks(self, *, percent: bool = False, integer: bool = False) -> list[Tick]:
        """Return ticks at round values."""
        step = _nice_step((self._x_high - self._x_low) / 6, integer=integer)
        numbers = range(math.ceil(self._x_low / step - 1e-9), math.floor(self._x_high / step + 1e-9) + 1)
        values = [number * step for number in numbers]
        labels = [f"{value:.0%}" for value in values] if percent else _labels(values, step)
        return [Tick(self.position(value, 0)[0], label) for value, label in zip(values, labels, strict=True)]

    def chart(
        self,
        title: str,
        description: str,
        note: str,
        labels: tuple[str, str],
        x_ticks: list[Tick],
        bars: list[Bar],
        points: Iterable[tuple[float, float]] = (),
    ) -> Chart:
        """Return the chart; ``labels`` are those of the x and the y axis."""
        return Chart(title, description, note, *labels, self._left, x_ticks, self._y_ticks, bars, list(points))


def _nice_step(least: float, *, integer: bool) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below ``least``."""
    least = max(least, 1.0 if integer else 1e-9)
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _labels(values: Sequence[float], step: float) -> list[str]:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return [f"{value:,.{decimals}f}" for value in values]
