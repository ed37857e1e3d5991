"""The destination keeps its files unless the run holds the lease."""

import json

import pytest

from inpaint_encode.errors import JobFailed
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.tools.export.destination import Destination
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
