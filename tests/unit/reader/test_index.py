"""Outputs that are read by their index: finished, growing, revised, copied and damaged ones."""

import pickle
import shutil

import pyarrow as pa
import pytest

from inpaint_encode import iter_rows, open_latents
from inpaint_encode.errors import UsageError
from inpaint_encode.output.known_keys import hash_keys
from inpaint_encode.reader import Output, files
from inpaint_encode.reader.groups import RowGroupIndex
from inpaint_encode.stores import storage
from inpaint_encode.stores.ranged_file import Changed
from inpaint_encode.stores.s3 import forget_clients
from tests.buckets import point_clients_at
from tests.indexed import (
    CHUNK_ROWS,
    IndexedRun,
    numbered,
    output_fixture,  # noqa: F401
    pairs_fixture,  # noqa: F401
    write_pairs,
)
from tests.outputs import files_of, write_output
from tests.proxy import FaultyProxy

from .conftest import keys


def check_rows(output: str, expected: list[str]) -> None:
    """Check that all rows are read, and each by its number and its key."""
    dataset = pickle.loads(pickle.dumps(open_latents(output)))
    assert keys(dataset) == list(dataset.keys()) == expected
    for number, key in enumerate(expected):
        assert dataset[key]["key"] == dataset[number]["key"] == key
    with pytest.raises(KeyError):
        dataset["no such key"]
    assert open_latents(output, columns=["samples"])[expected[-1]].keys() == {"samples"}


def indexed(output: str) -> int:
    """Return the number of data files that are read by the index."""
    return sum(file.footer_bytes > 0 for file in Output.open(output).files)


def index_file(output: str, part: str) -> str:
    """Return the URI of the first file of the index with this part in its name."""
    return next(f"{output}/{path}" for path in files_of(output) if path.startswith("_index/") and part in path)


def cut(uri: str) -> None:
    storage.write(uri, storage.read(uri).data[:-20])


