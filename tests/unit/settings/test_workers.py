"""Numbers of workers, and labels of nodes."""

import pytest
from pydantic import ValidationError

from inpaint_encode.settings import Workers


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
