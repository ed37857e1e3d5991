"""Every kind of damage is found and repaired; chunks that are not encoded yet are no damage."""

import json
import re

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode import open_latents
from inpaint_encode.errors import IncompleteOutput, JobFailed
from inpaint_encode.output import plan_check
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.plan import chunk_name
from inpaint_encode.output.plan_check import CheckedPlan, KeyCounter, check_plan
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.tools.verify.findings import Problem, ReencodeResult
from inpaint_encode.tools.verify.output_checks import check_output
from inpaint_encode.tools.verify.repair import Repair
from tests.damage import (
    CHUNK_ROWS,
    DAMAGES,
    change_report,
    data_file,
    drop_a_row,
    file_of_an_overwritten_job,
    in_row,
    lost_chunk,
    plan_a_refresh,
    repeat_a_key_in_the_plan,
    settings_of_another_job,
    temporary_file,
    truncate,
    unknown_file,
    with_first,
    wrong_receipts,
)
from tests.outputs import PLAIN
from tests.pickled_parquet import with_pickled

from .conftest import CHUNKS


def job_of(output) -> str:
    return json.loads((output / "_job.json").read_text())["job"]


def checked_plan(state: OutputState) -> CheckedPlan:
    return check_plan(state, state.inventory().plan, pa.schema([]))


def test_an_intact_output_has_no_problem(intact, verify):
    result = verify(intact)
    assert (result.problems, result.incomplete) == ([], set())
    pairs = CHUNKS * CHUNK_ROWS
    assert (result.pairs, result.encoded, result.rejects) == (pairs, pairs - 1, {"image.truncated": 1})


@pytest.mark.parametrize(("column", "nesting"), [("key", ""), ("precision", "struct"), ("caption", "list")])
def test_pickled_values_are_damage_and_are_not_read(output, verify, tmp_path, column, nesting):
    path = data_file(output, 2)
    path.write_bytes(with_pickled(path.read_bytes(), column, tmp_path / "canary", nesting))
    result = verify(output)
    assert {problem.file for problem in result.problems} == {str(path)}
    assert not (tmp_path / "canary").exists()


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
    assert (result.problems, result.incomplete) == ([], {"000000-00002"})


def test_a_chunk_planned_for_refresh_is_incomplete(output, verify):
    """A run died after it had planned a refresh: the file is of the revision before."""
    plan_a_refresh(output)
    result = verify(output)
    assert (result.problems, result.incomplete) == ([], {"000000-00002"})
    assert result.pairs == CHUNKS * CHUNK_ROWS


def test_a_row_that_a_refresh_keeps_must_exist(output, verify):
    """The next run copies it from the old file."""
    plan_a_refresh(output)
    drop_a_row(output)
    (problem,) = verify(output).problems
    assert problem.check == "keys"
    assert "neither rows nor rejects, the first 000/000008" in problem.sentence


def test_without_any_file_the_plan_is_incomplete(output, verify):
    for path in [*(output / "_plan").iterdir(), *(output / "_receipts").iterdir(), *output.rglob("*.parquet")]:
        path.unlink(missing_ok=True)
    (output / "_index.json").unlink()
    (problem,) = verify(output).problems
    assert (problem.check, "run the same encode command" in problem.sentence) == ("plan", True)


def test_repeated_keys_in_the_plan_are_a_problem(output, verify):
    repeat_a_key_in_the_plan(output)
    (problem,) = verify(output).problems
    assert (problem.check, problem.sentence) == ("plan", "has 1 repeated keys, the first 000/000004")


def test_keys_that_repeat_in_several_units_are_counted(monkeypatch):
    """Also where the hashes of different keys agree."""
    monkeypatch.setattr(plan_check, "hash_keys", lambda keys: np.full(len(keys), 7, np.uint64))
    units = [["a", "b"], ["c"], ["b", "d", "d"], ["a", "e"]]
    counter = KeyCounter(lambda unit: pa.chunked_array([units[unit]]))
    for number, keys in enumerate(units):
        counter.add(number, pa.chunked_array([keys]))
    assert (counter.count, counter.repeated, counter.first_repeated) == (8, 3, "d")


