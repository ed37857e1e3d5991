"""A repair removes what is wrong, unless the cause is probably not in the files."""

import json

import pytest

from inpaint_encode.errors import IncompleteOutput, JobFailed
from inpaint_encode.output.lease import hold
from inpaint_encode.output.state import OutputState
from inpaint_encode.tools.verify.findings import Problem, ReencodeResult
from inpaint_encode.tools.verify.repair import repair
from tests.damage import DAMAGES, data_file, drop_a_row, repeat_a_key_in_the_plan, truncate, unknown_file

from .conftest import CHUNKS, JOB


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_repaired_output_has_only_unknown_files(output, verify, damage):
    damage(output)
    repaired, after = verify(output, repair=True), verify(output)
    assert [problem.check for problem in after.problems] == (["unknown"] if damage is unknown_file else [])
    assert [problem.check for problem in repaired.remaining] == [problem.check for problem in after.problems]
    assert after.incomplete == repaired.incomplete == repaired.damaged
    assert repaired.incomplete <= {2, 3}


def test_an_intact_output_stays_as_it_is(output, verify):
    before = {path: path.read_bytes() for path in output.rglob("*.*")}
    verify(output, repair=True).check_complete()
    assert {path: path.read_bytes() for path in output.rglob("*.*")} == before


def test_nothing_is_removed_if_the_plan_is_damaged(output, verify):
    repeat_a_key_in_the_plan(output)
    drop_a_row(output)
    result = verify(output, repair=True)
    assert {problem.check for problem in result.remaining} == {"plan", "keys"}
    assert data_file(output, 2).exists()


def test_nothing_is_removed_if_every_file_is_wrong(output, verify):
    """The wrong file is _job.json, and encoding may have taken weeks."""
    job = json.loads((output / "_job.json").read_text())
    job["rows"]["grow_mask_by"] = 9
    (output / "_job.json").write_text(json.dumps(job))
    result = verify(output, repair=True)
    assert {problem.check for problem in result.remaining} == {"settings"}
    assert len(list(output.glob("*.parquet"))) == CHUNKS
    assert "_job.json" in result.repairs[-1]
    with pytest.raises(IncompleteOutput, match="4 problems; --repair cannot remove the problems that are left"):
        result.check_complete()


@pytest.mark.parametrize("different", [1, 2])
def test_nothing_is_removed_if_every_row_encodes_differently(output, verify, different):
    """The cause is this machine or another version of a decoder; one different row of two is damage."""
    truncate(output, chunk=1)
    result = verify(output)
    result.reencoded = ReencodeResult(rows=2, different=different)
    result.problems += [Problem("reencode", str(data_file(output, chunk)), "differs", chunk) for chunk in (2, 3)]
    with hold(f"{output}/_lease.json", print) as lease:
        state = OutputState(str(output), JOB, lease.token)
        repair(result, state, state.inventory(), lease)
    assert result.incomplete == ({1} if different == 2 else {1, 2, 3})
    assert {problem.check for problem in result.remaining} == ({"reencode"} if different == 2 else set())


def test_a_repair_stops_when_another_run_takes_the_lease(output, verify):
    truncate(output)
    result = verify(output)
    with hold(f"{output}/_lease.json", print) as lease:
        lease.lost.set()
        state = OutputState(str(output), JOB, lease.token)
        with pytest.raises(JobFailed, match="another run has taken over this output"):
            repair(result, state, state.inventory(), lease)
    assert data_file(output, 2).exists()
