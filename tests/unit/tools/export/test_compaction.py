"""Large Parquet files of finished units: the same rows in the same order; changed, damaged and unfinished outputs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from inpaint_encode import iter_rows, open_latents
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.index_files import IndexNote, read_note
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.resume import open_output
from inpaint_encode.reader import Output
from inpaint_encode.reader.groups import RowGroupReader
from inpaint_encode.reader.output import DataFile
from inpaint_encode.schema import FOOTER_KEY, TENSORS, is_packed
from inpaint_encode.sources import LeftOut
from inpaint_encode.stores import storage
from inpaint_encode.tools.export import compaction
from inpaint_encode.tools.export.compaction import (
    CHUNKS_KEY,
    divide,
    export_id,
    group_files,
    write_group,
    write_index,
)
from inpaint_encode.tools.export.destination import Destination, ExportTotals
from inpaint_encode.tools.inspect.info import read_info
from tests.exports import JOB, METADATA, exported, of_rows, write_chunk
from tests.outputs import data_files
from tests.units import UnitOutput

UNIT = [f"{row:03d}" for row in range(14)]
EXPORTED = export_id(JOB)


def compact(output: str, to: str, file_bytes: int = 10**9) -> ExportTotals:
    """Write every group as workers do, in this process, and the index."""
    with acquire_lease(f"{to}/_lease.json", print) as lease:
        destination = Destination(to, lease.token)
        groups = group_files(Output.open(output), file_bytes).groups
        made = [write_group(group, source=output, destination=destination) for group in groups]
        write_index(destination, JOB, {group.path for group in groups})
        return ExportTotals.sum_of(made)


def table_of(folder: str) -> pa.Table:
    """Return all rows in the order of the file names, by Arrow alone, with plain types."""
    tables = [pq.read_table(path) for path in sorted(Path(folder).glob("*.parquet"))]
    columns = [[table[name].combine_chunks() for table in tables] for name in tables[0].column_names]
    plain = [[one.storage if isinstance(one, pa.ExtensionArray) else one for one in column] for column in columns]
    return pa.table([pa.concat_arrays(column) for column in plain], names=tables[0].column_names)


def row_groups_of(path: Path) -> list[int]:
    metadata = pq.read_metadata(path)
    return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]


@pytest.fixture
def made(tmp_path):
    """Two finished units of four chunks; pairs are rejected, all of one chunk among them."""
    made = UnitOutput(tmp_path / "out")
    made.encode(made.plan(UNIT, 4), rejected={"001", *UNIT[4:8]})
    made.encode(made.plan([f"b{key}" for key in UNIT], 4))
    return made


@pytest.mark.parametrize("changes", [{}, {"samples_dtype": "float32"}, {"mask_encoding": "packed"}])
@pytest.mark.parametrize(("file_bytes", "files"), [(10**9, 2), (30_000, 4)])
def test_rows_and_their_order_are_the_same_in_every_column(changes, file_bytes, files, tmp_path):
    made = UnitOutput(tmp_path / "out", also_original=True, latent_mask="comfyui", **changes)
    made.encode(made.plan(UNIT, 4), rejected={"001", *UNIT[4:8]})
    made.encode(made.plan([f"b{key}" for key in UNIT], 4))
    totals = compact(made.uri, f"{tmp_path}/to", file_bytes)
    before, after = table_of(made.uri), table_of(f"{tmp_path}/to")
    assert after.schema.equals(before.schema)
    for name in before.column_names:
        assert after[name].equals(before[name]), name
        if name in TENSORS:  # the bits of numbers, too: 0.0 equals -0.0
            bits = "bits" if is_packed(before[name].type) else "data"
            ours, theirs = (pc.struct_field(table[name].chunk(0), bits).buffers()[-1] for table in (before, after))
            assert ours.equals(theirs)
    written = list(Path(tmp_path, "to").glob("*.parquet"))
    assert totals == (23, files, sum(path.stat().st_size for path in written))
    assert len(written) == files


def test_the_footer_has_the_metadata_and_names_the_data_files(made, tmp_path):
    compact(made.uri, f"{tmp_path}/to")
    path = tmp_path / f"to/{EXPORTED}-000000-00000.parquet"
    metadata = pq.read_metadata(path).metadata
    assert metadata[FOOTER_KEY] == pq.read_metadata(f"{made.uri}/{JOB}-000000-00000.parquet").metadata[FOOTER_KEY]
    first, *_, fourth = json.loads(metadata[CHUNKS_KEY])
    assert (first["path"], first["rows"], first["chunk"]) == (f"{JOB}-000000-00000.parquet", 3, "000000-00000")
    assert (fourth["hash"], fourth["revision"]) == (made.log.chunks["000000-00003"].hash, 0)
    assert first["version"] == storage.stat(f"{made.uri}/{first['path']}").version
    names = pq.read_metadata(path).row_group(0).column(0)
    assert (names.statistics.min, names.statistics.max, names.compression) == ("000", "013", "ZSTD")
    assert Output.open(f"{tmp_path}/to").metadata == Output.open(made.uri).metadata


def test_other_versions_of_packages_are_kept_in_the_footer(tmp_path):
    made = UnitOutput(tmp_path / "out")
    first, second = made.plan(["c1", "c2"], 1)
    made.encode([first])
    made.encode([second], versions={"torch": "9.9"})
    compact(made.uri, f"{tmp_path}/to")
    one, other = json.loads(pq.read_metadata(tmp_path / f"to/{EXPORTED}-000000-00000.parquet").metadata[CHUNKS_KEY])
    assert "metadata" not in one
    assert other["metadata"] == {"versions": {"torch": "9.9"}}


def test_records_are_an_index_of_the_files(made, tmp_path):
    compact(made.uri, f"{tmp_path}/to")
    record = json.loads((tmp_path / f"to/_export/{EXPORTED}-000001-00000.json").read_text())
    path = tmp_path / f"to/{EXPORTED}-000001-00000.parquet"
    assert record.pop("version")
    expected = {"done": True, "rows": 14, "bytes": path.stat().st_size, "files": [path.name]}
    expected |= {"unit": 1, "group_rows": row_groups_of(path), "keys": f"_export/{path.stem}-keys.parquet"}
    assert record == {**expected, "footer_bytes": pq.read_metadata(path).serialized_size + 8}


def test_the_index_serves_readers_and_follows_the_files(made, tmp_path):
    """Readers find every file, row group and key in it, before and after a revision; old files are removed."""
    to = tmp_path / "to"
    for seed in range(2):
        compact(made.uri, str(to), 30_000)
        note, opened = read_note(str(to)), Output.open(str(to))
        assert isinstance(note, IndexNote)
        assert (note.rows, note.data_files, note.data_bytes) == (23, 4, opened.data_bytes)
        assert {path.name for path in (to / "_index").iterdir()} == {Path(path).name for path in note.paths}
        assert [file.path for file in opened.files] == data_files(str(to))
        for file in opened.files:
            assert file.footer_bytes == pq.read_metadata(to / file.path).serialized_size + 8
            assert file.version == storage.stat(f"{to}/{file.path}").version
        reader = RowGroupReader(opened)
        assert len(reader.index.not_indexed) == 0
        assert reader.index.sizes.tolist() == [size for file in opened.files for size in row_groups_of(to / file.path)]
        for key in pq.read_table(to, columns=["key"])["key"].to_pylist():
            group, row = reader.find(key)
            assert reader.keys(group)[row].as_py() == key
        made.encode(made.revise(["000"]), seed=seed + 1)


def test_a_complete_index_is_not_written_again(made, tmp_path):
    compact(made.uri, f"{tmp_path}/to")
    before = storage.stat(f"{tmp_path}/to/_index.json").version
    with acquire_lease(f"{tmp_path}/to/_lease.json", print) as lease:
        destination = Destination(f"{tmp_path}/to", lease.token)
        paths = set(data_files(destination.uri))
        write_index(destination, JOB, paths)
        assert storage.stat(f"{tmp_path}/to/_index.json").version == before
        destination.remove_note()
        for path in (tmp_path / "to/_export").glob("*-keys.parquet"):
            path.unlink()
        with pytest.raises(JobFailed, match=r"-keys\.parquet is missing or damaged; run the command with --overwrite"):
            write_index(destination, JOB, paths)


def test_small_row_groups_are_joined_and_large_ones_stay(tmp_path, monkeypatch):
    made = UnitOutput(tmp_path / "out", sides=(4, 4))
    made.encode(made.plan(UNIT, 4))
    paths = sorted(Path(made.uri).glob("*.parquet"))
    group = pq.read_metadata(paths[0]).row_group(0)
    size = sum(group.column(number).total_compressed_size for number in range(group.num_columns))
    for limit, expected in ((10**6, [14]), (2.2 * size, [8, 6]), (size // 2, [4, 4, 4, 2])):
        monkeypatch.setattr(compaction, "ROW_GROUP_BYTES", limit)
        compact(made.uri, f"{tmp_path}/{limit}")
        assert row_groups_of(tmp_path / f"{limit}/{EXPORTED}-000000-00000.parquet") == expected


@pytest.mark.parametrize(
    ("sizes", "file_bytes", "expected"),
    [
        ([8] * 6, 48, [6]),
        ([8] * 6, 47, [3, 3]),
        ([8] * 7, 16, [2, 1, 2, 2]),
        ([100, 1, 1, 1], 50, [1, 3]),
        ([1, 1, 1, 100], 50, [3, 1]),
        ([], 50, []),
    ],
)
def test_files_are_divided_equally(sizes, file_bytes, expected):
    files = [DataFile(f"{number}", size, "") for number, size in enumerate(sizes)]
    parts = list(divide(files, file_bytes))
    assert [len(part) for part in parts] == expected
    assert [file for part in parts for file in part] == files


@pytest.mark.parametrize("known_from", ["footers", "receipts", "index"])
def test_unfinished_units_are_left_out(made, known_from):
    """The second unit is revised and lacks a new row; the third lacks a chunk."""
    if known_from == "index":
        made.write_index()
        storage.delete(f"{made.uri}/_index.json")  # the next run does
    third = made.plan(["c1", "c2"], 1)
    made.encode(third[:1])
    if known_from == "receipts":
        made.keep_receipts()
    before = exported(made.uri)
    grouping = group_files(Output.open(made.uri), 10**9)
    assert [group.path for group in grouping.groups] == [f"{EXPORTED}-{unit:06d}-00000.parquet" for unit in range(2)]
    assert grouping.about_unfinished() == "1 of 3 units is not finished yet (2); run this command again later"
    made.revise(["000"])
    grouping = group_files(Output.open(made.uri), 10**9)
    assert [group.path for group in grouping.groups] == [f"{EXPORTED}-000001-00000.parquet"]
    assert grouping.about_unfinished() == "2 of 3 units are not finished yet (0, 2); run this command again later"
    assert {path: data for path, data in exported(made.uri).items() if path in before} == before


def test_a_finished_output_with_an_index_is_exported_whole(made, tmp_path):
    made.write_index()
    assert compact(made.uri, f"{tmp_path}/to").rows == 23
    assert table_of(f"{tmp_path}/to").equals(table_of(made.uri))


def test_a_revised_unit_changes_only_its_own_files(made):
    before = group_files(Output.open(made.uri), 10**9).groups
    made.encode(made.revise(["000"]), seed=1)
    after = group_files(Output.open(made.uri), 10**9).groups
    assert [one.path for one in after] == [one.path for one in before]
    assert [one.version == other.version for one, other in zip(before, after, strict=True)] == [False, True]


def test_an_output_of_version_0_1_is_one_unit_when_it_is_finished(tmp_path):
    output = f"{tmp_path}/out"
    for chunk in range(3):
        write_chunk(output, chunk, [f"{chunk}/{row}" for row in range(4)])
    storage.write(f"{output}/_job.json", json.dumps({"job": JOB, "rows": METADATA.to_dict()}).encode())
    with pytest.raises(UsageError, match="has no plan with units and no report of a finished job"):
        group_files(Output.open(output), 10**9)
    sizes = [file.size for file in Output.open(output).files]
    write_report(
        f"{output}/_report.json",
        {},
        {"pairs": 12},
        LeftOut(),
        RunStats(encoded=12, chunks=3, data_bytes=sum(sizes)),
        RunStats(),
    )
    assert compact(output, f"{tmp_path}/to").rows == 12
    assert list(of_rows(f"{tmp_path}/to")) == [f"{EXPORTED}-000000-00000.parquet"]
    assert table_of(f"{tmp_path}/to").equals(table_of(output))


def test_every_reader_reads_the_files_like_an_output(made, tmp_path):
    to = f"{tmp_path}/to"
    compact(made.uri, to, 30_000)
    storage.write(f"{to}/_job.json", storage.read(f"{made.uri}/_job.json").data)
    keys = [row["key"] for row in iter_rows(made.uri)]
    assert [row["key"] for row in iter_rows(to)] == keys
    ours, theirs = open_latents(made.uri), open_latents(to)
    assert len(theirs) == len(keys)
    assert (theirs[-1]["samples"] == ours[-1]["samples"]).all()
    assert theirs.metadata == ours.metadata
    assert Output.open(to).job == Output.open(made.uri).job
    command = [sys.executable, "-c", READ, to]  # without Ray, which registers types of its own
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HOME": f"{tmp_path}/cache"})
    assert done.returncode == 0, done.stderr
    assert [json.loads(line) for line in done.stdout.splitlines()] == [keys] * 4


READ = """
import json, sys
import datasets, duckdb, polars
import pyarrow.dataset

