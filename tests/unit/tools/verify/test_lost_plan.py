"""Files of the plan are lost or cut: `encode` refuses, `verify` names them, and after a repair `encode` ends exact."""

import json
import re
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from inpaint_encode.errors import IncompleteOutput, JobFailed
from inpaint_encode.output import plan, planner, rebuild
from inpaint_encode.output.notes import CHUNK_KEY, metadata_of_job
from inpaint_encode.output.plan_log import MARKER
from inpaint_encode.output.state import OutputState
from inpaint_encode.sources import pairs
from inpaint_encode.tools.verify.chunk_checks import check_chunk
from inpaint_encode.tools.verify.output_checks import check_output
from tests.listed import ListedOutput

NUMBERED, REJECTED, REVISED = 6, ["000/000010", "000/000019/1"], 17


def line(number, mask=None, caption=None):
    mask = number if mask is None else mask
    return {"image": f"000/{number:06}.png", "mask": f"m/{mask}.png", "caption": caption or f"picture {number}"}


LINES = [line(number) for number in range(24)]
LINES[NUMBERED + 1] = line(NUMBERED, mask=99)
LINES[9] = LINES[2]
LINES[13] = line(12, caption="another caption")
LINES[20] = line(19, mask=99)
SINGLE = [number for number in range(24) if number not in (NUMBERED + 1, 9, 13, 20)]
KEYS = [f"000/{number:06}" for number in SINGLE] + [f"000/{NUMBERED:06}/1", "000/000019/1"]
"""The keys of all pairs but one: line 13 has a key of its own, since its key is line 12's."""


@pytest.fixture
def listed(tmp_path, make_job, monkeypatch) -> ListedOutput:
    """A list whose plan has three units, each of three chunks in two parts."""
    for module in (planner, pairs):
        monkeypatch.setattr(module, "BATCH_PAIRS", 8)
    monkeypatch.setattr(plan, "CHUNKS_PER_PART", 2)
    listed = ListedOutput(tmp_path, make_job, rejected=REJECTED)
    listed.write_list(LINES)
    return listed


@pytest.fixture
def whole(listed) -> ListedOutput:
    """All pairs are encoded, and one of unit 2 again, after its caption had changed."""
    listed.encode()
    changed = [*LINES]
    changed[REVISED] = line(REVISED, caption="it has changed")
    listed.write_list(changed)
    listed.encode(refresh=True)
    assert listed.encoded == ["000002-00000"]
    return listed


def one_file(listed, pattern):
    """Return the first file of the output whose path matches."""
    paths = sorted(str(path.relative_to(listed.output)) for path in listed.output.rglob("*.*"))
    return listed.output / next(path for path in paths if re.search(pattern, path))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def check_exact(listed, verify, lines=24, keys=KEYS):
    """Encode, and check that every pair is a row or a reject once; return the report."""
    report = listed.encode()
    found = listed.keys()
    (duplicate,) = (key for key in found if "#" in key)
    assert re.fullmatch("000/000012#[0-9a-f]{16}", duplicate)
    assert found == sorted([*keys, duplicate])
    result = verify(listed.output)
    result.check_complete()
    assert (result.problems, report["pairs"]) == ([], lines - 1)
    listed.encode()
    assert listed.encoded == []
    return report


MARKERS = {
    "first marker": r"_plan/.*-000000\.0\.json",
    "middle marker": r"_plan/.*-000001\.0\.json",
    "last marker": r"_plan/.*-000005\.0\.json",
    "marker of a refresh": r"_plan/.*-000004\.0\.json",
    "marker with chunks before the last": r"_plan/.*-000002\.0\.json",
    "marker of a revision": r"_plan/.*-000002\.1\.json",
}
OTHERS = {
    "part": r"_plan/.*-000000\.0-.*-00001\.parquet",
    "part of a revision": r"_plan/.*-000002\.1-.*-00000\.parquet",
    "receipts": r"_receipts/",
    "rejects": r"_rejected/",
}


