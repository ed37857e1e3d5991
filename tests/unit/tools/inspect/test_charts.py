"""Charts: bars and points are at their values, ticks at round values, and everything is inside the view box."""

import numpy as np
import pytest

from inpaint_encode.tools.inspect.charts import Chart, channels_chart, histogram, rate_chart
from inpaint_encode.tools.inspect.latent_statistics import ChannelStatistics


def labels(ticks) -> list[str]:
    return [tick.label for tick in ticks]


def value_at(ticks, position: float) -> float:
    """Return the value of an axis at a position, interpolated between its first and last tick."""
    first, last = ticks[0], ticks[-1]
    low, high = (float(tick.label.rstrip("%").replace(",", "")) for tick in (first, last))
    return low + (position - first.at) / (last.at - first.at) * (high - low)


def check_inside(chart: Chart) -> None:
    for bar in chart.bars:
        assert chart.left - 0.1 <= bar.x <= bar.x + bar.width <= chart.right + 0.1
        assert 0 < bar.y <= bar.y + bar.height <= chart.bottom + 0.1
    for tick in chart.x_ticks:
        assert 3.5 * len(tick.label) <= tick.at <= chart.width - 3.5 * len(tick.label)
    for tick in chart.y_ticks:
        assert 0 < tick.at <= chart.bottom and 7 * len(tick.label) <= chart.left


@pytest.mark.parametrize("counts", [[3, 0, 7, 1], [120_000, 5, 80_000, 1], [0, 0, 0, 1]])
def test_histogram_bars_are_as_high_as_their_counts(counts):
    chart = histogram("title", "note", counts, np.linspace(0, 1, 5), "share", percent=True)
    heights = [value_at(chart.y_ticks, chart.bottom - bar.height) for bar in chart.bars]
    assert heights == pytest.approx(counts, abs=max(counts) / 500)
    centers = [value_at(chart.x_ticks, bar.x + bar.width / 2) for bar in chart.bars]
    assert centers == pytest.approx([12.5, 37.5, 62.5, 87.5], abs=0.1)
    assert labels(chart.x_ticks) == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert all("." not in label for label in labels(chart.y_ticks))
    check_inside(chart)


def test_rates_are_pairs_per_second_of_each_step():
    chart = rate_chart("title", "note", np.array([100.0, 160.0, 220.0]), np.array([0.0, 600.0, 900.0]))
    assert [value_at(chart.y_ticks, bar.y) for bar in chart.bars] == pytest.approx([10, 5], abs=0.05)
    assert chart.x_label.startswith("minutes since")
    first = chart.bars[0]
    assert value_at(chart.x_ticks, first.x + first.width / 2) == pytest.approx(130 / 60, abs=0.02)
    check_inside(chart)


@pytest.mark.parametrize("count", [1, 4, 16, 128])
def test_channels_have_a_point_and_a_range(count):
    rng = np.random.default_rng(0)
    mean = rng.normal(size=count)
    low, high = mean - 2, mean + 3
    nothing = np.zeros(count)
    channels = ChannelStatistics(mean, nothing, low, high, low, high, np.zeros((count, 40), int), np.zeros(41))
    chart = channels_chart("title", "note", channels)
    assert [value_at(chart.y_ticks, y) for _, y in chart.points] == pytest.approx(mean, abs=0.05)
    assert [value_at(chart.y_ticks, bar.y) for bar in chart.bars] == pytest.approx(high, abs=0.05)
    assert [value_at(chart.y_ticks, bar.y + bar.height) for bar in chart.bars] == pytest.approx(low, abs=0.05)
    assert all(label.isdigit() for label in labels(chart.x_ticks)) and "0" in labels(chart.y_ticks)
    check_inside(chart)
