"""The index of an output: what runs write, what a resumed run reads, and what a lost or damaged index changes."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.output import index
from inpaint_encode.output.index import index_problems
from inpaint_encode.output.index_files import read_index_file, read_note
from inpaint_encode.output.known_keys import hash_keys
from inpaint_encode.reader import Output
from inpaint_encode.reader.groups import RowGroupIndex
from inpaint_encode.schema import FILE_INDEX, KEY_INDEX, UNIT_INDEX
from inpaint_encode.stores import storage
from tests.indexed import (
    IndexedRun,
    numbered,
    output_fixture,  # noqa: F401
    pairs_fixture,  # noqa: F401
    read_by_footers,
    write_pairs,
)
from tests.outputs import files_of


def index_of(output):
    """Return the paths of the output's index, without the tokens of runs."""
    names = (path.partition("-")[2] for path in files_of(output) if path.startswith("_index/"))
    return [re.sub(r"(?<=-)[0-9a-f]{8}", "token", name) for name in names]


def versions_of(output):
    pages = storage.list_objects(output)
    return {path: version for page in pages for path, version in zip(page.paths, page.versions, strict=True)}


def same_groups(one: RowGroupIndex, other: RowGroupIndex) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("files", "groups", "ends"))


def test_the_index_equals_the_files(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit(rejected=["k004", *numbered(12)[8:]]).finish()
    opened, listed = Output.open(output), Output.list(output)
    assert opened.keys.note.data_files == len(listed.files) == 3
    assert [file.path for file in opened.files] == [file.path for file in listed.files]
    assert [file.version for file in opened.files] == [file.version for file in listed.files]
    assert [file.size for file in opened.files] == [file.size for file in listed.files]
    assert same_groups(RowGroupIndex.build(opened), read_by_footers(output))
    note, state = read_note(output), opened.files[0].path[:8]
    assert (note.job, note.rows, note.rejected, note.data_bytes) == (state, 7, 3, listed.data_bytes)
    unit = read_index_file(f"{output}/_index/{state}-000000.0.parquet", UNIT_INDEX).to_pylist()
    for row, file in zip(unit, listed.files, strict=True):
        data = storage.read(f"{output}/{file.path}").data
        assert len(data) == 4 + sum(row["group_bytes"]) + row["footer_bytes"] == row["data_bytes"]
        metadata = pq.read_metadata(pa.BufferReader(data))
        assert row["group_rows"] == [metadata.row_group(at).num_rows for at in range(metadata.num_row_groups)]
    keys = read_index_file(f"{output}/{note.buckets[0]}", KEY_INDEX)
    places = {row["hash"]: (row["file"], row["group"]) for row in keys.to_pylist()}
    assert len(places) == 7
    for number, file in enumerate(listed.files):
        with listed.parquet(file) as parquet:
            for group in range(parquet.metadata.num_row_groups):
                for key_hash in hash_keys(parquet.read_row_group(group, ["key"])["key"]).tolist():
                    assert places[key_hash] == (number, group)


def test_a_killed_run_leaves_the_index_of_finished_units_only(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit(2).end()
    assert index_of(output) == []
    IndexedRun(output, make_job, pairs).commit().end()
    assert index_of(output) == ["000000.0-keys.parquet", "000000.0.parquet"]
    assert "_index.json" not in files_of(output)


def test_a_run_without_work_completes_the_index(output, pairs, make_job, monkeypatch):
    IndexedRun(output, make_job, pairs).commit().end()
    monkeypatch.setattr(index, "read_row_groups", None)  # of data files, which need not be read
    run = IndexedRun(output, make_job, pairs)
    assert run.work == []
    run.finish()
    assert same_groups(RowGroupIndex.build(Output.open(output)), read_by_footers(output))


def test_results_of_finished_units_come_from_the_index(output, pairs, make_job, monkeypatch):
    first = IndexedRun(output, make_job, pairs).commit(rejected=["k001"]).finish()
    for path in files_of(output):
        if path.startswith("_receipts/"):
            storage.write(f"{output}/{path}", b"damaged")
    monkeypatch.setattr(type(first.state), "_read_footer", None)
    assert IndexedRun(output, make_job, pairs).end().results == first.results


def test_receipts_serve_where_the_index_is_missing_or_cut(output, pairs, make_job, monkeypatch):
    first = IndexedRun(output, make_job, pairs).commit().finish()
    monkeypatch.setattr(type(first.state), "_read_footer", None)
    path = f"{output}/_index/{first.state.job}-000000.0.parquet"
    storage.write(path, storage.read(path).data[:-20])
    run = IndexedRun(output, make_job, pairs)
    assert run.results == first.results
    storage.delete(path)
    run.finish()
    assert read_index_file(path, UNIT_INDEX).num_rows == 3


def test_a_deleted_index_is_written_again_from_data_files(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit(rejected=["k000"]).finish()
    before = index_of(output)
    for path in files_of(output):
        if path.startswith(("_index/", "_receipts/")):
            storage.delete(f"{output}/{path}")
    IndexedRun(output, make_job, pairs).finish()
    assert index_of(output) == before
    assert same_groups(RowGroupIndex.build(Output.open(output)), read_by_footers(output))


def test_an_index_that_is_complete_is_not_written_again(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit().finish()
    before = versions_of(output)
    IndexedRun(output, make_job, pairs).finish()
    assert versions_of(output) == before


def test_grown_and_revised_outputs(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit(rejected=["k000", "k005"]).finish()
    write_pairs(pairs, numbered(17))
    run = IndexedRun(output, make_job, pairs)
    assert "_index.json" not in files_of(output)  # data files are about to change
    run.commit().finish()
    assert read_note(output).rows == 15
    revised = IndexedRun(output, make_job, pairs, retry_rejected=True)
    assert len(revised.work) == 2
    revised.commit().finish()
    assert index_of(output)[:4] == [
        "000000.1-keys.parquet",
        "000000.1.parquet",
        "000001.0-keys.parquet",
        "000001.0.parquet",
    ]
    assert len(index_of(output)) == 6  # outdated files are deleted
    opened = Output.open(output)
    assert len(RowGroupIndex.build(opened)) == read_note(output).rows == 17
    assert same_groups(RowGroupIndex.build(opened), read_by_footers(output))


def test_a_limit_gives_an_index_of_what_is_committed(output, pairs, make_job):
    IndexedRun(output, make_job, pairs, limit=4).commit().finish()
    assert read_note(output).data_files == 1
    assert len(RowGroupIndex.build(Output.open(output))) == 4
    IndexedRun(output, make_job, pairs).commit().finish()
    assert len(RowGroupIndex.build(Output.open(output))) == 10


def test_many_buckets(output, pairs, make_job, monkeypatch):
    monkeypatch.setattr(index, "KEYS_PER_BUCKET", 2)
    monkeypatch.setattr(index, "_KEYS_IN_MEMORY", 4)
    IndexedRun(output, make_job, pairs).commit().finish()
    note = read_note(output)
    assert note.key_bits == 3
    tables = [read_index_file(f"{output}/{path}", KEY_INDEX) for path in note.buckets]
    hashes = [table["hash"].to_pylist() for table in tables]
    assert sum(map(len, hashes)) == 10
    assert all(note.bucket_of(one) == bucket for bucket, found in enumerate(hashes) for one in found)
    assert read_index_file(f"{output}/{note.files}", FILE_INDEX).num_rows == 3


def test_a_failing_index_is_a_warning(tmp_path, pairs, make_job):
    output = str(tmp_path / "out")
    run = IndexedRun(output, make_job, pairs)
    (tmp_path / "out/_index").write_text("a file where the folder should be")
    run.commit().finish()
    assert "the index cannot be written" in run.warnings[0]
    assert len(RowGroupIndex.build(Output.open(output))) == 10


def test_a_note_of_a_run_that_lost_its_lease_is_replaced(output, pairs, make_job):
    run = IndexedRun(output, make_job, pairs)
    storage.write(f"{output}/_index.json", json.dumps({"format": 99}).encode())
    run.commit().finish()
    assert read_note(output).rows == 10


def test_problems_of_the_index_are_named(output, pairs, make_job):
    run = IndexedRun(output, make_job, pairs).commit(rejected=["k004"]).finish()
    rows = {chunk: result.encoded for chunk, result in run.results.items()}

    def problems(**changed):
        return [
            (re.sub(r"[0-9a-f]{8}(?=[-.])", "token", path), sentence)
            for path, sentence in index_problems(run.state, run.state.inventory(), rows | changed)
        ]

    assert problems() == []
    sentence = "has 3 rows for chunk 000000-00001, but its file has 4"
    expected = [("_index/token-000000.0.parquet", sentence), ("_index/token-files-token.parquet", sentence)]
    assert problems(**{"000000-00001": 4}) == expected
    storage.write(run.state.data_uri("000000-00002"), b"changed")
    assert problems(**{"000000-00002": 9}) == []  # readers read the footer of a file with another version
    storage.write(run.state.data_uri("000001-00000"), b"another")
    sentence = "lacks 1 data files, so readers do not find them; the first is of chunk 000001-00000"
    assert problems() == [("_index.json", sentence)]
    for path in run.state.inventory().index:
        storage.write(f"{output}/{path}", storage.read(f"{output}/{path}").data[:-9])
    assert {path for path, _ in problems()} == {
        "_index/token-000000.0.parquet",
        "_index/token-files-token.parquet",
    }
    storage.write(f"{output}/_index.json", b"{}")
    assert "_index.json" in dict(problems())