@pytest.mark.parametrize("damage", [remove, cut])
@pytest.mark.parametrize("name", [*MARKERS, *OTHERS])
def test_one_file_is_damaged(whole, verify, name, damage):
    whole.write_list([*json_lines(whole), line(24)])
    whole.encode()
    before = whole.data_files()
    path = one_file(whole, {**MARKERS, **OTHERS}[name])
    damage(path)
    refused = name not in ("receipts", "rejects")  # the index has what receipts have
    is_last = name in ("last marker", "marker of a revision") and damage is remove
    if refused:
        with pytest.raises(JobFailed, match="-00000[25]-00000.parquet" if is_last else path.name):
            whole.encode()
        assert whole.data_files() == before
    if (name, damage) != ("receipts", remove):
        files = [problem.file for problem in verify(whole.output).problems]
        assert any(
            ("-000005-" if name == "last marker" else "-000002-") in file if is_last else file == str(path)
            for file in files
        ), files
    listed_repairs = verify(whole.output, repair=True, dry_run=True).repairs
    repaired = verify(whole.output, repair=True)
    assert (repaired.repairs, repaired.remaining) == (listed_repairs, [])
    report = check_exact(whole, verify, 25, [*KEYS, "000/000024"])
    assert report["changed_pairs"] == 0
    assert whole.data_files() == before


def json_lines(listed):
    return [json.loads(text) for text in listed.list.read_text().splitlines()]


@pytest.mark.parametrize("name", MARKERS)
def test_a_marker_and_its_parts_are_lost(whole, verify, name):
    """The pairs are rebuilt from the data files and their footers."""
    whole.write_list([*json_lines(whole), line(24)])
    whole.encode()
    before = whole.data_files()
    marker = one_file(whole, MARKERS[name])
    for path in marker.parent.glob(f"{marker.stem}*"):
        path.unlink()
    assert verify(whole.output, repair=True).remaining == []
    check_exact(whole, verify, 25, [*KEYS, "000/000024"])
    assert whole.data_files() == before


def test_the_whole_plan_is_lost(whole, verify):
    before = whole.data_files()
    for path in (whole.output / "_plan").iterdir():
        path.unlink()
    assert verify(whole.output, repair=True).remaining == []
    check_exact(whole, verify)
    assert whole.data_files() == before


@pytest.mark.parametrize("options", [{"refresh": True}, {"retry_rejected": True}])
@pytest.mark.parametrize("lost", ["*", "*.parquet", "*-000001.*"])
def test_a_rebuilt_plan_is_refreshed_and_retried(whole, verify, lost, options):
    for path in (whole.output / "_plan").glob(lost):
        path.unlink()
    verify(whole.output, repair=True)
    check_exact(whole, verify)
    whole.encode(**options)
    check_exact(whole, verify)


def test_a_refresh_whose_chunk_is_not_encoded_is_lost(listed, verify):
    """The row of the old caption is kept, and the next refresh encodes it again."""
    listed.encode()
    lines = [*LINES]
    lines[REVISED] = line(REVISED, caption="it has changed")
    listed.write_list(lines)
    listed.encode(refresh=True, commits=0)
    before = listed.data_files()
    for path in (listed.output / "_plan").glob("*-000002.1-*"):
        path.unlink()
    with pytest.raises(JobFailed, match="the plan of this output is damaged"):
        listed.encode()
    verify(listed.output, repair=True)
    assert check_exact(listed, verify)["changed_pairs"] == 1
    assert listed.data_files() == before
    listed.encode(refresh=True)
    assert listed.encoded == ["000002-00000"]
    check_exact(listed, verify)


