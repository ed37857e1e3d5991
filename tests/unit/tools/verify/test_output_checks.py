"""Every kind of damage is found and repaired; chunks that are not encoded yet are no damage."""

import json
import re

import pytest

from inpaint_encode.errors import IncompleteOutput, JobFailed
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.tools.verify.findings import Problem, ReencodeResult
from inpaint_encode.tools.verify.output_checks import check_output, repair
from tests.damage import (
    CHUNK_ROWS,
    DAMAGES,
    change_report,
    data_file,
    drop_a_row,
    lost_chunk,
    plan_a_refresh,
    repeat_a_key_in_the_plan,
    truncate,
    unknown_file,
)

from .conftest import CHUNKS, JOB


def test_an_intact_output_has_no_problem(intact, verify):
    result = verify(intact)
    assert (result.problems, result.incomplete) == ([], set())
    pairs = CHUNKS * CHUNK_ROWS
    assert (result.pairs, result.encoded, result.rejects) == (pairs, pairs - 1, {"image.truncated": 1})


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found(output, verify, damage):
    check, file, sentence = DAMAGES[damage]
    damage(output)
    problems = verify(output).problems
    found = [one.sentence for one in problems if one.check == check and re.search(file, one.file)]
    assert any(re.search(sentence, one) for one in found), problems


def test_missing_chunks_are_no_damage(output, verify):
    lost_chunk(output)
    next((output / "_receipts").iterdir()).unlink()
    result = verify(output)
    assert (result.problems, result.incomplete) == ([], {2})


def test_a_chunk_planned_for_refresh_is_incomplete(output, verify):
    """A run died after it had planned a refresh: the file is of the generation before."""
    plan_a_refresh(output)
    result = verify(output)
    assert (result.problems, result.incomplete) == ([], {2})
    assert result.pairs == CHUNKS * CHUNK_ROWS


def test_a_row_that_a_refresh_keeps_must_exist(output, verify):
    """The next run copies it from the old file."""
    plan_a_refresh(output)
    drop_a_row(output)
    (problem,) = verify(output).problems
    assert problem.check == "keys"
    assert "neither rows nor rejects, the first 000/000008" in problem.sentence


def test_an_unreadable_part_of_the_plan_is_a_problem(output, verify):
    next((output / "_plan").glob("*.parquet")).write_bytes(b"PAR1")
    (problem,) = verify(output).problems
    assert problem.check == "plan"
    assert "its chunks are not checked" in problem.sentence


def test_an_output_without_a_plan_has_one_problem(output, verify):
    for path in (output / "_plan").iterdir():
        path.unlink()
    (problem,) = verify(output).problems
    assert (problem.check, "run the same encode command" in problem.sentence) == ("plan", True)


def test_repeated_keys_in_the_plan_are_a_problem(output, verify):
    repeat_a_key_in_the_plan(output)
    sentences = {problem.sentence for problem in verify(output).problems if problem.check == "plan"}
    assert sentences == {
        "has 12 pairs, but its Parquet files have 13",
        "has 1 repeated keys, the first 000/000004",
    }


def test_a_part_of_the_plan_that_the_store_refuses_ends_the_command(tmp_path):
    (tmp_path / "part-0000-000000.parquet").mkdir()
    state = OutputState(str(tmp_path), "0a1b2c3d", "")
    with pytest.raises(JobFailed, match="cannot be read"):
        check_output(state, Inventory(parts=["part-0000-000000.parquet"]), lambda _: [])


class TestReportOfALimitedRun:
    """``encoded``, ``rejected`` and ``pairs_left`` add up to ``pairs``."""

    def test_it_is_accepted_before_and_after_the_rest_is_encoded(self, output, verify):
        change_report(output, limit=9, encoded=8, pairs_left=3)
        assert verify(output).problems == []
        lost_chunk(output, chunk=3)
        next((output / "_receipts").iterdir()).unlink()
        result = verify(output)
        assert (result.problems, result.incomplete) == ([], {3})

    def test_counts_that_do_not_add_up_are_a_problem(self, output, verify):
        change_report(output, limit=9, encoded=8, pairs_left=4)
        (problem,) = verify(output).problems
        assert (problem.check, problem.sentence) == ("report", "has pairs 12, not 13")


class TestRepair:
    """A repair removes what is wrong, unless the cause is probably not in the files."""

    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    def test_a_repaired_output_has_only_unknown_files(self, output, verify, damage):
        damage(output)
        repaired, after = verify(output, repair=True), verify(output)
        assert [problem.check for problem in after.problems] == (["unknown"] if damage is unknown_file else [])
        assert [problem.check for problem in repaired.remaining] == [problem.check for problem in after.problems]
        assert after.incomplete == repaired.incomplete == repaired.damaged
        assert repaired.incomplete <= {2, 3}

    def test_an_intact_output_stays_as_it_is(self, output, verify):
        before = {path: path.read_bytes() for path in output.rglob("*.*")}
        verify(output, repair=True).check_complete()
        assert {path: path.read_bytes() for path in output.rglob("*.*")} == before

    def test_nothing_is_removed_if_the_plan_is_damaged(self, output, verify):
        repeat_a_key_in_the_plan(output)
        drop_a_row(output)
        result = verify(output, repair=True)
        assert {problem.check for problem in result.remaining} == {"plan", "keys"}
        assert data_file(output, 2).exists()

    def test_nothing_is_removed_if_every_file_is_wrong(self, output, verify):
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
    def test_nothing_is_removed_if_every_row_encodes_differently(self, output, verify, different):
        """The cause is this machine or another version of a decoder; one different row of two is damage."""
        truncate(output, chunk=1)
        result = verify(output)
        problems = [Problem("reencode", str(data_file(output, chunk)), "differs", chunk) for chunk in (2, 3)]
        result.reencoded = ReencodeResult(rows=2, problems=problems[:different])
        result.problems += problems
        with acquire_lease(f"{output}/_lease.json", print) as lease:
            state = OutputState(str(output), JOB, lease.token)
            repair(result, state, state.inventory())
        assert result.incomplete == ({1} if different == 2 else {1, 2, 3})
        assert {problem.check for problem in result.remaining} == ({"reencode"} if different == 2 else set())

    def test_a_repair_stops_when_another_run_takes_the_lease(self, output, verify):
        truncate(output)
        result = verify(output)
        state = OutputState(str(output), JOB, "another run's token")
        with (
            acquire_lease(f"{output}/_lease.json", print),
            pytest.raises(JobFailed, match="another run has taken over this output"),
        ):
            repair(result, state, state.inventory())
        assert data_file(output, 2).exists()
