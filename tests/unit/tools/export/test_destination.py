"""The destination keeps its files unless the run holds the lease."""

import json
import tracemalloc

import pytest

from inpaint_encode.errors import JobFailed
from inpaint_encode.output.lease import acquire_lease
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