@pytest.mark.parametrize("commits", [3, 5, 1_000])
def test_the_plan_of_two_prefixes_is_lost(listed, tmp_path, verify, commits):
    """Rows have the versions that were listed, so no pair counts as changed but the rejected ones."""
    for number in range(24):
        for folder in ("images", "masks"):
            (tmp_path / folder / "000").mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "000" / f"{number:06}.png").write_bytes(b"x" * (number + 1))
    listed.source = {"images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}
    listed.encode(commits=commits)
    before = listed.data_files()
    for path in (listed.output / "_plan").iterdir():
        path.unlink()
    assert verify(listed.output, repair=True).remaining == []
    report = listed.encode()
    assert listed.keys() == [f"000/{number:06}" for number in range(24)]
    assert (report["pairs"], report["rejected"]) == (24, 1)
    assert report["changed_pairs"] == sum(b"000/000010" in data for _, data in before.values())
    assert before.items() <= listed.data_files().items()
    verify(listed.output).check_complete()


@pytest.mark.parametrize("lost", [r"\.0\.json", r"\.0-.*\.parquet", r"\.(json|parquet)"])
@pytest.mark.parametrize("commits", [1, 4, 5, 8])
def test_a_killed_run_s_plan_is_lost(listed, verify, lost, commits):
    """Chunks without a data file are planned as new."""
    listed.encode(commits=commits)
    before = listed.data_files()
    assert len(before) == commits
    for path in (listed.output / "_plan").iterdir():
        if re.search(lost, path.name):
            path.unlink()
    with pytest.raises(JobFailed, match=r"a part of the plan was lost|the plan of this output is damaged"):
        listed.encode()
    repaired = verify(listed.output, repair=True)
    assert repaired.remaining == []
    with pytest.raises(IncompleteOutput, match=r"run the same encode command again$"):
        repaired.check_complete()
    check_exact(listed, verify)
    assert before.items() <= listed.data_files().items()


def test_the_last_marker_is_lost_and_then_the_source_grows(listed, verify):
    listed.encode()
    before = listed.data_files()
    for path in (listed.output / "_plan").glob("*-000002.*"):
        path.unlink()
    listed.write_list([*LINES, *(line(number) for number in range(24, 32))])
    with pytest.raises(JobFailed, match=r"-000002-0000\d\.parquet belongs to a chunk that is not in the plan"):
        listed.encode()
    assert listed.data_files() == before
    verify(listed.output, repair=True)
    check_exact(listed, verify, 32, [*KEYS, *(f"000/{number:06}" for number in range(24, 32))])
    assert before.items() <= listed.data_files().items()


def test_two_runs_wrote_parts_and_the_marker_is_lost(listed, verify):
    """The parts that agree with the data files are used."""
    listed.encode()
    marker = one_file(listed, MARKERS["middle marker"])
    for path in list(marker.parent.glob("*-000001.0-*.parquet")):
        name = re.sub(r"-[0-9a-f]{8}-(\d{5}\.parquet)$", r"-00000000-\1", path.name)
        other = one_file(listed, r"-000000\.0-.*-" + path.name[-13:])
        path.with_name(name).write_bytes(other.read_bytes())
    marker.unlink()
    before = listed.data_files()
    result = verify(listed.output, repair=True)
    assert any("from its 2 parts" in sentence for sentence in result.repairs)
    check_exact(listed, verify)
    assert listed.data_files() == before


def test_an_edited_marker_is_rebuilt(listed, verify):
    listed.encode()
    path = one_file(listed, MARKERS["middle marker"])
    marker = json.loads(path.read_text())
    path.write_text(json.dumps({**marker, "chunks": marker["chunks"][1:]}))
    with pytest.raises(JobFailed, match="is cut, or was changed after it was written"):
        listed.encode()
    problems = verify(listed.output).problems
    assert any(one.file == str(path) and "cannot be read" in one.sentence for one in problems)
    before = listed.data_files()
    verify(listed.output, repair=True)
    check_exact(listed, verify)
    assert listed.data_files() == before


def test_a_chunk_that_was_rebuilt_is_encoded_again(listed, verify):
    """Its planned rows have another hash than its data file had."""
    listed.encode()
    for path in (listed.output / "_plan").iterdir():
        path.unlink()
    verify(listed.output, repair=True)
    check_exact(listed, verify)
    (damaged,) = listed.output.glob("*-000001-00000.parquet")
    cut(damaged)
    repaired = verify(listed.output, repair=True)
    assert (repaired.remaining, repaired.incomplete) == ([], {"000001-00000"})
    listed.encode()
    assert listed.encoded == ["000001-00000"]
    check_exact(listed, verify)


def test_a_second_repair_finishes_an_interrupted_one(whole, verify, monkeypatch):
    before = whole.data_files()
    for name in ("first marker", "marker with chunks before the last"):
        one_file(whole, MARKERS[name]).unlink()
    monkeypatch.setattr(rebuild.storage, "write", fail_at(rebuild.storage.write, r"-000002\.0\.json"))
    with pytest.raises(OSError, match="the disk is full"):
        verify(whole.output, repair=True)
    monkeypatch.undo()
    with pytest.raises(JobFailed, match=r"-000002\.0\.json"):
        whole.encode()
    assert verify(whole.output, repair=True).remaining == []
    check_exact(whole, verify)
    assert whole.data_files() == before


def fail_at(write, pattern):
    def run(uri, data, *, expect=None):
        if re.search(pattern, uri):
            raise OSError(28, "the disk is full")
        return write(uri, data, expect=expect)

    return run


def test_a_marker_that_another_run_has_written_since_is_not_replaced(listed, verify, monkeypatch):
    listed.encode()
    path = one_file(listed, MARKERS["middle marker"])
    data = path.read_bytes()
    cut(path)

    def restore(uri, contents, *, expect=None):
        if uri == str(path):
            path.write_bytes(data)
        return write(uri, contents, expect=expect)

    write = rebuild.storage.write
    monkeypatch.setattr(rebuild.storage, "write", restore)
    with pytest.raises(JobFailed, match=f"another run has written {path}"):
        verify(listed.output, repair=True)
    assert path.read_bytes() == data


def test_files_that_have_the_key_of_another_unit_are_kept_and_not_planned(listed, verify):
    """The file of a lost unit was copied from another output: its keys are planned elsewhere."""
    listed.encode()
    (source,) = listed.output.glob("*-000001-00000.parquet")
    copied = source.with_name(source.name.replace("-000001-", "-000003-"))
    table = pq.read_table(source)
    footer = {**json.loads(table.schema.metadata[CHUNK_KEY]), "chunk": "000003-00000"}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, CHUNK_KEY: json.dumps(footer)}), copied)
    result = verify(listed.output, repair=True)
    assert copied.exists()
    assert {problem.check for problem in result.remaining} == {"plan"}
    assert any("unit 1 of the plan has its key" in problem.sentence for problem in result.remaining)
    assert not list((listed.output / "_plan").glob("*-000003.*.json"))


