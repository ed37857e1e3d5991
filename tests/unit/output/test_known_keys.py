"""Hashes of keys: every unit that may have a key is found, through all merges."""

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.output import known_keys
from inpaint_encode.output.known_keys import KnownKeys, hash_keys


def found(known, keys):
    """The units of each key that is found."""
    positions, units = known.find(hash_keys(pa.chunked_array([keys])))
    result = {}
    for position, unit in zip(positions.tolist(), units.tolist(), strict=True):
        result.setdefault(keys[position], set()).add(unit)
    return result


@pytest.mark.parametrize("largest", [4, 64, 2**24])
def test_every_key_is_found_in_its_unit_whatever_was_merged(monkeypatch, largest):
    monkeypatch.setattr(known_keys, "_FANOUT", 3)
    monkeypatch.setattr(known_keys, "_LARGEST_RUN", largest)
    known, expected = KnownKeys(), {}
    for unit in range(40):
        keys = [f"{unit}/{number}" for number in range(unit % 5)] + ["everywhere"]
        known.add(hash_keys(pa.chunked_array([keys])), unit)
        for key in keys:
            expected.setdefault(key, set()).add(unit)
    assert found(known, [*expected, "nowhere"]) == expected


def test_a_hash_is_found_once_in_each_unit():
    """A hash that is 65,536 times in each of two units would be found 4 billion times."""
    known = KnownKeys()
    known.add(np.array([5, 5, 7], np.uint64), 1)
    known.add(np.array([5], np.uint64), 2)
    positions, units = known.find(np.array([9, 5], np.uint64))
    assert positions.tolist() == [1, 1]
    assert sorted(units.tolist()) == [1, 2]


def test_an_empty_index_finds_nothing():
    assert found(KnownKeys(), ["a"]) == {}
    known = KnownKeys()
    known.add(np.empty(0, np.uint64), 0)
    assert found(known, []) == {}


def test_hashes_are_the_first_bytes_of_blake2b():
    """Units of one run are compared by them, and the index of an output stores them."""
    keys = pa.chunked_array([["a"], ["b/1", "ü"]])
    assert [f"{value:016x}" for value in hash_keys(keys).tolist()] == [
        "2f42665b399ef840",
        "2e6ee42678e5f955",
        "372f39c1f59df155",
    ]


def test_one_key_in_all_rows_of_a_list():
    known, hashes = KnownKeys(), np.full(65_536, 5, np.uint64)
    known.add(hashes, 0)
    assert len(known.find(hashes)[0]) == 65_536
