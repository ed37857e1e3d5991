"""A job resumes after every interruption and change: each pair is exactly one row or one reject with a reason."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, Self

import pyarrow as pa
import pytest
import ray.data
from PIL import Image

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.schema import REJECTS
from inpaint_encode.stores import storage
from tests.conftest import command, save_vae
from tests.outputs import data_files, files_of, rejects_of, rows_of, whole_output
from tests.proxy import FaultyProxy

ENCODED, REJECTED = 10, 2
ODD_KEY = "..hidden/%2e%2e%2fescape;rm -rf"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Folder of the pairs of all tests here: an output stores the path of its source."""
    return tmp_path_factory.mktemp("source")


@pytest.fixture(scope="module")
def job_to(source, make_job, ray_cluster):
    def make(output, **options):
        return make_job(source / "images", source / "masks", output, **{"chunk_rows": 4, **options})

    return make


@pytest.fixture(scope="module")
def finished(source, job_to, tmp_path_factory):
    """Twelve pairs on a disk, two of them broken and one with an odd name, and their output."""
    write_random_pairs(source, 11, seed=5, smallest=24, largest=64)
    for broken in sorted(path for path in (source / "images").rglob("*.*") if path.is_file())[3:10:6]:
        broken.write_bytes(broken.read_bytes()[:60])
    for side in ("images", "masks"):
        (source / side / "..hidden").mkdir()
        Image.new("RGB", (32, 32)).save(source / side / f"{ODD_KEY}.png")
    state = State.of(source, tmp_path_factory.mktemp("finished"))
    run_job(job_to(state.output), Display())
    return state


class State(NamedTuple):
    """A copy of pairs and their output."""

    source: Path
    output: Path

    @classmethod
    def of(cls, source: Path, folder: Path) -> Self:
        """Copy the pairs with the files' times, which a refresh compares; the output is written later."""
        return cls(shutil.copytree(source, folder / "in"), folder / "out")

    def restore(self, source: Path, output: Path) -> None:
        """Restore the pairs, and the output to a new folder."""
        shutil.rmtree(source)
        shutil.copytree(self.source, source)
        shutil.copytree(self.output, output)


@pytest.fixture
def pairs(source, finished, tmp_path):
    """The pairs of the finished output; the output is in ``tmp_path / "out"``."""
    finished.restore(source, tmp_path / "out")
    return source


@pytest.fixture
def output(pairs, tmp_path):
    """A copy of the finished output."""
    return str(tmp_path / "out")


@pytest.fixture
def job(job_to, tmp_path):
    return partial(job_to, tmp_path / "out")


def contents(output: str) -> dict[str, bytes]:
    """Of every data file."""
    return {path: storage.read(f"{output}/{path}").data for path in data_files(output)}


def versions(output: str) -> dict[str, str]:
    """Of every data file."""
    return {path: storage.read(f"{output}/{path}").version for path in data_files(output)}


def meanwhile(monkeypatch, happen) -> None:
    """Call ``happen`` in the next job after it has planned its work and before it encodes."""
    from inpaint_encode.job import pipeline

    build = pipeline.build_pipeline

    def build_then(*arguments):
        happen()
        return build(*arguments)

    monkeypatch.setattr(pipeline, "build_pipeline", build_then)


def test_keys_never_become_paths(finished, output):
    """Files are named by chunks."""
    assert whole_output(output)["encoded"] == ENCODED
    assert ODD_KEY in rows_of(output)
    assert {path.name for path in finished.output.parent.iterdir()} == {"in", "out"}
    assert not [path for path in files_of(output) if "escape" in path]


def test_other_settings_are_refused(job, output, display):
    before = versions(output)
    with pytest.raises(UsageError, match=r"grow_mask_by: 6 in the output, 8 now"):
        run_job(job(grow_mask_by=8), display)
    with pytest.raises(UsageError, match=r"masks: .*/masks in the output, .*/other now"):
        other = job()
        shutil.copytree(other.source.masks, other.source.masks.replace("/masks", "/other"))
        source = other.source.model_copy(update={"masks": other.source.masks.replace("/masks", "/other")})
        run_job(other.model_copy(update={"source": source}), display)
    assert before == versions(output)
    assert "_lease.json" not in files_of(output)