def test_a_finished_output(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit(rejected=["k004"]).finish()
    assert indexed(output) == 3
    check_rows(output, [key for key in numbered(10) if key != "k004"])
    assert keys(iter_rows(output)) == keys(open_latents(output))


def test_requests(s3, tmp_path, pairs, make_job, monkeypatch):
    """Opening takes the note and the index; a row by key takes keys, footer and row group."""
    output = s3.uri(tmp_path.name)
    IndexedRun(output, make_job, pairs).commit().finish()
    with FaultyProxy(s3) as proxy, monkeypatch.context() as patch:
        point_clients_at(proxy.environment, patch)
        dataset = open_latents(output)
        assert (len(dataset), proxy.counts["requests"]) == (10, 2)
        for key in ("k003", "k009"):
            proxy.counts["requests"] = 0
            assert dataset[key]["key"] == key
            assert proxy.counts["requests"] == 3 - (key == "k009")  # the keys are cached
        proxy.counts["requests"] = 0
        assert dataset["k008"]["key"] == "k008"
        assert proxy.counts["requests"] == 1  # and the footer
    forget_clients()


def test_a_run_that_goes_on_or_was_killed(output, pairs, make_job):
    """Files of finished units come from their index, others from the listing."""
    IndexedRun(output, make_job, pairs).commit().finish()
    write_pairs(pairs, numbered(20))
    run = IndexedRun(output, make_job, pairs).commit(1)
    assert (indexed(output), len(Output.open(output).files)) == (3, 4)
    check_rows(output, numbered(10 + CHUNK_ROWS))
    run.commit(1).end()
    assert (indexed(output), len(Output.open(output).files)) == (3, 5)
    check_rows(output, numbered(10 + 2 * CHUNK_ROWS))
    IndexedRun(output, make_job, pairs).commit().finish()
    assert indexed(output) == 6
    check_rows(output, numbered(20))


def test_a_unit_that_is_being_revised(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit(rejected=["k000", "k005"]).finish()
    run = IndexedRun(output, make_job, pairs, retry_rejected=True).commit(1)
    assert (indexed(output), len(Output.open(output).files)) == (2, 3)  # the footer of the revised file is read
    check_rows(output, [*numbered(5), *numbered(10)[6:]])
    run.commit().finish()
    assert indexed(output) == 3


def test_rows_of_a_copy_are_read_by_the_footers_of_its_files(tmp_path, pairs, make_job):
    IndexedRun(str(tmp_path / "out"), make_job, pairs).commit().finish()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / "out", copy, copy_function=shutil.copy)
    assert indexed(str(copy)) == 3
    check_rows(str(copy), numbered(10))


def test_files_that_were_replaced_after_the_index_was_written(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit().finish()
    dataset = open_latents(output)
    assert dataset[0]["key"] == "k000"
    first, second, third = (f"{output}/{file.path}" for file in Output.open(output).files)
    storage.write(third, storage.read(second).data)
    with pytest.raises(Changed, match="has changed"):
        dataset["k009"]  # the file has other row groups now
    storage.write(first, storage.read(second).data)
    with pytest.raises(Changed, match="has changed"):
        dataset[0]  # it changed while it was read
    assert open_latents(output)[0]["key"] == "k004"


@pytest.mark.parametrize("part", ["-files-", "-keys-", "000000.0.parquet", "000000.0-keys"])
@pytest.mark.parametrize("damage", [cut, storage.delete])
@pytest.mark.parametrize("noted", [True, False])
def test_a_damaged_index_is_ignored(tmp_path, pairs, make_job, part, damage, noted):
    output = str(tmp_path / "out")
    IndexedRun(output, make_job, pairs).commit().finish()
    damage(index_file(output, part))
    if not noted:
        storage.delete(f"{output}/_index.json")
    check_rows(output, numbered(10))


def test_a_damaged_note_is_ignored(output, pairs, make_job, caplog):
    IndexedRun(output, make_job, pairs).commit().finish()
    for damaged in (b"{", b'{"format": 2}', b"[]"):
        storage.write(f"{output}/_index.json", damaged)
        caplog.clear()
        check_rows(output, numbered(10))
        assert "_index.json cannot be used" in caplog.text


def test_another_key_with_the_same_hash_is_not_returned(tmp_path, pairs, make_job, monkeypatch):
    IndexedRun(str(tmp_path / "out"), make_job, pairs).commit().finish()
    hashes = hash_keys(pa.chunked_array([["k003"]]))
    monkeypatch.setattr(files, "hash_keys", lambda _: hashes)
    dataset = open_latents(str(tmp_path / "out"))
    assert dataset["k003"]["key"] == "k003"
    with pytest.raises(KeyError):
        dataset["other"]


def test_several_outputs_in_one_folder_are_refused(output, pairs, make_job):
    for name in "ab":
        IndexedRun(f"{output}/{name}", make_job, pairs).commit().finish()
    with pytest.raises(
        UsageError, match=rf"holds the files of several outputs: {output}/a, {output}/b; give the folder"
    ):
        open_latents(output)
    assert len(open_latents(f"{output}/a")) == 10
    with pytest.raises(UsageError, match=f"holds the files of another output: {output}/a"):
        storage.delete(f"{output}/b/_job.json")
        open_latents(output)


@pytest.mark.parametrize("folder", ["_old", "a/_old", "a/_old/b", ".trash", "a/.trash"])
def test_hidden_folders_have_no_data(output, folder):
    write_output(output, [[(4, 4)] * 3])
    write_output(f"{output}/{folder}", [[(4, 4)] * 3])
    storage.write(f"{output}/{folder}/_job.json", b"{}")
    assert len(open_latents(output)) == 3


def test_copies_of_data_files_in_folders_are_read_by_footers(output):
    for folder in "ab":
        write_output(f"{output}/{folder}", [[(4, 4)] * 3])
    assert keys(open_latents(output)) == [*numbered_in("00", 3), *numbered_in("00", 3)]


def numbered_in(folder: str, count: int) -> list[str]:
    return [f"{folder}/{number:03}" for number in range(count)]


def test_row_groups_need_no_footers(output, pairs, make_job, monkeypatch):
    IndexedRun(output, make_job, pairs).commit().finish()
    monkeypatch.setattr(Output, "footer", None)
    assert RowGroupIndex.build(Output.open(output)).sizes.tolist() == [2] * 5


def test_the_index_of_an_overwritten_job_is_removed(output, pairs, make_job):
    IndexedRun(output, make_job, pairs).commit().finish()
    old = {path for path in files_of(output) if path.startswith("_index")}
    IndexedRun(output, make_job, pairs, overwrite=True).commit(1).end()
    assert not old & set(files_of(output))
    check_rows(output, numbered(CHUNK_ROWS))
