"""Rejected pairs: counts, examples, and the meaning of every reason."""

import random

from inpaint_encode.tools.inspect.rejects import MAX_EXAMPLES, REASONS, read_rejects
from tests.fabricated import write_rejects
from tests.unit.core.decode.test_mutated import documented


def test_all_are_counted_and_some_are_named(tmp_path):
    for chunk in range(3):
        write_rejects(tmp_path, chunk, [{"key": f"{chunk}-{at}", "error": "image.truncated"} for at in range(4)])
    write_rejects(tmp_path, 3, [{"key": "odd", "error": "mask.missing", "message": "no mask"}])
    found = read_rejects(str(tmp_path), random.Random(0))
    assert (found.files, found.of_files) == (4, 4)
    assert found.counts == {"image.truncated": 12, "mask.missing": 1}
    assert len(found.examples["image.truncated"]) == MAX_EXAMPLES
    assert found.examples["mask.missing"][0]["message"] == "no mask"


def test_an_output_without_rejects(tmp_path):
    found = read_rejects(str(tmp_path), random.Random(0))
    assert (found.files, found.of_files, found.counts) == (0, 0, {})


def test_every_reason_is_explained():
    assert REASONS.keys() == documented()