def test_another_vae_is_refused(job, output, display, tmp_path):
    with pytest.raises(UsageError, match="hash of the VAE's weights"):
        run_job(job(vae=save_vae(tmp_path / "vae2", levels=4, seed=1)), display)


def test_overwrite_removes_every_old_file(job, output, display, monkeypatch):
    """Old files go before anything is encoded; files that a late worker of the old job writes go at the end."""
    old, data = set(files_of(output)) - {"_job.json", "_report.json", "_index.json"}, contents(output)

    def late():
        assert not old & set(files_of(output))
        for path, written in data.items():
            storage.write(f"{output}/{path}", written)

    meanwhile(monkeypatch, late)
    run_job(job(grow_mask_by=0, overwrite=True), display)
    assert whole_output(output)["encoded"] == ENCODED
    assert not old & set(files_of(output))


def test_an_overwrite_that_was_killed_resumes_without_old_rows(job, output, display):
    """The output has the new ``_job.json`` and old rows: the rows of the old job go before anything is encoded."""
    text = json.loads(storage.read(f"{output}/_job.json").data)
    text |= {"job": "0123abcd", "replaces": [text["job"]], "rows": {**text["rows"], "grow_mask_by": 2}}
    storage.write(f"{output}/_job.json", json.dumps(text).encode())
    run_job(job(grow_mask_by=2), display)
    assert {path.split("-")[0] for path in data_files(output)} == {"0123abcd"}
    assert whole_output(output)["encoded"] == ENCODED


def test_a_folder_with_unknown_files_is_refused(job_to, pairs, tmp_path, display):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/holiday.csv").write_bytes(b"1,2")
    with pytest.raises(UsageError, match=r"holiday\.csv"):
        run_job(job_to(tmp_path / "theirs"), display)
    assert (tmp_path / "theirs/holiday.csv").read_bytes() == b"1,2"


def test_data_files_of_unknown_origin_are_refused_and_kept(job_to, pairs, tmp_path, display):
    """Only files of jobs that ``_job.json`` lists as replaced are removed."""
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/20240115-00000001.parquet").write_bytes(b"somebody's")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="20240115-00000001"):
            run_job(job_to(tmp_path / "theirs", overwrite=overwrite), display)
    assert (tmp_path / "theirs/20240115-00000001.parquet").read_bytes() == b"somebody's"


def test_a_rejects_file_that_contradicts_its_data_file_is_repaired(job, output, display):
    """A late worker wrote its rejects and died before it saw that the chunk was committed."""
    before = rejects_of(output)
    path = next(path for path in files_of(output) if path.startswith("_rejected/"))
    both = pa.Table.from_pylist([before[0], {**before[0], "key": next(iter(rows_of(output)))}], REJECTS)
    storage.write(f"{output}/{path}", parquet_bytes(both))
    run_job(job(), display)
    whole_output(output)
    assert [one["key"] for one in rejects_of(output)] == [one["key"] for one in before]


def test_only_a_lost_chunk_and_new_pairs_are_encoded(job, pairs, output, display):
    """The lost chunk comes out bit for bit. The new pairs become a new chunk."""
    before, old = rows_of(output), versions(output)
    lost = sorted(old)[1]
    storage.delete(f"{output}/{lost}")
    missing = len(before) - len(rows_of(output))
    for number in range(3):
        Image.new("RGB", (40, 40), (number, 2, 3)).save(pairs / f"images/0-new{number}.png")
        Image.new("L", (40, 40)).save(pairs / f"masks/0-new{number}.png")
    report = run_job(job(), display)
    assert (report["this_run"]["files"], report["this_run"]["encoded"]) == (2, missing + 3)
    assert whole_output(output)["encoded"] == ENCODED + 3
    after, new = rows_of(output), versions(output)
    assert {key: after[key] for key in before} == before
    assert {path for path in new if new[path] != old.get(path)} - {lost} == new.keys() - old.keys()


def test_receipts_are_only_a_cache(job, output, display):
    lose_receipts(output)
    report = run_job(job(), display)
    assert report["this_run"]["files"] == 0
    assert report["rejected_by_error"] == whole_output(output)["rejected_by_error"]
    assert report["rejected"] == REJECTED


def lose_receipts(output: str) -> None:
    for path in files_of(output):
        if path.startswith("_receipts/"):
            storage.delete(f"{output}/{path}")


