import pytest

from inpaint_encode.demo.pairs import upload
from jobs.benchmarks.data import SQUARE_64, pair_uris, write_pairs
from jobs.benchmarks.fetch import fetch_section


def test_both_readers_are_compared_with_decoding(s3, tmp_path):
    local = write_pairs(tmp_path / "few", SQUARE_64, 3)
    upload(tmp_path / "few", s3.uri("bench-fetch"))
    section = fetch_section(pair_uris(s3.uri("bench-fetch"), 3), local, repeats=2)
    unit, read, cat = section.figures
    assert unit.unit == "ms CPU/pair"
    assert [(ratio.numerator, ratio.denominator) for ratio in section.ratios] == [(read, unit), (cat, unit)]


def test_a_missing_object_is_an_error(s3, pairs):
    with pytest.raises(FileNotFoundError):
        fetch_section(pair_uris(s3.uri("bench-fetch-missing"), 1), pairs, repeats=1)