folder = sys.argv[1]
paths = f"{folder}/*.parquet"
print(json.dumps(pyarrow.dataset.dataset(folder).to_table()["key"].to_pylist()))
print(json.dumps(polars.read_parquet(paths)["key"].to_list()))
print(json.dumps([key for key, in duckdb.sql(f"select key from '{paths}'").fetchall()]))
print(json.dumps(list(datasets.load_dataset("parquet", data_files=paths, split="train")["key"])))
"""


def test_a_data_file_with_other_columns_is_named(tmp_path):
    made = UnitOutput(tmp_path / "out")
    first, second = made.plan(["c1", "c2"], 1)
    made.encode([first])
    made.encode([second], also_original=True)
    with pytest.raises(JobFailed, match=f"{second}.parquet has other columns than the data file before it"):
        compact(made.uri, f"{tmp_path}/to")


def test_a_changed_and_a_damaged_data_file_are_named(made, tmp_path):
    def refused(match: str, change) -> None:
        groups = group_files(Output.open(made.uri), 10**9).groups
        path = Path(made.uri, f"{JOB}-000000-00003.parquet")
        whole = path.read_bytes()
        change(path, whole)
        with acquire_lease(f"{tmp_path}/to/_lease.json", print) as lease:
            destination = Destination(f"{tmp_path}/to", lease.token)
            with pytest.raises(JobFailed, match=rf"{path}.*{match}"):
                write_group(groups[0], source=made.uri, destination=destination)
        path.write_bytes(whole)

    refused("has changed since it was listed", lambda path, whole: path.write_bytes(whole[:-1]))

    def change_a_page(path: Path, whole: bytes) -> None:
        column = pq.read_metadata(path).row_group(0).column(0)
        data = bytearray(whole)
        data[column.data_page_offset + column.total_compressed_size - 20] ^= 1
        stat = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    refused("is damaged", change_a_page)
    assert of_rows(f"{tmp_path}/to") == {}


def test_an_export_is_described_and_neither_encoded_to_nor_exported(made, tmp_path):
    to = f"{tmp_path}/to"
    compact(made.uri, to)
    job = storage.read(f"{made.uri}/_job.json").data
    storage.write(f"{to}/_job.json", job)
    storage.write(f"{to}/_export.json", json.dumps({"source": made.uri, "to": "parquet"}).encode())
    info = read_info(to)
    assert (info["counts"]["state"], info["counts"]["files"]) == (f"an export of {made.uri}", 2)
    assert info["source"] == {"pairs": "list.jsonl"}
    for overwrite in (False, True):
        with pytest.raises(UsageError, match=f"contains {EXPORTED}-000000-00000.parquet, which this job did not write"):
            open_output(to, {**json.loads(job), "access": {}}, overwrite=overwrite, token="")
    with pytest.raises(UsageError, match=f"{EXPORTED}-000000-00000.parquet, which is no data file of its job"):
        group_files(Output.open(to), 10**9)
