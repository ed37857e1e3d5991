"""Workers of a killed or suspended run commit late: they accept only a file of their own pairs, and replace none."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.errors import JobFailed
from inpaint_encode.output import plan
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.output.state import OutputState
from inpaint_encode.reader import Output
from inpaint_encode.schema import PAIRS, REJECTS, data_schema
from inpaint_encode.stores import storage
from tests.indexed import IndexedRun, numbered, output_fixture, write_pairs  # noqa: F401
from tests.outputs import PLAIN, data_files, files_of, rejects_of, rows_of
from tests.rows import encoded_pair, groups_of

CHUNK = "000000-00007"
FIRST = {"chunk": CHUNK, "revision": 0, "hash": "5ec2e7", "part": "", "keep": False}
SECOND = {**FIRST, "revision": 1, "hash": "0dd5"}


@pytest.fixture
def state(output):
    return OutputState(output, "0123abcd", "new")


def commit(state: OutputState, work: dict[str, Any], rows: Sequence[str] = (), rejected: Sequence[str] = ()):
    """Commit a chunk with these keys, as a worker that has checked the lease before."""
    pairs = [encoded_pair(key, np.zeros((4, 1, 1), np.float32), np.zeros((8, 8), np.uint8)) for key in rows]
    groups, schema = groups_of(pairs, PLAIN) if pairs else ([], data_schema(PLAIN))
    return state.commit(work, groups, schema, reject(*rejected), check=lambda: None)


def reject(*keys: str) -> pa.Table:
    about = {"image_uri": "i", "mask_uri": "m", "stage": "fetch", "error": "fetch.unavailable"}
    return pa.Table.from_pylist([{"key": key, **about} for key in keys], REJECTS)


def contents(output: str) -> dict[str, tuple[bytes, str]]:
    return {path: tuple(storage.read(f"{output}/{path}")) for path in data_files(output)}


def keys(rejects: list[dict[str, Any]]) -> list[str]:
    return [one["key"] for one in rejects]


def test_a_worker_with_an_old_token_cannot_commit(output):
    late = OutputState(output, "0123abcd", "old")
    with acquire_lease(f"{output}/_lease.json", lambda _: None), pytest.raises(JobFailed, match="taken over"):
        late.commit(FIRST, [], data_schema(PLAIN), REJECTS.empty_table())
    assert files_of(output) == []


def test_a_late_worker_writes_nothing_after_the_lease_is_released(output, tmp_path, make_job):
    """Readers that list a folder would read what it wrote among the rows of the job that replaced its own."""
    pairs = write_pairs(tmp_path / "list.jsonl", numbered(4))
    late = IndexedRun(output, make_job, pairs).end()
    run = IndexedRun(output, make_job, pairs, overwrite=True).commit().finish()
    before = files_of(output)
    with pytest.raises(JobFailed, match="taken over"):
        late.state.commit(late.work[0], [], data_schema(PLAIN), reject("k000"))
    assert files_of(output) == before
    assert [file.path for file in Output.list(output).files] == [f"{run.state.job}-000000-00000.parquet"]


def test_the_first_commit_wins_and_the_second_accepts_it(state):
    """The late worker has checked the lease before the new run commits; it brings a reject, the new run a row."""
    first = commit(state, FIRST, ["a"])
    late = commit(state, FIRST, rejected=["a"])
    assert first == late
    assert (late.encoded, late.rejected) == (1, 0)
    assert rejects_of(state.output) == []
    assert list(rows_of(state.output)) == ["a"]


def test_a_late_reject_that_came_first_is_accepted(state):
    commit(state, FIRST, rejected=["a"])
    mine = commit(state, FIRST, ["a"])
    assert (mine.encoded, mine.rejected, mine.errors) == (0, 1, {"fetch.unavailable": 1})
    assert keys(rejects_of(state.output)) == ["a"]
    assert rows_of(state.output) == {}


@pytest.mark.parametrize("rejected", [[], ["c"]])
@pytest.mark.parametrize(
    ("work", "error"),
    [
        (FIRST, "has other pairs than the plan"),
        ({**SECOND, "hash": "0ther"}, "has other pairs than the plan"),
        ({**SECOND, "revision": 2}, "has just written outdated rows"),
    ],
)
def test_a_file_of_another_revision_or_other_pairs_stays(state, work, error, rejected):
    commit(state, SECOND, ["a", "b"], rejected)
    before = contents(state.output)
    for rows, rejects in ((["a", "b"], []), (["a"], ["b"]), ([], ["a", "b"])):
        with pytest.raises(JobFailed, match=error):
            commit(state, work, rows, rejects)
        assert contents(state.output) == before
        assert keys(rejects_of(state.output)) == rejected


@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_late_worker_that_keeps_rows_replaces_no_newer_file(state, meanwhile):
    """Another run commits a newer revision before the late worker reads the first revision's file, or after that."""
    names = {"image_uri": "i", "mask_uri": "m", "mask_index": 0, "image_version": "", "mask_version": "", "line": 0}
    pairs = [{"chunk": 7, "key": key, "encode": key == "b", **names} for key in "ab"]
    table = pa.Table.from_pylist(pairs, PAIRS)
    storage.write(state.uri("_plan/part"), parquet_bytes(table))
    keeping = {"hash": plan.chunk_hash(table), "part": state.uri("_plan/part"), "keep": True}
    late, newer = {**FIRST, "revision": 1, **keeping}, {**FIRST, "revision": 2, **keeping}
    commit(state, FIRST, ["a"], rejected=["b"])
    if not meanwhile:
        commit(state, newer, ["b"])
    groups, schema = [], data_schema(PLAIN)

    def encoded():
        if meanwhile:
            commit(state, newer, ["b"])
        yield from groups

    with pytest.raises(JobFailed, match="has other pairs than the plan"):
        state.commit(late, encoded(), schema, reject("b"), check=lambda: None)
    assert list(rows_of(state.output)) == ["b", "a"]
    assert rejects_of(state.output) == []
    adopted = commit(state, newer, [], ["b"])
    assert (adopted.encoded, adopted.rejected) == (2, 0)
    assert rejects_of(state.output) == []
