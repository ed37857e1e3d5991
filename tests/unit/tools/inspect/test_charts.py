"""Charts: bars and points are at their values, ticks at round values, and everything is inside the view box."""

import numpy as np
import pytest

from inpaint_encode.tools.inspect.charts import Chart, channels_chart, histogram, rate_chart
from inpaint_encode.tools.inspect.latent_statistics import ChannelStatistics


def labels(ticks) -> list[str]:
    return [label for _, label in ticks]


def check_inside(chart: Chart) -> None:
    """Check that bars and points are within the axes, and the labels within the view box."""
    for left, right, low, high in chart.bars:
        assert chart.left - 0.1 <= chart.x(left) < chart.x(right) <= chart.right + 0.1
        assert chart.top <= chart.y(high) <= chart.y(low) <= chart.bottom
    for value, label in chart.x_ticks:
        assert 3.5 * len(label) <= chart.x(value) <= chart.width - 3.5 * len(label)
    for value, label in chart.y_ticks:
        assert 0 < chart.y(value) <= chart.bottom and 7 * len(label) <= chart.left
        assert float(label.replace(",", "")) == pytest.approx(value)


@pytest.mark.parametrize("counts", [[3, 0, 7, 1], [120_000, 5, 80_000, 1], [0, 0, 0, 1]])
def test_histogram_bars_are_as_high_as_their_counts(counts):
    chart = histogram("title", "note", np.array(counts), np.linspace(0, 1, 5), "share", percent=True)
    assert [(low, high) for _, _, low, high in chart.bars] == [(0, count) for count in counts]
    assert [(left + right) / 2 for left, right, _, _ in chart.bars] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    unit = (chart.bottom - chart.top) / chart.y_ticks[-1][0]
    assert [chart.bottom - chart.y(count) for count in counts] == pytest.approx(np.multiply(counts, unit), abs=0.06)
    assert labels(chart.x_ticks) == ["0%", "20%", "40%", "60%", "80%", "100%"]
    assert all("." not in label for label in labels(chart.y_ticks))
    check_inside(chart)


def test_rates_are_pairs_per_second_of_each_step():
    chart = rate_chart([[100.0, 0], [160.0, 600], [220.0, 900]])
    assert [high for *_, high in chart.bars] == pytest.approx([10, 5])
    assert chart.x_label.startswith("minutes since")
    left, right, *_ = chart.bars[0]
    assert (left + right) / 2 == pytest.approx(130 / 60)
    check_inside(chart)


@pytest.mark.parametrize("count", [1, 4, 16, 128])
def test_channels_have_a_point_and_a_range(count):
    rng = np.random.default_rng(0)
    mean = rng.normal(size=count)
    low, high = mean - 2, mean + 3
    nothing = np.zeros(count)
    channels = ChannelStatistics(mean, nothing, low, low, high, high, np.zeros((count, 40), int), np.zeros(41))
    chart = channels_chart(channels)
    assert list(chart.points) == list(enumerate(mean))
    assert [bar[2:] for bar in chart.bars] == list(zip(low, high, strict=True))
    assert [(left + right) / 2 for left, right, _, _ in chart.bars] == pytest.approx(range(count))
    assert all(label.isdigit() for label in labels(chart.x_ticks)) and "0" in labels(chart.y_ticks)
    check_inside(chart)
