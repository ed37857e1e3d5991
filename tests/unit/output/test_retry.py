"""``--retry-rejected`` finds all rejected pairs, whatever was interrupted or deleted before."""

import shutil

import pytest

from inpaint_encode.output.plan import read_chunk
from tests.indexed import IndexedRun, numbered, write_pairs
from tests.plans import write_lines


@pytest.fixture
def start(tmp_path, make_job):
    """Begin a run over a list of four pairs, whose first one has this caption."""

    def begin(caption="", **options):
        path = write_pairs(tmp_path / "pairs.jsonl", numbered(4))
        lines = [{"image": f"{key}.png", "mask": f"{key}-mask.png", "caption": ""} for key in numbered(4)]
        lines[0]["caption"] = caption
        write_lines(path, lines)
        return IndexedRun(str(tmp_path / "out"), make_job, path, **options)

    return begin


def keys_to_encode(work):
    pairs = [read_chunk(one["part"], one["chunk"], one["hash"]).to_pylist() for one in work]
    return [pair["key"] for chunk in pairs for pair in chunk if pair["encode"]]


def test_rejected_pairs_of_a_chunk_whose_refresh_was_interrupted_are_retried(start):
    start().commit(rejected=["k002"]).finish()
    assert keys_to_encode(start("changed", refresh=True).end().work) == ["k000"]
    assert keys_to_encode(start("changed", retry_rejected=True).end().work) == ["k000", "k002"]


def test_rejected_pairs_are_retried_without_the_rejects_files(start, tmp_path):
    start().commit(rejected=["k002"]).finish()
    shutil.rmtree(tmp_path / "out/_rejected")
    assert keys_to_encode(start(retry_rejected=True).end().work) == ["k002"]
