"""Digests of planned pairs: two pairs have the same one only if their keys and contents are equal."""

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.output.known_pairs import COMPARED, KnownPairs, contents_digests
from inpaint_encode.schema import EXTRA_COLUMNS

PAIR = dict.fromkeys(("key", *COMPARED), "a")


def digest(extra=None, kind=None, **changes):
    table = pa.Table.from_pylist([PAIR | changes])
    if kind:
        table = table.append_column(EXTRA_COLUMNS, pa.array([{"x": extra}], pa.struct({"x": kind})))
    return tuple(contents_digests(table["key"], table.drop_columns("key"))[0].tolist())


def test_every_value_and_its_place_counts():
    changed = [{name: value} for name in PAIR for value in ("b", "", "a\0a")]
    assert len({digest(), *(digest(**change) for change in changed)}) == 1 + len(changed)
    assert digest(image_uri="a\0a", mask_uri="a") != digest(image_uri="a", mask_uri="a\0a")


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.string(), ["", "0", "1", "a\0", None]),
        (pa.float64(), [0.1, 0.1 + 2**-56, float("nan"), float("inf"), None]),
        (pa.float16(), [np.float16(0.1), np.float16(0.2), None]),
        (pa.int64(), [2**62, 2**62 + 1, None]),
        (pa.bool_(), [True, False, None]),
        (pa.timestamp("us", "UTC"), [0, 1, None]),
        (pa.list_(pa.string()), [["a", "b"], ["a, b"], [], [None], None]),
        (pa.struct({"y": pa.float32()}), [{"y": 0.5}, {"y": None}, {"y": float("nan")}, None]),
    ],
)
def test_extra_columns_of_any_type_count(kind, values):
    found = [digest(value, kind) for value in values]
    assert len(set(found)) == len(values)
    assert found == [digest(value, kind) for value in values]


def test_a_pair_is_met_once():
    random = np.random.default_rng(0)
    digests = random.integers(0, 2**64, (5_000, 2), np.uint64)
    known = KnownPairs()
    assert not known.meet(digests[:3]).any()
    known = KnownPairs()
    for start in range(0, 4_000, 500):
        known.add(digests[start : start + 500], np.full(500, start == 0))
    shuffled = random.permutation(5_000)
    assert np.array_equal(known.met(digests[shuffled]), shuffled < 500)
    assert np.array_equal(known.meet(digests[shuffled]), (shuffled >= 500) & (shuffled < 4_000))
    assert not known.meet(digests[shuffled]).any()
    assert np.array_equal(known.met(digests), np.arange(5_000) < 4_000)


def test_a_pair_with_the_same_first_word_is_another_pair():
    known = KnownPairs()
    known.add(np.array([[5, 6]], np.uint64), np.zeros(1, np.bool_))
    assert known.meet(np.array([[5, 7], [5, 6]], np.uint64)).tolist() == [False, True]