def test_units_that_a_job_plans_while_the_output_is_listed_are_not_lost(listed):
    listed.encode(commits=1)
    job = json.loads((listed.output / "_job.json").read_text())
    state, metadata = OutputState(str(listed.output), job["job"], ""), metadata_of_job(job)
    plan_before = state.inventory().plan
    listed.encode()
    (listed.output / "_report.json").unlink()
    inventory = replace(state.inventory(), plan=plan_before)
    result, _ = check_output(
        state, inventory, metadata, lambda chunks: (check_chunk(one, state, metadata) for one in chunks)
    )
    assert (result.problems, len(result.unplanned)) == ([], 6)


def test_markers_of_every_unit_are_read(listed):
    listed.encode()
    names = sorted(MARKER.fullmatch(f"_plan/{path.name}")["unit"] for path in (listed.output / "_plan").glob("*.json"))
    assert names == ["000000", "000001", "000002"]


@pytest.mark.parametrize("name", ["999999.0", "000001.99999"])
def test_a_marker_far_after_all_others_is_named_and_not_followed(listed, verify, name):
    """Else one empty file would make a million markers."""
    listed.encode()
    job = json.loads((listed.output / "_job.json").read_text())["job"]
    far = listed.output / "_plan" / f"{job}-{name}.json"
    far.write_bytes(b"")
    with pytest.raises(JobFailed, match="the plan of this output is damaged"):
        listed.encode()
    before = sorted((listed.output / "_plan").iterdir())
    repaired = verify(listed.output, repair=True)
    assert [(one.file, one.sentence) for one in repaired.remaining] == [
        (str(far), "has a number far after all others; move it away yourself")
    ]
    assert sorted((listed.output / "_plan").iterdir()) == before
    far.unlink()
    check_exact(listed, verify)


def test_a_huge_marker_is_not_read(listed, verify):
    """A sparse file of 1 TB."""
    listed.encode()
    before = listed.data_files()
    path = one_file(listed, MARKERS["middle marker"])
    with path.open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(JobFailed, match=rf"{path.name} has more than 32,000,000 bytes"):
        listed.encode()
    assert verify(listed.output, repair=True).remaining == []
    check_exact(listed, verify)
    assert listed.data_files() == before


def test_garbage_after_the_last_marker_does_not_block_the_output(listed, verify):
    listed.encode()
    before = listed.data_files()
    job = json.loads((listed.output / "_job.json").read_text())["job"]
    (listed.output / "_plan" / f"{job}-000009.0.json").write_bytes(b"[" * 100_000)
    with pytest.raises(JobFailed, match="the plan of this output is damaged"):
        listed.encode()
    assert verify(listed.output, repair=True).remaining == []
    check_exact(listed, verify)
    assert listed.data_files() == before
