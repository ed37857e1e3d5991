"""Statistics of a run's masks: counters per percent give the same median as sorting all rows."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint_encode.core.mask_coverage import coverage_counters, coverage_summary, coverage_warning


def counters(*chunks: list[float]) -> Counter:
    total = Counter()
    for chunk in chunks:
        total.update(dict(coverage_counters(np.array(chunk, np.float32))))
    return total


@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=1), min_size=1))
def test_the_median_is_right_to_a_percent(chunks):
    found = coverage_summary(counters(*chunks))
    coverage = np.sort(np.array([one for chunk in chunks for one in chunk], np.float32))
    median = coverage[(len(coverage) - 1) // 2]
    assert found["rows"] == len(coverage)
    assert (found["empty"], found["full"]) == ((coverage == 0).sum(), (coverage == 1).sum())
    assert found["median_percent"] - 1 <= 100 * median <= found["median_percent"] + 1e-4


@pytest.mark.parametrize(
    ("coverage", "expected"),
    [
        ([0.2, 0.3, 0.9], None),
        ([0.8, 0.8, 0.8], None),
        ([0.1, 0.81, 0.95], "masks look inverted: half of 3 masks cover at least 80% of their image"),
        ([0.0, 0.0, 0.4], "masks look empty: 2 of 3 masks repaint nothing"),
        ([1.0, 1.0, 0.4, 1.0], "masks look full: 3 of 4 masks repaint all of their image"),
        ([], None),
    ],
)
def test_the_warning(coverage, expected):
    found = coverage_warning(counters(coverage))
    assert found is None if expected is None else found.startswith(expected)