def test_a_marker_that_the_store_refuses_ends_the_command(tmp_path):
    (tmp_path / "_plan" / "0a1b2c3d-000000.0.json").mkdir(parents=True)
    state = OutputState(str(tmp_path), "0a1b2c3d", "")
    with pytest.raises(JobFailed, match="cannot be read"):
        check_output(state, Inventory(plan={"_plan/0a1b2c3d-000000.0.json": 5}), PLAIN, lambda _: [])


def test_an_output_without_a_report_of_its_plan_is_not_finished(output, verify):
    """A run was killed after it had encoded all that was planned so far."""
    change_report(output, pairs=9, encoded=8)
    for _ in range(2):
        result = verify(output)
        assert (result.problems, result.incomplete) == ([], set())
        with pytest.raises(IncompleteOutput, match="no run has finished since the plan last changed; run the same"):
            result.check_complete()
        (output / "_report.json").unlink(missing_ok=True)


class TestReportOfALimitedRun:
    """``encoded``, ``rejected`` and ``pairs_left`` add up to ``pairs``."""

    def test_it_is_accepted_before_and_after_the_rest_is_encoded(self, output, verify):
        change_report(output, limit=9, encoded=8, pairs_left=3)
        assert verify(output).problems == []
        lost_chunk(output, chunk=3)
        next((output / "_receipts").iterdir()).unlink()
        result = verify(output)
        assert (result.problems, result.incomplete) == ([], {"000000-00003"})

    def test_counts_that_do_not_add_up_are_a_problem(self, output, verify):
        change_report(output, limit=9, encoded=8, pairs_left=4)
        (problem,) = verify(output).problems
        assert (problem.check, problem.sentence) == ("report", "has pairs 12, not 13")


