"""The destination keeps its files unless the run holds the lease."""

import json
import tracemalloc

import pytest

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.notes import check_no_links
from inpaint_encode.tools.export.destination import Destination, ExportRecord
from tests.exports import export, exported, write_chunk


@pytest.fixture
def plain(tmp_path):
    folder = str(tmp_path / "out")
    write_chunk(folder, 0, ["a", "b"])
    return folder


@pytest.mark.parametrize("done", [True, False])
def test_a_run_without_the_lease_removes_nothing(plain, tmp_path, done):
    to = tmp_path / "to"
    export(plain, "safetensors", to)
    (note,) = (to / "_export").iterdir()
    note.write_text(json.dumps({**json.loads(note.read_text()), "done": done}))
    before = exported(str(to))
    with acquire_lease(f"{to}/_lease.json", print), pytest.raises(JobFailed, match="another run has taken over"):
        Destination(str(to), "other").remove_outdated({})
    assert exported(str(to)) == before


def test_records_are_not_in_memory_together(tmp_path):
    """A record has the names of all files of a data file; 300 records take 50 MB as Python objects."""
    to = f"{tmp_path}/to"
    files = tuple(f"{number:04d}/{'x' * 100}.latent" for number in range(1_000))
    with acquire_lease(f"{to}/_lease.json", print) as lease:
        destination = Destination(to, lease.token)
        for number in range(300):
            record = ExportRecord(f"{number}", done=True, rows=500, bytes=1_000, files=files)
            destination.write_record(f"{number:08d}.parquet", record)
        versions = {f"{number:08d}.parquet": f"{number}" for number in range(300)}
        tracemalloc.start()
        done, totals = destination.remove_outdated(versions)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert done == versions.keys()
    assert totals == (150_000, 300_000, 300_000)
    assert peak < 25e6


@pytest.fixture
def victim(tmp_path):
    path = tmp_path / "victim" / "thesis.safetensors"
    path.parent.mkdir()
    path.write_text("years of work")
    return path


def start(to, form="safetensors", *, overwrite=False):
    """Begin an export as `export_output` does."""
    check_no_links(str(to), recursive=True)
    with acquire_lease(f"{to}/_lease.json", print) as lease:
        destination = Destination(str(to), lease.token, form)
        destination.start({"source": "out", "job": "0a1b2c3d", "to": form}, overwrite=overwrite)
        return destination.remove_outdated({})


OUTSIDE = [
    "../victim/thesis.safetensors",
    "{victim}",
    "a/../../victim/thesis.safetensors",
    "..",
    "",
    "a//b.safetensors",
]
OTHERS = ["mine.txt", "_job.json", "mine.tar", "mine.latent", "_export/x.safetensors", "a\\..\\b.safetensors", "a\x00b"]


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("path", [*OUTSIDE, *OTHERS])
def test_a_record_that_names_another_file_removes_nothing(plain, tmp_path, victim, path, overwrite):
    to = tmp_path / "to"
    start(to)
    export(plain, "safetensors", to)
    for name in ("mine.txt", "mine.tar", "mine.latent", "_job.json"):
        (to / name).write_text("mine")
    (note,) = (to / "_export").iterdir()
    record = json.loads(note.read_text())
    note.write_text(json.dumps({**record, "files": [path.format(victim=victim), *record["files"]]}))
    before = exported(str(to))
    with pytest.raises(UsageError if overwrite else JobFailed, match=r"move them away|is damaged .* use --overwrite"):
        start(to, overwrite=overwrite)
    assert victim.read_text() == "years of work"
    notes = ("_export.json", f"_export/{note.name}") if overwrite else ()
    assert exported(str(to)) == {name: data for name, data in before.items() if name not in notes}


@pytest.mark.parametrize("keys", ["../victim/thesis.safetensors", "mine.parquet"])
def test_a_record_that_names_another_file_of_keys_removes_nothing(tmp_path, victim, keys):
    to = tmp_path / "to"
    start(to, "parquet")
    record = {"version": "1", "done": True, "rows": 1, "bytes": 1, "files": [], "keys": keys}
    (to / "_export").mkdir()
    (to / "_export" / "0a1b2c3d-000000-00000.json").write_text(json.dumps(record))
    (to / "mine.parquet").write_text("mine")
    with pytest.raises(JobFailed, match="is no name of a file of keys"):
        start(to, "parquet")
    assert victim.exists()
    assert (to / "mine.parquet").exists()


