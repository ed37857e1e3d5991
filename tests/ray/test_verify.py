"""``verify`` and ``verify --repair`` on Ray: an output, a damaged one, a bucket, a sample, and the command."""

import json
import re
import shutil
from pathlib import Path

import pytest

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.errors import IncompleteOutput, JobFailed, UsageError
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.output.plan import chunk_name
from inpaint_encode.settings import ExportOptions, SourceReading, VerifyOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.export.pipeline import export_output
from inpaint_encode.tools.verify import pipeline
from inpaint_encode.tools.verify.pipeline import verify_output
from tests.damage import (
    CHUNK_ROWS,
    copy_of_a_file,
    data_file,
    drop_a_row,
    extra_rejects,
    file_of_an_overwritten_job,
    in_row,
    key_in_two_chunks,
    lost_chunk,
    other_rejects,
    temporary_file,
    truncate,
    with_first,
    wrong_receipts,
)
from tests.outputs import files_of, rejects_of, rows_of, whole_output

CHUNKS = 8


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pairs on a disk; the first image is truncated."""
    folder = tmp_path_factory.mktemp("source")
    write_random_pairs(folder, CHUNKS * CHUNK_ROWS, seed=11, largest=96)
    first = min((folder / "images").rglob("*.*"))
    first.write_bytes(first.read_bytes()[:-200])
    return folder


@pytest.fixture(scope="module")
def encode(source, ray_cluster, make_job):
    """Run the same encode command on an output."""

    def run(output: Path) -> dict:
        options = {"chunk_rows": CHUNK_ROWS, "dtype": "float32"}
        return run_job(make_job(source / "images", source / "masks", output, **options), Display())

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, encode):
    output = tmp_path_factory.mktemp("whole") / "out"
    report = encode(output)
    assert (report["files"], report["rejected_by_error"]) == (CHUNKS, {"image.truncated": 1})
    return output


@pytest.fixture
def output(whole, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def chunks(*numbers: int) -> set[str]:
    return {chunk_name(0, number) for number in numbers}


def verify(output: Path, **options):
    return verify_output(VerifyOptions(output=str(output), **options), Display().say)


@pytest.mark.parametrize("single_chunk_tasks", [CHUNKS + 1, 2], ids=["a task a chunk", "several chunks a task"])
def test_a_whole_output_has_no_problem(whole, monkeypatch, single_chunk_tasks):
    monkeypatch.setattr(pipeline, "_SINGLE_CHUNK_TASKS", single_chunk_tasks)
    result = verify(whole)
    assert result.problems == []
    assert (result.pairs, result.encoded, result.rejects) == (24, 23, {"image.truncated": 1})
    result.check_complete()


def test_after_a_repair_the_same_command_restores_the_output(output, whole, encode):
    """All damages at once, in all chunks except the last; the rows come out bit for bit."""
    key_in_two_chunks(output)
    in_row("noise_mask", with_first(2), chunk=1)(output)
    in_row("samples", with_first(float("nan")), chunk=3)(output)
    in_row("mask_coverage", lambda share: share / 2, chunk=4)(output)
    truncate(output, chunk=5)
    lost_chunk(output, chunk=6)
    for damage in (extra_rejects, other_rejects, copy_of_a_file, file_of_an_overwritten_job, temporary_file):
        damage(output)
    wrong_receipts(output)
    damaged = verify(output)
    assert damaged.incomplete == chunks(6)
    message = r"not complete: 17 problems, 1 of 8 chunks not encoded yet; run verify with --repair"
    with pytest.raises(IncompleteOutput, match=message):
        damaged.check_complete()
    repaired = verify(output, repair=True)
    assert repaired.incomplete == chunks(1, 2, 3, 4, 5, 6)
    with pytest.raises(
        IncompleteOutput, match=r"not complete: 6 of 8 chunks not encoded yet; run the same encode command"
    ):
        repaired.check_complete()
    assert encode(output)["this_run"]["files"] == 6
    verify(output).check_complete()
    whole_output(str(output))
    assert rows_of(str(output)) == rows_of(str(whole))
    assert rejects_of(str(output)) == rejects_of(str(whole))


def test_an_output_in_a_bucket_is_repaired(output, s3):
    truncate(output)
    extra_rejects(output)
    file_of_an_overwritten_job(output)
    uri = s3.uri("verify")
    upload(output, uri)
    options = VerifyOptions(output=uri, repair=True)
    assert [problem.check for problem in verify_output(options, print).problems] == ["file", "orphan"]
    after = verify_output(options, print)
    assert (after.problems, after.incomplete) == ([], chunks(2))
    (marker,) = (path for path in files_of(uri) if re.fullmatch(r"_plan/.*\.json", path))
    storage.write(f"{uri}/{marker}", storage.read(f"{uri}/{marker}").data[:-100])
    repaired = verify_output(options, print)
    assert f"{uri}/{marker}" in {problem.file for problem in repaired.problems}
    assert (repaired.remaining, repaired.incomplete) == ([], chunks(2))
    assert verify_output(options, print).problems == []


@pytest.mark.parametrize("lost", ["*.json", "*.parquet", "*"])
def test_a_lost_plan_is_rebuilt_and_nothing_is_encoded_again(output, whole, encode, lost):
    for path in (output / "_plan").glob(lost):
        path.unlink()
    with pytest.raises(JobFailed, match="verify --repair"):
        encode(output)
    with pytest.raises(IncompleteOutput, match="run verify with --repair"):
        verify(output, repair=True, dry_run=True).check_complete()
    repaired = verify(output, repair=True)
    assert repaired.remaining == []
    with pytest.raises(IncompleteOutput, match="no run has finished since the plan last changed"):
        repaired.check_complete()
    report = encode(output)
    assert (report["pairs"], report["this_run"]["files"]) == (CHUNKS * CHUNK_ROWS, 0)
    verify(output).check_complete()
    whole_output(str(output))
    assert rows_of(str(output)) == rows_of(str(whole))
    assert rejects_of(str(output)) == rejects_of(str(whole))


def test_an_output_of_version_0_1_is_verified_and_exported(tmp_path, ray_cluster):
    old = Path(__file__).parents[1] / "data" / "output_0.1"
    result = verify(old)
    assert (result.problems, result.pairs, result.encoded) == ([], 6, 5)
    options = ExportOptions(to="webdataset", output=str(tmp_path / "tars"))
    assert export_output(str(old), options, Display().say).rows_now == 5
    assert len(list((tmp_path / "tars").glob("*.tar"))) == 4


def test_only_a_repair_takes_the_lease(output):
    for repair in (False, True):
        held = []
        options = VerifyOptions(output=str(output), repair=repair)
        verify_output(options, lambda _: held.append((output / "_lease.json").exists()))  # noqa: B023 - called at once
        assert set(held) == {repair}
    assert not (output / "_lease.json").exists()


def test_a_sample_is_of_intact_chunks_and_finds_a_wrong_value(output):
    truncate(output)
    in_row("samples", lambda tensor: with_first(tensor["data"][0] + 0.01)(tensor), chunk=3)(output)
    job = json.loads((output / "_job.json").read_text())  # of a copy, whose sources must be named
    reading = SourceReading(sources=(job["source"]["images"], job["source"]["masks"]))
    result = verify(output, sample=100, repair=True, vae=job["vae_source"], reading=reading)
    assert (result.reencoded.rows, len(result.reencoded.problems)) == (20, 1)
    assert [(problem.check, problem.chunk) for problem in result.problems] == [
        ("file", chunk_name(0, 2)),
        ("reencode", chunk_name(0, 3)),
    ]
    assert result.incomplete == chunks(2, 3)


def test_output_and_exit_code_of_the_command(output, shell):
    done = shell("verify", output)
    assert done.returncode == 0, done.stderr
    assert "24 pairs planned in 8 chunks: 23 encoded, 1 rejected (1 image.truncated)" in done.stdout
    drop_a_row(output)
    done = shell("verify", output)
    assert done.returncode == 4
    assert data_file(output, 2).name in done.stdout
    assert re.search(r"1 problem; run verify with\s+--repair", done.stderr)


def test_a_dry_run_prints_what_the_repair_does(output, shell):
    truncate(output)
    before = {path: path.read_bytes() for path in output.rglob("*.*")}
    done = shell("verify", output, "--repair", "--dry-run")
    assert done.returncode == 4
    line = f"remove {data_file(output, 2).name}: cannot be read ("
    assert f"repair (not done yet): {line}" in done.stdout
    assert {path: path.read_bytes() for path in output.rglob("*.*")} == before
    done = shell("verify", output, "--repair")
    assert f"repair: {line}" in done.stderr
    assert f"repair (done): {line}" in done.stdout
    assert len(list(output.glob("*.parquet"))) == CHUNKS - 1


def test_a_folder_without_an_output_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"_job\.json does not exist"):
        verify(tmp_path, repair=True)
    assert list(tmp_path.iterdir()) == []
