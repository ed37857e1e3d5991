"""Stages without Ray: chunks that are too large for the memory of a task, and chunks whose workers have died."""

import json
import random
import sys
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.job import stages
from inpaint_encode.job.transfer import unpack_chunk
from inpaint_encode.schema import WORK
from inpaint_encode.stores.base import DEFAULT_ACCESS
from tests.local import encode_here, tensor_rows, write_pairs


@pytest.fixture
def job(tmp_path, make_job):
    """A job of eight pairs in one chunk, listed in a file that has a column of its own."""
    rng = np.random.default_rng(0)
    sides = random.Random(0).choices([16, 24, 32], k=8)
    pairs = {
        f"{number}": (rng.integers(0, 256, (side, 32, 3), np.uint8), rng.integers(0, 2, (side, 32), np.uint8) * 255)
        for number, side in enumerate(sides)
    }
    write_pairs(tmp_path, pairs)
    lines = [{"image": f"images/{key}.png", "mask": f"masks/{key}.png", "caption": f"of {key}"} for key in pairs]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))

    def make(output):
        from inpaint_encode.settings import EncodeJob, Output, RowSettings, Source, VaeSource, Workers

        base = make_job("i", "m", str(tmp_path / output))
        source, rows = Source(pairs=f"{tmp_path}/list.jsonl"), RowSettings(deterministic=True)
        assert isinstance(base.output, Output) and isinstance(base.vae, VaeSource)
        return EncodeJob(source=source, vae=base.vae, output=base.output, rows=rows, workers=Workers(batch_size=1))

    return make


def test_deferred_pairs_become_the_same_rows(job, monkeypatch):
    """Each part is one image here; the order and the columns of the source stay."""
    whole = tensor_rows(encode_here(job("whole")))
    rounds = []
    monkeypatch.setattr(stages, "_task_memory", lambda cpus: rounds.append(cpus) or 4_000)
    parts = tensor_rows(encode_here(job("parts")))
    assert len(rounds) > 3
    assert list(parts) == list(whole)
    assert [row["caption"] for row in parts.values()] == [f"of {key}" for key in range(8)]
    for key, row in whole.items():
        for name, value in row.items():
            same = np.array_equal if hasattr(value, "numpy") else lambda one, other: one == other
            assert same(parts[key][name], value), (key, name)


def test_a_chunk_whose_workers_have_died_is_decoded_in_a_child_process(job, monkeypatch):
    """As after three lost nodes: the rows are the same, and none is rejected."""
    whole = tensor_rows(encode_here(job("whole")))
    monkeypatch.setattr(stages, "ISOLATED_FROM", 1)
    for key, row in tensor_rows(encode_here(job("isolated"))).items():
        assert np.array_equal(row["samples"], whole[key]["samples"])
        assert np.array_equal(row["noise_mask"], whole[key]["noise_mask"])


def test_a_chunk_whose_workers_die_without_end_fails_the_job(monkeypatch):
    private = SimpleNamespace(task_attempt=lambda: stages.MAX_ATTEMPTS + 1)
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "inpaint_encode.job.private", private)
    work = {"chunk": "000000-00003", "revision": 0, "hash": "5ec2e7", "part": "p", "keep": False}
    decoder = PairDecoder(sizing=Sizing(multiple=8))
    row = stages.fetch_stage(
        pa.Table.from_pylist([work], WORK), decoder=decoder, access=DEFAULT_ACCESS, max_bytes=1, threads=1
    )
    _, _, fatal, _ = unpack_chunk(row, "decoded")
    assert fatal.startswith("30 workers have died over chunk 000000-00003; Ray's logs have the cause")