class TestRepair:
    """A repair removes what is wrong, unless the cause is probably not in the files."""

    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    def test_a_repaired_output_has_only_unknown_files(self, output, verify, damage):
        damage(output)
        files = len(list(output.glob("*.parquet")))
        repaired, after = verify(output, repair=True), verify(output)
        left = {unknown_file: ["unknown"], settings_of_another_job: ["settings"]}.get(damage, [])
        assert [problem.check for problem in after.problems] == left
        assert [problem.check for problem in repaired.remaining] == left
        assert after.incomplete == repaired.incomplete == repaired.damaged & after.chunks.keys()
        assert repaired.incomplete <= {"000000-00002", "000000-00003"}
        gone = len(repaired.damaged) - (damage is lost_chunk) + (damage is file_of_an_overwritten_job)
        assert len(list(output.glob("*.parquet"))) == files - gone

    def test_an_intact_output_stays_as_it_is(self, output, verify):
        before = {path: path.read_bytes() for path in output.rglob("*.*")}
        verify(output, repair=True).check_complete()
        assert {path: path.read_bytes() for path in output.rglob("*.*")} == before

    def test_a_repeated_key_stays_and_a_damaged_file_is_removed(self, output, verify):
        repeat_a_key_in_the_plan(output)
        drop_a_row(output)
        result = verify(output, repair=True)
        assert {problem.check for problem in result.remaining} == {"plan"}
        assert sorted(path.name[-13:-8] for path in output.glob("*.parquet")) == ["00000", "00001", "00003"]

    def test_nothing_is_removed_if_every_file_is_wrong(self, output, verify):
        """The cause is this version of inpaint-encode, and encoding may have taken weeks."""
        for chunk in range(CHUNKS):
            in_row("samples", with_first(float("nan")), chunk=chunk)(output)
        result = verify(output, repair=True)
        assert {problem.check for problem in result.remaining} == {"samples"}
        assert len(list(output.glob("*.parquet"))) == CHUNKS
        assert "this version of inpaint-encode" in result.repairs[-1]
        with pytest.raises(IncompleteOutput, match="4 problems; --repair cannot remove the problems that are left"):
            result.check_complete()

    @pytest.mark.parametrize(("name", "value"), [("grow_mask_by", 9), ("resize", 16), ("samples_dtype", "float16")])
    @pytest.mark.parametrize("chunks", [1, CHUNKS])
    def test_nothing_is_removed_if_job_json_has_other_settings(self, output, verify, chunks, name, value):
        job = json.loads((output / "_job.json").read_text())
        job["rows"][name] = value
        (output / "_job.json").write_text(json.dumps(job))
        for chunk in range(chunks, CHUNKS):
            data_file(output, chunk).unlink()
        next((output / "_receipts").iterdir()).unlink()
        result = verify(output, repair=True)
        assert {problem.check for problem in result.remaining} == {"settings"}
        assert len(list(output.glob("*.parquet"))) == chunks

    def test_a_dry_run_lists_what_the_repair_does(self, output, verify):
        truncate(output)
        wrong_receipts(output)
        unreadable = output / "_receipts" / f"{json.loads((output / '_job.json').read_text())['job']}-x.parquet"
        unreadable.write_bytes(b"PAR1")
        before = {path: path.read_bytes() for path in output.rglob("*.*")}
        listed = verify(output, repair=True, dry_run=True)
        assert {path: path.read_bytes() for path in output.rglob("*.*")} == before
        with pytest.raises(IncompleteOutput, match="5 problems; run verify with --repair"):
            listed.check_complete()
        done = verify(output, repair=True)
        assert listed.repairs == done.repairs
        removed = {line.split()[1].rstrip(":") for line in done.repairs if re.match(r"remove \S+: ", line)}
        assert removed == {str(path.relative_to(output)) for path in before if not path.exists()}
        assert {name[-13:] for name in removed} == {
            "00002.parquet",
            "_report.json",
            "_index.json",
            unreadable.name[-13:],
        }

    @pytest.mark.parametrize("different", [1, 2])
    def test_nothing_is_removed_if_every_row_encodes_differently(self, output, verify, different):
        """The cause is this machine or another version of a decoder; one different row of two is damage."""
        truncate(output, chunk=1)
        result = verify(output)
        problems = [
            Problem("reencode", str(data_file(output, chunk)), "differs", chunk_name(0, chunk)) for chunk in (2, 3)
        ]
        result.reencoded = ReencodeResult(rows=2, problems=problems[:different])
        result.problems += problems
        with acquire_lease(f"{output}/_lease.json", print) as lease:
            state = OutputState(str(output), job_of(output), lease.token)
            Repair(result, checked_plan(state), state, state.inventory()).run()
        numbers = [1] if different == 2 else [1, 2, 3]
        assert result.incomplete == {chunk_name(0, number) for number in numbers}
        assert {problem.check for problem in result.remaining} == ({"reencode"} if different == 2 else set())

    def test_a_repair_stops_when_another_run_takes_the_lease(self, output, verify):
        truncate(output)
        result = verify(output)
        state = OutputState(str(output), job_of(output), "another run's token")
        repair = Repair(result, checked_plan(state), state, state.inventory())
        with (
            acquire_lease(f"{output}/_lease.json", print),
            pytest.raises(JobFailed, match="another run has taken over this output"),
        ):
            repair.run()
        assert data_file(output, 2).exists()


def test_a_damaged_index_is_removed(output, verify):
    (path,) = output.glob("_index/*-files-*.parquet")
    path.write_bytes(path.read_bytes()[:-9])
    (problem,) = verify(output, repair=True).problems
    assert (problem.check, problem.file) == ("index", str(path))
    assert not path.exists()
    assert not (output / "_index.json").exists()
    assert verify(output).problems == []


def test_the_note_of_the_index_is_removed_with_a_data_file(output, verify):
    path = sorted(output.glob("*.parquet"))[1]
    path.write_bytes(b"PAR1")
    verify(output, repair=True)
    assert not path.exists()
    assert not (output / "_index.json").exists()
    assert len(open_latents(str(output))) == (CHUNKS - 1) * CHUNK_ROWS - 1


