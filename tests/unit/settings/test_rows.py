"""Settings of rows that depend on each other."""

import pytest
from pydantic import ValidationError

from inpaint_encode.settings import RowSettings


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
    assert RowSettings().tiles is None
    assert [RowSettings(deterministic=True, tile=tile).tiles for tile in (None, True, False)] == [False, True, False]
