"""An output that version 0.1 wrote, in three generations of its plan: it is read and verified, but not continued.

It has six pairs of a list in chunks of two. One image is cut, and is rejected. The second run had another caption of
the second pair and a sixth pair, and ``--refresh``.
"""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode import iter_rows, open_latents
from inpaint_encode.errors import IncompleteOutput, UsageError
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.settings import VerifyOptions
from inpaint_encode.tools.inspect.info import read_info
from inpaint_encode.tools.verify.pipeline import verify_output

OLD = Path(__file__).parents[3] / "data" / "output_0.1"
KEYS = ["0", "1", "2", "4", "5"]


@pytest.fixture
def old(tmp_path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "out"))


def test_readers_read_it():
    assert sorted(row["key"] for row in iter_rows(str(OLD))) == KEYS
    latents = open_latents(str(OLD))
    assert len(latents) == 5
    captions = {row["key"]: row["caption"] for row in iter_rows(str(OLD))}
    assert captions == {**{key: f"picture {key}" for key in KEYS}, "1": "another caption"}
    assert all(np.isfinite(row["samples"]).all() for row in iter_rows(str(OLD)))


def test_info_has_its_counts():
    counts = read_info(str(OLD))["counts"]
    assert (counts["planned"], counts["encoded"], counts["rejected"], counts["files"]) == (6, 5, 1, 4)


def test_it_has_no_problem(verify):
    result = verify(OLD)
    assert (result.problems, result.incomplete) == ([], set())
    assert (result.pairs, result.encoded, result.rejects) == (6, 5, {"image.truncated": 1})
    assert {chunk.revision for chunk in result.chunks.values()} == {0, 1, 2}
    result.check_complete()


def lose_a_data_file(old):
    next(old.glob("*-00000001.parquet")).unlink()


def cut_a_data_file(old):
    path = next(old.glob("*-00000001.parquet"))
    path.write_bytes(path.read_bytes()[:-300])


def cut_a_part(old):
    next(old.glob("_plan/*-0000-000000.parquet")).write_bytes(b"PAR1")


def lose_the_rejects(old):
    next((old / "_rejected").iterdir()).unlink()


def change_a_marker(old):
    next(old.glob("_plan/*-0000.json")).write_text('{"pairs": 99}')


def repeat_a_key(old):
    path = next(old.glob("_plan/*-0002-000000.parquet"))
    table, other = pq.read_table(path), pq.read_table(next(old.glob("_plan/*-0000-000000.parquet")))
    key = other.filter(pa.compute.equal(other["chunk"], 2))["key"][0]
    keys = pa.array([key.as_py()] * table.num_rows)
    pq.write_table(table.set_column(table.column_names.index("key"), "key", keys), path)


def wrong_receipts(old):
    for path in (old / "_receipts").iterdir():
        table = pq.read_table(path)
        encoded = pa.array([9] * table.num_rows, pa.int64())
        pq.write_table(table.set_column(table.column_names.index("encoded"), "encoded", encoded), path)


@pytest.mark.parametrize(
    ("damage", "check", "sentence"),
    [
        (lose_a_data_file, "file", "was written earlier but is missing now"),
        (cut_a_data_file, "file", "cannot be read"),
        (cut_a_part, "plan", "cannot be read, so its chunks are not checked"),
        (lose_the_rejects, "rejects", "does not exist, but its data file has 1 rejects"),
        (change_a_marker, "plan", "has 99 pairs, but its Parquet files have 5"),
        (repeat_a_key, "plan", "repeated keys, the first"),
        (wrong_receipts, "receipts", "has 9 rows"),
    ],
)
def test_damage_is_found(old, verify, damage, check, sentence):
    damage(old)
    result = verify(old)
    assert any(one.check == check and sentence in one.sentence for one in result.problems), result.problems
    with pytest.raises(IncompleteOutput, match="use the version of inpaint-encode that wrote it"):
        result.check_complete()


@pytest.mark.parametrize("dry_run", [False, True])
def test_it_is_not_repaired(old, dry_run):
    cut_a_data_file(old)
    before = {path: path.read_bytes() for path in old.rglob("*.*")}
    with pytest.raises(UsageError, match=r"written by version 0\.1 of inpaint-encode.*does not repair"):
        verify_output(VerifyOptions(output=str(old), repair=True, dry_run=dry_run), print)
    assert {path: path.read_bytes() for path in old.rglob("*.*")} == before


def test_encode_refuses_it(old, tmp_path, make_job):
    (tmp_path / "pairs.csv").write_text("image,mask,caption\na.png,b.png,c\n")
    before = {path: path.read_bytes() for path in old.rglob("*.*")}
    with pytest.raises(UsageError, match="begun by another version of inpaint-encode, which plans differently"):
        run_job(make_job("", "", old, pairs=str(tmp_path / "pairs.csv")), Display())
    assert {path: path.read_bytes() for path in old.rglob("*.*")} == before
