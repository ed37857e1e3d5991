"""Charts of the page: positions of bars, points and ticks, which the page's template draws as SVG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .latent_statistics import ChannelStatistics

__all__ = ["Bar", "Chart", "Tick", "channels_chart", "histogram", "rate_chart"]

Values = Sequence[float] | NDArray[Any]

_WIDTH, _HEIGHT = 420, 230
_RIGHT, _TOP, _BOTTOM = _WIDTH - 22, 30, _HEIGHT - 46
"""Edges of the plot, in the units of the SVG's view box; its left edge depends on the labels of the y axis."""

_DIGIT = 7.5
"""Width of a digit in a tick's label."""

_GAP = 0.08
"""Share of a bar's width that is left free."""

_TIME_UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


class Tick(NamedTuple):
    """A labeled position on an axis."""

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
    bars = [(low, high, 0, count) for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)]
    x_ticks = _ticks(edges[0], edges[-1], inside=True)
    if percent:
        x_ticks = [(value, f"{value:.0%}") for value, _ in x_ticks]
    y_ticks = _ticks(0, max(counts), integer=True)
    return _layout(title, note, (x_label, "rows"), (edges[0], edges[-1]), x_ticks, y_ticks, bars)


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
    bars = [(low, high, 0, rate) for low, high, rate in zip(moments[:-1], moments[1:], rates, strict=True)]
    labels = (f"{name} since the start of the run", "pairs/s")
    x_ticks = _ticks(0, moments[-1], inside=True)
    return _layout(title, note, labels, (0, moments[-1]), x_ticks, _ticks(0, max(rates)), bars)


def channels_chart(title: str, note: str, channels: ChannelStatistics) -> Chart:
    """Draw each channel's mean as a point and its 1% to 99% range as a bar."""
    count = len(channels.mean)
    half = min(6, 160 / count) * count / (2 * (_RIGHT - 40))  # bars are at most 6 wide
    ranges = zip(range(count), channels.low, channels.high, strict=True)
    bars = [(number - half, number + half, low, high) for number, low, high in ranges]
    x_ticks = _ticks(0, count - 1, inside=True, integer=True)
    y_ticks = _ticks(min(channels.low.min(), 0), max(channels.high.max(), 0))
    labels, points = ("channel", "value"), enumerate(channels.mean)
    return _layout(title, note, labels, (-0.6, count - 0.4), x_ticks, y_ticks, bars, points)


def _ticks(low: float, high: float, *, inside: bool = False, integer: bool = False) -> list[tuple[float, str]]:
    """Return round values with labels, about six.

    Args:
        low: smallest value on the axis.
        high: largest value on the axis.
        inside: only values between these; otherwise the first and last tick enclose them.
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


def _layout(
    title: str,
    note: str,
    labels: tuple[str, str],
    x_range: tuple[float, float],
    x_ticks: list[tuple[float, str]],
    y_ticks: list[tuple[float, str]],
    bars: Iterable[tuple[float, float, float, float]],
    points: Iterable[tuple[float, float]] = (),
) -> Chart:
    """Convert values to positions.

    Args:
        title: heading of the chart.
        note: caption of the chart.
        labels: of the x and the y axis.
        x_range: smallest and largest value on the x axis; the y axis reaches from its first to its last tick.
        x_ticks: values and labels.
        y_ticks: values and labels.
        bars: left, right, lower and upper value.
        points: x and y.
    """
    left = 12 + _DIGIT * max(len(label) for _, label in y_ticks)
    x_scale = (_RIGHT - left) / ((x_range[1] - x_range[0]) or 1.0)
    y_scale = (_BOTTOM - _TOP) / (y_ticks[-1][0] - y_ticks[0][0])

    def across(x: float) -> float:
        return round(float(left + (x - x_range[0]) * x_scale), 1)

    def up(y: float) -> float:
        return round(float(_BOTTOM - (y - y_ticks[0][0]) * y_scale), 1)

    def bar(start: float, end: float, bottom: float, top: float) -> Bar:
        gap = (end - start) * _GAP
        width, height = round(float((end - start - gap) * x_scale), 1), round(up(bottom) - up(top), 1)
        return Bar(across(start + gap / 2), up(top), width, height)

    return Chart(
        title,
        note,
        *labels,
        left,
        x_ticks=[Tick(across(x), label) for x, label in x_ticks],
        y_ticks=[Tick(up(y), label) for y, label in y_ticks],
        bars=[bar(*values) for values in bars],
        points=[(across(x), up(y)) for x, y in points],
    )