def test_rejected_pairs_are_retried_on_request_only(job, output, display):
    """One of two rejects has been repaired. The other stays a reject, and no other row changes."""
    mended, hopeless = rejects_of(output)
    before = rows_of(output)
    Image.new("RGB", (32, 48)).save(mended["image_uri"], format="PNG")
    assert run_job(job(), display)["this_run"]["files"] == 0
    report = run_job(job(retry_rejected=True), display)
    assert (report["rejected"], report["encoded"]) == (REJECTED - 1, ENCODED + 1)
    whole_output(output)
    after = rows_of(output)
    assert {key: after[key] for key in before} == before
    assert set(after) - set(before) == {mended["key"]}
    assert [one["key"] for one in rejects_of(output)] == [hopeless["key"]]


def test_a_limited_job_stops_after_whole_chunks_and_continues_without_the_limit(job_to, pairs, tmp_path, display):
    output = str(tmp_path / "limited")
    limited = run_job(job_to(output, limit=5), display)
    counts = {name: limited[name] for name in ("pairs", "limit", "pairs_left")}
    assert counts == {"pairs": ENCODED + REJECTED, "limit": 5, "pairs_left": 4}
    assert limited["encoded"] + limited["rejected"] == 8
    assert len(data_files(output)) == 2
    report = run_job(job_to(output), display)
    assert report["this_run"]["files"] == 1
    assert not {"limit", "pairs_left"} & report.keys()
    assert whole_output(output)["encoded"] == ENCODED


class TestRefresh:
    """Two pairs of the first chunk change one after the other, and one pair of the last chunk is removed."""

    @pytest.fixture(scope="class")
    def begun(self, source, finished, job_to, tmp_path_factory):
        """The rows before, the report of a first refresh, and the state after it."""
        folder = tmp_path_factory.mktemp("refreshed")
        finished.restore(source, folder / "out")
        before = rows_of(str(folder / "out"))
        replace_image(source, sorted(before)[1])
        image_of(source, max(before)).unlink()
        assert run_job(job_to(folder / "out"), Display())["this_run"]["files"] == 0
        report = run_job(job_to(folder / "out", refresh=True), Display())
        return before, report, State.of(source, folder)

    @pytest.fixture
    def interrupted(self, begun, finished, source, tmp_path):
        """The output of a refresh that died after it wrote its plan: none of its chunks is done."""
        before, _, refreshed = begun
        refreshed.restore(source, tmp_path / "out")
        output = str(tmp_path / "out")
        for path, data in contents(str(finished.output)).items():
            storage.write(f"{output}/{path}", data)
        lose_receipts(output)
        assert rows_of(output) == before
        return output, before

    def test_only_changed_pairs_are_encoded(self, begun):
        before, report, refreshed = begun
        assert report["this_run"]["files"] == 1
        assert changed_keys(before, str(refreshed.output)) == {sorted(before)[1]}

    def test_an_interrupted_refresh_resumes_without_the_option(self, interrupted, job, display):
        output, before = interrupted
        report = run_job(job(), display)
        assert report["this_run"]["files"] == 1
        assert changed_keys(before, output) == {sorted(before)[1]}
        whole_output(output)

    def test_a_refresh_over_an_interrupted_refresh_encodes_both_changes(self, interrupted, job, source, display):
        output, before = interrupted
        replace_image(source, sorted(before)[2])
        run_job(job(refresh=True), display)
        assert changed_keys(before, output) == set(sorted(before)[1:3])
        whole_output(output)

    def test_a_pair_that_vanished_is_dropped_on_request_and_may_return(
        self, begun, finished, job, source, tmp_path, display
    ):
        before, _, refreshed = begun
        output, last = str(tmp_path / "out"), max(before)
        refreshed.restore(source, tmp_path / "out")
        run_job(job(refresh=True, drop_vanished=True), display)
        assert set(rows_of(output)) == set(before) - {last}
        whole_output(output)
        assert run_job(job(refresh=True, drop_vanished=True), display)["this_run"]["files"] == 0
        image = image_of(finished.source, last)
        shutil.copy2(image, source / image.relative_to(finished.source))
        run_job(job(), display)
        assert rows_of(output).keys() == before.keys()
        whole_output(output)


