"""Settings of rows that depend on each other."""

import pytest
from pydantic import ValidationError

from inpaint_encode.settings import RowSettings
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
