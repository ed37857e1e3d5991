"""Settings of rows, workers and rejects: values that contradict each other, and what they allow."""

import pytest
from pydantic import ValidationError

from inpaint_encode.settings import RowSettings, RunOptions, Workers
from tests.metadata import row_metadata


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"posterior_seed": 3}, "--posterior-seed needs --posterior sample"),
        ({"scaled": True, "posterior": "moments"}, "--scaled cannot be combined with --posterior moments"),
        ({"tile": False, "tile_size": 256}, "--tile-size cannot be combined with --no-tile"),
    ],
)
def test_options_without_effect_raise(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        RowSettings(**given)


def test_deterministic_rows_do_not_depend_on_memory():
    """Rows with and without tiles have different bits, so out-of-memory must not decide."""
    assert row_metadata(tile=None).tiling is None
    tilings = [row_metadata(deterministic=True, tile=tile).tiling for tile in (None, True, False)]
    assert tilings == [False, True, False]


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


def test_max_workers_is_at_least_min_workers():
    assert Workers(min_workers=3, max_workers=3).max_workers == 3
    assert Workers(min_workers=3, max_workers=0).max_workers == 0
    with pytest.raises(ValidationError, match="--max-workers 2 is less than --min-workers 3"):
        Workers(min_workers=3, max_workers=2)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"encode_on": "pool"}, "--encode-on 'pool' must be key=value"),
        ({"fetch_on": "=data"}, "--fetch-on '=data' must be key=value"),
        ({"gpus_per_worker": "half"}, "--gpus-per-worker 'half' must be auto, a whole number or a fraction"),
        ({"encode_cpus": "all"}, "--encode-cpus 'all' must be auto or a number"),
    ],
)
def test_error_names_the_option_and_what_it_accepts(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Workers(**given)