def image_of(pairs: Path, key: str) -> Path:
    return next(path for suffix in ("png", "jpg") for path in [pairs / f"images/{key}.{suffix}"] if path.exists())


def replace_image(pairs: Path, key: str) -> None:
    path = image_of(pairs, key)
    Image.effect_noise(Image.open(path).size, 90).convert("RGB").save(path)


def changed_keys(before: dict[str, bytes], output: str) -> set[str]:
    """Keys of the rows that changed; checks that no row is lost or new."""
    after = rows_of(output)
    assert after.keys() == before.keys()
    return {key for key in before if after[key] != before[key]}


def test_a_chunk_that_another_worker_commits_meanwhile_is_accepted(job, output, display, monkeypatch):
    """The file appears after the new run has listed the finished chunks, before its own worker commits."""
    whole = contents(output)
    for path in whole:
        storage.delete(f"{output}/{path}")

    def late():
        for path, data in whole.items():
            storage.write(f"{output}/{path}", data)

    meanwhile(monkeypatch, late)
    report = run_job(job(), display)
    assert report["this_run"]["files"] == len(whole)
    assert contents(output) == whole
    whole_output(output)


def test_the_second_of_two_jobs_is_refused(job, output, display, monkeypatch):
    from inpaint_encode.output import lease

    monkeypatch.setattr(lease, "RENEW_S", 0.5)
    with (
        lease.acquire_lease(storage.join(output, "_lease.json"), display.say),
        pytest.raises(UsageError, match="is writing"),
    ):
        run_job(job(), display)


