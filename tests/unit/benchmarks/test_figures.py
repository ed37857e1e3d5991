import pytest

from jobs.benchmarks.figures import Figure, Ratio, format_number, in_turn


def test_median_minimum_and_maximum():
    assert Figure("decode", "ms", (4.0, 3.0, 11.0)).median == 4.0
    assert str(Figure("decode", "ms", (4.0, 3.0, 11.0))) == "4.00 (3.00..11.0)"
    assert str(Figure.once("decode", "ms", 1234.5)) == "1,234 (once)"


def test_a_figure_needs_samples():
    with pytest.raises(ValueError, match="no samples"):
        Figure("decode", "ms", ())


def test_a_ratio_is_calculated_sample_by_sample():
    """The ratio of the medians would be 3."""
    ratio = Ratio("r", Figure("a", "ms", (2.0, 6.0, 30.0)), Figure("b", "ms", (1.0, 2.0, 3.0)))
    assert ratio.figure.samples == (2.0, 3.0, 10.0)


def test_a_ratio_needs_one_unit_and_equal_counts():
    with pytest.raises(ValueError, match="in turn"):
        Ratio("r", Figure("a", "ms", (2.0,)), Figure("b", "s", (1.0,)))
    with pytest.raises(ValueError, match="2 samples in ms over 1 in ms"):
        Ratio("r", Figure("a", "ms", (2.0, 3.0)), Figure("b", "ms", (1.0,)))


def test_measures_take_turns_after_a_warm_up():
    calls = []
    figures = in_turn("s", {name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}, 2)
    assert "".join(calls) == "baabba"
    assert figures["a"].samples == (3, 6)
    assert figures["b"].samples == (4, 5)


def test_numbers_have_three_digits():
    assert [format_number(value) for value in (0.1234, 1.234, 12.34, 1234.5)] == ["0.123", "1.23", "12.3", "1,234"]
