"""Charts as SVG that stands inside a page, in the page's own colours and type, each with a sentence that says it."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray

from .statistics import Channels

Values = Sequence[float] | NDArray[Any]

__all__ = ["channels_chart", "histogram", "rate_chart", "sparkline"]

_STANDS_FOR = {"#010101": "--ink", "#020202": "--faint", "#030303": "--accent", "#040404": "--rule"}
"""Colours that matplotlib draws in, and the page's variables that take their places."""
_INK, _FAINT, _ACCENT, _RULE = _STANDS_FOR
_WIDTH, _HEIGHT = 5.2, 2.7
_STYLE = {"svg.fonttype": "none", "font.size": 11, "text.color": _INK, "axes.labelcolor": _FAINT}
_STYLE |= {"axes.edgecolor": _RULE, "xtick.color": _FAINT, "ytick.color": _FAINT}


def histogram(
    counts: Sequence[float] | NDArray[Any],
    edges: Sequence[float] | NDArray[Any],
    label: str,
    says: str,
    *,
    percent: bool,
) -> Markup:
    """Draw how many rows are between each two neighbours of ``edges``; with ``percent`` these are shares.

    Args:
        counts: one fewer than ``edges``.
        edges: in ascending order.
        label: what the rows are sorted by.
        says: the chart in a sentence, for who does not see it.
        percent: whether ``edges`` are in 0..1, to be written as percentages.
    """
    figure, axes = _axes(label, "rows")
    axes.bar(edges[:-1], counts, width=np.diff(edges) * 0.92, align="edge", color=_ACCENT)
    if percent:
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
        axes.set_xlim(0, 1)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return _svg(figure, says)


def rate_chart(seconds: Values, decided: Values, says: str) -> Markup:
    """Draw pairs a second between each two moments of a run, all apart, at which so many pairs were decided."""
    unit, name = next((unit, name) for unit, name in _UNITS if seconds[-1] >= 2 * unit or unit == 1)
    figure, axes = _axes(f"{name} since the run began", "pairs/s")
    axes.stairs(np.diff(decided) / np.diff(seconds), np.asarray(seconds) / unit, color=_ACCENT, fill=True)
    axes.set_xlim(0, seconds[-1] / unit)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    return _svg(figure, says)


_UNITS = ((86_400, "days"), (3_600, "hours"), (60, "minutes"), (1, "seconds"))


def channels_chart(channels: Channels, says: str) -> Markup:
    """Draw each channel's mean as a point and as a line where all but one in fifty of its values are."""
    figure, axes = _axes("channel", "value")
    at = np.arange(len(channels.mean))
    axes.axhline(0, color=_RULE, linewidth=1)
    axes.vlines(at, channels.low, channels.high, color=_ACCENT, linewidth=min(6, 160 / len(at)))
    axes.plot(at, channels.mean, linestyle="none", marker="o", markersize=4, color=_INK)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    return _svg(figure, says)


def sparkline(counts: Values) -> Markup:
    """Draw a histogram as high as a line of text; it says nothing that the table beside it does not."""
    most = max(1, max(counts))
    points = " ".join(
        f"{at},{20 - 19 * count / most:.1f} {at + 1},{20 - 19 * count / most:.1f}" for at, count in enumerate(counts)
    )
    return Markup(
        '<svg class="spark" viewBox="0 0 {0} 20" preserveAspectRatio="none" aria-hidden="true">'
        '<polygon points="0,20 {1} {0},20"/></svg>'
    ).format(len(counts), points)


def _axes(across: str, up: str) -> tuple[Figure, Any]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        axes = figure.add_subplot()
        axes.set_xlabel(across)
        axes.set_ylabel(up)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.patch.set_visible(False)
    figure.patch.set_visible(False)
    return figure, axes


def _svg(figure: Figure, says: str) -> Markup:
    """Names inside are made of ``says``, so that two charts of a page share none."""
    out = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": says}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    body = re.search(r"<svg.*?>(.*)</svg>", out.getvalue(), re.DOTALL)
    assert body is not None
    drawn = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", body[1], flags=re.DOTALL)
    drawn = re.sub(r"font-family: [^;]*; ", "", re.sub(r'<g id="[^"]*">', "<g>", drawn))
    for colour, variable in _STANDS_FOR.items():
        drawn = drawn.replace(colour, f"var({variable})")
    label, size = escape(says), f"{_WIDTH * 72:g} {_HEIGHT * 72:g}"
    return Markup(f'<svg class="chart" viewBox="0 0 {size}" role="img" aria-label="{label}">{drawn}</svg>')  # noqa: S704
