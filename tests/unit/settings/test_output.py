"""``--max-rejected``: which numbers of rejects a run allows."""

import pytest

from inpaint_encode.settings import RunOptions


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("decided", [5, 1_000_000])
def test_max_rejected_as_a_count_is_checked_at_any_time(finished, decided):
    run = RunOptions(max_rejected="5")
    assert run.allows(5, decided, finished=finished)
    assert not run.allows(6, decided, finished=finished)
    assert not RunOptions(max_rejected="0").allows(1, decided, finished=finished)


@pytest.mark.parametrize(
    ("limit", "rejected", "decided", "early", "at_the_end"),
    [
        ("1%", 0, 0, True, True),
        ("1%", 1, 100, True, True),
        ("1%", 2, 100, True, False),
        ("1%", 999, 999, True, False),
        ("1%", 10, 1_000, True, True),
        ("1%", 11, 1_000, False, False),
        ("0.25%", 25, 10_000, True, True),
        ("0.57%", 57, 10_000, True, True),
        ("0.25%", 2_501, 1_000_000, False, False),
        ("0%", 0, 5_000, True, True),
        ("0%", 1, 5_000, False, False),
        ("0%", 1, 10, True, False),
        ("100%", 5_000, 5_000, True, True),
    ],
)
def test_max_rejected_as_a_percentage_is_checked_at_the_end_or_after_1000_pairs(
    limit, rejected, decided, early, at_the_end
):
    run = RunOptions(max_rejected=limit)
    assert run.allows(rejected, decided, finished=False) is early
    assert run.allows(rejected, decided, finished=True) is at_the_end