class TestRepairDeletesNoGoodData:
    """Edited notes and renamed files: what can be read and made again by nothing else stays."""

    def edit_job(self, output, **changes):
        path = output / "_job.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    @pytest.fixture
    def before(self, output) -> dict:
        return {path: path.read_bytes() for path in output.glob("*.parquet")}

    def check_kept(self, output, verify, before):
        listed = verify(output, repair=True, dry_run=True).repairs
        assert {path: path.read_bytes() for path in output.glob("*.parquet")} == before
        repaired = verify(output, repair=True)
        assert repaired.repairs == listed
        assert {path: path.read_bytes() for path in output.glob("*.parquet")} == before
        with pytest.raises(IncompleteOutput):
            repaired.check_complete()
        return repaired

    @pytest.mark.parametrize("copied", [False, True])
    def test_the_name_of_the_job_was_edited(self, output, verify, before, copied):
        """Without data of its own, the present job may not have overwritten the other."""
        job = job_of(output)
        self.edit_job(output, job="deadbeef", replaces=[job])
        if copied:
            marker = output / "_plan" / f"{job}-000000.0.json"
            marker.with_name(f"deadbeef{marker.name[8:]}").write_bytes(marker.read_bytes())
        repaired = self.check_kept(output, verify, before)
        assert "keep the files of other jobs" in " ".join(repaired.repairs)
        assert "orphan" in {one.check for one in repaired.remaining}

    def test_a_file_of_a_lost_unit_was_renamed(self, output, verify, before):
        """Its rows are of a chunk that is not planned and has no other file."""
        for path in [*(output / "_plan").iterdir(), *(output / "_receipts").iterdir()]:
            path.unlink()
        last = data_file(output, 3)
        before[last.rename(last.with_name(last.name.replace("-00003", "-00099")))] = before.pop(last)
        repaired = self.check_kept(output, verify, before)
        assert any(re.fullmatch(r"keep \S+-00099.parquet: .* move it away yourself", line) for line in repaired.repairs)

    @pytest.mark.parametrize("rows", [1, 3])
    def test_rows_that_are_encoded_with_edited_settings_prove_nothing(self, output, verify, before, rows):
        job = json.loads((output / "_job.json").read_text())
        self.edit_job(output, rows=job["rows"] | {"grow_mask_by": 9})
        result = verify(output)
        names = [chunk_name(0, chunk) for chunk in range(1, 1 + rows)]
        problems = [Problem("reencode", str(data_file(output, 1)), "differs", name) for name in names]
        result.reencoded = ReencodeResult(rows=4, problems=problems)
        result.problems += problems
        with acquire_lease(f"{output}/_lease.json", print) as lease:
            state = OutputState(str(output), job_of(output), lease.token)
            Repair(result, checked_plan(state), state, state.inventory()).run()
        assert {path: path.read_bytes() for path in output.glob("*.parquet")} == before
        assert {one.check for one in result.remaining} == {"settings", "reencode"}

    @pytest.mark.parametrize("name", ["files", "keys"])
    def test_the_note_of_the_index_names_a_file_elsewhere(self, output, verify, tmp_path, name):
        victim = tmp_path / "victim" / "thesis-00000.parquet"
        victim.parent.mkdir()
        victim.write_bytes(b"years of work")
        note = output / "_index.json"
        there = "../victim/thesis-00000.parquet" if name == "files" else "../victim/thesis"
        note.write_text(json.dumps({**json.loads(note.read_text()), name: there, "key_bits": 0}))
        repaired = verify(output, repair=True)
        assert victim.exists()
        assert not note.exists()
        assert repaired.remaining == []

    def test_temporary_files_of_others_stay(self, output, verify):
        others = [output / "_tmp-mine", output / "another" / f"_tmp-{'1' * 32}"]
        for path in others:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x")
        assert verify(output, repair=True).problems == []
        assert all(path.exists() for path in others)

    def test_every_removal_has_a_reason(self, output, verify):
        truncate(output)
        file_of_an_overwritten_job(output)
        temporary_file(output)
        lines = [line for line in verify(output, repair=True, dry_run=True).repairs if line.startswith("remove ")]
        assert len(lines) >= 5
        assert [line for line in lines if not re.fullmatch(r"remove (\S+: .+|receipts from .+)", line)] == []