def kill_worker(name: str) -> int:
    """Kill one Ray worker process whose title says that it runs ``name``, as soon as there is one; return its id."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        listing = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            if f"ray::{name}" in line and "ps -eo" not in line:
                pid = int(line.split()[0])
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return pid
        time.sleep(0.02)
    raise TimeoutError(f"no worker runs {name}")


def test_killed_workers_lose_no_row(tmp_path, make_job, ray_cluster, display):
    """A fetching worker and the encoding worker are killed."""
    write_random_pairs(tmp_path / "in", 120, seed=2, smallest=100, largest=220)
    job = make_job(tmp_path / "in/images", tmp_path / "in/masks", tmp_path / "out", chunk_rows=6, batch_size=1)
    with ThreadPoolExecutor() as killers:
        victims = "MapBatches(fetch_stage", "MapWorker(MapBatches(EncodeStage"
        killed = [killers.submit(kill_worker, victim) for victim in victims]
        report = run_job(job, display)
        assert len({one.result() for one in killed}) == 2
    assert (report["encoded"], report["rejected"]) == (120, 0)
    assert whole_output(str(tmp_path / "out"))["encoded"] == 120


def test_a_row_has_the_version_of_a_source_that_changes_meanwhile(job_to, pairs, tmp_path, display, monkeypatch):
    """A refresh finds that the plan has the old version, and encodes nothing again."""
    replaced = next(path for path in sorted((pairs / "images").rglob("*.png")) if path.stat().st_size > 60)
    deleted = max((pairs / "masks").rglob("*.png"))
    output = str(tmp_path / "another")

    def change():
        Image.effect_noise(Image.open(replaced).size, 90).convert("RGB").save(replaced)
        deleted.unlink()

    with monkeypatch.context() as patch:
        meanwhile(patch, change)
        report = run_job(job_to(output), display)
    assert report["rejected_by_error"]["fetch.not_found"] == 1
    whole_output(output)
    row = next(row for row in table_of(output) if row["image_uri"] == str(replaced))
    assert row["image_version"] == storage.read(str(replaced)).version
    before = rows_of(output)
    run_job(job_to(output, refresh=True), display)
    assert rows_of(output) == before
    assert run_job(job_to(output, refresh=True), display)["this_run"]["files"] == 0


def table_of(output: str) -> list[dict]:
    return (
        ray.data.read_parquet(output, file_extensions=["parquet"])
        .select_columns(["image_uri", "image_version"])
        .take_all()
    )


def test_a_job_is_exact_while_a_fifth_of_all_requests_fail(tmp_path, s3, driver, make_job):
    write_random_pairs(tmp_path, 24, seed=9, smallest=24, largest=64)
    prefix = s3.uri("faults")
    upload(tmp_path, prefix)
    job = make_job(f"{prefix}/images", f"{prefix}/masks", f"{prefix}/out", chunk_rows=6)
    with FaultyProxy(s3, share=0.2, seed=1, stall_s=1.0) as proxy:
        process = driver(run_job, job, Display(), **proxy.environment)
        process.join(600)
    assert process.exitcode == 0
    assert sum(proxy.counts.values()) > 100
    report = whole_output(f"{prefix}/out")
    assert (report["encoded"], report["rejected"]) == (24, 0)
    assert report["this_run"]["counters"]["retries"] > 0


class TestStoresThatFail:
    """The command starts its own Ray, whose workers use the faulty store."""

    @pytest.fixture
    def uploaded(self, tmp_path, s3, vae_folder):
        write_random_pairs(tmp_path, 24, seed=9, smallest=24, largest=64)
        prefix = s3.uri(f"faults-{time.monotonic_ns()}")
        upload(tmp_path, prefix)
        options = ["--images", f"{prefix}/images", "--masks", f"{prefix}/masks", "--vae", vae_folder]
        return prefix, [*options, "--output", f"{prefix}/out", "--samples-dtype", "float32", "--chunk-rows", "6"]

    @pytest.mark.long
    def test_a_store_that_never_answers_ends_the_job(self, uploaded, s3):
        with FaultyProxy(s3, share=1.0, seed=1, stall_s=1.0) as proxy:
            start = time.monotonic()
            done = command("encode", *uploaded[1], **proxy.environment)
        assert time.monotonic() - start < 60
        assert done.returncode == 2
        assert "cannot be listed" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.long
    def test_a_job_resumes_after_its_output_was_read_only(self, uploaded, s3):
        prefix, options = uploaded
        only = lambda method, path: method == "PUT" and path.endswith("-00002.parquet")  # noqa: E731
        with FaultyProxy(s3, share=1.0, seed=1, kinds=("denied",), only=only) as proxy:
            done = command("encode", *options, **proxy.environment)
        assert done.returncode == 1
        assert "cannot be written" in done.stderr
        assert "run the same command again" in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        again = command("encode", *options)
        assert again.returncode == 0, again.stderr
        assert whole_output(f"{prefix}/out")["encoded"] == 24

    @pytest.mark.long
    def test_a_store_that_stops_answering_stops_the_job_without_rejects(self, uploaded, s3):
        """Listing and planning succeed; then no image can be fetched, and no pair is rejected for it."""
        prefix, options = uploaded
        only = lambda method, path: method == "GET" and "/images/" in path  # noqa: E731
        with FaultyProxy(s3, share=1.0, seed=1, stall_s=1.0, only=only) as proxy:
            done = command("encode", *options, **proxy.environment)
        assert done.returncode == 1
        assert "does not answer" in done.stderr or "could be fetched" in done.stderr
        assert "Traceback" not in done.stderr
        assert rejects_of(f"{prefix}/out") == []
        again = command("encode", *options)
        assert again.returncode == 0, again.stderr
        assert whole_output(f"{prefix}/out")["encoded"] == 24


def test_receipts_that_cannot_be_written_do_not_end_a_job(job_to, pairs, display, tmp_path):
    out = tmp_path / "blocked"
    out.mkdir()
    (out / "_receipts").write_bytes(b"a file where a folder must be")
    assert run_job(job_to(out), display)["encoded"] == ENCODED
    assert [line for line in display.lines if line.startswith("warning: receipts cannot be written (")]
    assert run_job(job_to(out), display)["this_run"]["encoded"] == 0
    (out / "_receipts").unlink()
    whole_output(str(out))


def test_a_job_resumes_after_its_disk_was_full(job_to, pairs, display, tmp_path):
    """A file system of 200 kilobytes; skipped where this process may not mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a small file system")
    try:
        filling = job_to(small / "out", chunk_rows=2)
        ballast = small / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            file.write(b"x" * 150_000)
        with pytest.raises(JobFailed, match=r"No space left on device.*run the same command again"):
            run_job(filling, display)
        ballast.unlink()
        assert run_job(filling, display)["encoded"] == ENCODED
        whole_output(str(small / "out"))
    finally:
        subprocess.run(["umount", str(small)], check=True)