DAMAGES = [b"", b"{", b"[]", b"[" * 100_000, b'{"done": NaN}', b"\xff", b'{"source": 5, "to": "webdataset"}']


@pytest.mark.parametrize("damage", DAMAGES, ids=range(len(DAMAGES)))
@pytest.mark.parametrize("name", ["_export.json", "_export"])
@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_overwrite_is_a_way_out_of_damage(tmp_path, name, damage, form):
    to, suffix = tmp_path / "to", {"webdataset": "tar", "parquet": "parquet"}[form]
    start(to, form)
    (to / "_export").mkdir()
    for number in range(2):
        stem = f"0a1b2c3d-000000-{number:05d}"
        record = {"version": "1", "done": True, "rows": 1, "bytes": 9, "files": [f"{stem}.{suffix}"]}
        record |= {"unit": 0, "footer_bytes": 5, "group_rows": [1]} if form == "parquet" else {}
        (to / "_export" / f"{stem}.json").write_text(json.dumps(record))
        (to / f"{stem}.{suffix}").write_text("exported")
    (to / "mine.txt").write_text("mine")
    note = to / name if name == "_export.json" else to / "_export" / "0a1b2c3d-000000-00001.json"
    note.write_bytes(damage)
    with pytest.raises(JobFailed, match=f"{note.name} is damaged .* use --overwrite to export again, or export to"):
        start(to, form)
    assert start(to, form, overwrite=True) == (set(), (0, 0, 0))
    assert sorted(path.name for path in to.rglob("*.*")) == ["_export.json", "mine.txt"]


def test_overwrite_is_a_way_out_if_the_note_is_missing(plain, tmp_path):
    to = tmp_path / "to"
    start(to)
    export(plain, "safetensors", to)
    (to / "_export.json").unlink()
    with pytest.raises(UsageError, match="move them away, or choose another folder"):
        start(to)
    start(to, overwrite=True)
    assert [path.name for path in to.rglob("*.*")] == ["_export.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_an_export_that_is_a_link_is_refused(plain, tmp_path, victim, overwrite):
    to = tmp_path / "to"
    start(to)
    (to / "a").mkdir()
    (to / "a" / "b").symlink_to(victim.parent)
    (to / "_export").mkdir()
    record = {"version": "1", "done": True, "rows": 1, "bytes": 1, "files": ["a/b/thesis.safetensors"]}
    (to / "_export" / "00000000.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match="a/b is a link to another folder"):
        start(to, overwrite=overwrite)
    assert victim.exists()


@pytest.mark.parametrize("changes", [{"unit": None}, {"footer_bytes": None}, {"group_rows": None}, {"group_rows": [2]}])
def test_a_record_without_what_the_index_needs_is_damaged(tmp_path, changes):
    to = tmp_path / "to"
    start(to, "parquet")
    (to / "_export").mkdir()
    record = {"version": "1", "done": True, "rows": 1, "bytes": 9, "files": ["0a1b2c3d-000000-00000.parquet"]}
    record |= {"unit": 0, "footer_bytes": 5, "group_rows": [1]} | changes
    (to / "_export" / "0a1b2c3d-000000-00000.json").write_text(json.dumps(record))
    with pytest.raises(JobFailed, match="it lacks what the index needs, or its counts differ"):
        start(to, "parquet")


def test_a_foreign_file_below_index_stays(tmp_path):
    to = tmp_path / "to"
    start(to, "parquet")
    (to / "_index").mkdir()
    for name in ("0a1b2c3d-files-01234567.parquet", "mine.txt"):
        (to / "_index" / name).write_text("x")
    start(to, "parquet", overwrite=True)
    assert [path.name for path in (to / "_index").iterdir()] == ["mine.txt"]
