"""Stop it anywhere, start it again, change what is around it: every pair is a row once, or a reject with a reason."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pytest
import ray.data
from PIL import Image

from inpaint_encode import rows, storage
from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.ledger import Ledger
from inpaint_encode.pipeline import run_job
from tests.conftest import command
from tests.outputs import PLAIN, data_files, files_of, rejects_of, rows_of, whole_output


@pytest.fixture
def pairs(tmp_path):
    """Ten pairs on a disk, one of them broken."""
    keys = sorted(write_random_pairs(tmp_path / "in", 10, seed=5, smallest=24, largest=64))
    broken = next((tmp_path / "in/images").glob(f"{keys[3]}.*"))
    broken.write_bytes(broken.read_bytes()[:60])
    return tmp_path / "in"


@pytest.fixture
def job(pairs, tmp_path, make_job, ray_cluster):
    def make(**options):
        return make_job(pairs / "images", pairs / "masks", tmp_path / "out", **{"chunk_rows": 4, **options})

    return make


@pytest.fixture
def output(tmp_path):
    return str(tmp_path / "out")


def test_other_settings_are_refused_and_named(job, output, display):
    run_job(job(), display)
    before = {path: storage.read(f"{output}/{path}").version for path in data_files(output)}
    with pytest.raises(UsageError, match=r"grow_mask_by: 6 there, 8 here"):
        run_job(job(grow_mask_by=8), display)
    with pytest.raises(UsageError, match=r"masks: .*/masks there, .*/other here"):
        other = job()
        shutil.copytree(other.source.masks, other.source.masks.replace("/masks", "/other"))
        source = other.source.model_copy(update={"masks": other.source.masks.replace("/masks", "/other")})
        run_job(other.model_copy(update={"source": source}), display)
    assert before == {path: storage.read(f"{output}/{path}").version for path in data_files(output)}
    assert "_lease.json" not in files_of(output)


def test_another_vae_is_another_setting(job, display, tmp_path):
    from tests.conftest import save_vae

    run_job(job(), display)
    with pytest.raises(UsageError, match="weights_sha256"):
        run_job(job(vae=save_vae(tmp_path / "vae2", levels=4, seed=1)), display)


def test_overwrite_leaves_nothing_of_the_old(job, output, display):
    run_job(job(), display)
    old = set(files_of(output)) - {"_job.json", "_report.json"}
    run_job(job(grow_mask_by=0, overwrite=True), display)
    assert whole_output(output)["encoded"] == 9
    assert not old & set(files_of(output))


def test_an_overwrite_that_was_killed_goes_on_without_a_mix(job, output, display):
    """The new ``_job.json`` is there, the old rows too: what is not the new job's goes before anything is encoded."""
    run_job(job(), display)
    text = json.loads(storage.read(f"{output}/_job.json").data)
    text |= {"job": "0123abcd", "replaces": [text["job"]], "rows": {**text["rows"], "grow_mask_by": 2}}
    storage.write(f"{output}/_job.json", json.dumps(text).encode())
    run_job(job(grow_mask_by=2), display)
    assert {path.split("-")[0] for path in data_files(output)} == {"0123abcd"}
    assert whole_output(output)["encoded"] == 9


def test_a_strangers_folder_is_refused(job, output, display):
    storage.write(f"{output}/holiday.csv", b"1,2")
    with pytest.raises(UsageError, match=r"holiday\.csv"):
        run_job(job(), display)
    assert storage.read(f"{output}/holiday.csv").data == b"1,2"


def test_data_of_unknown_origin_is_refused_and_kept(job, output, display):
    """A name like ours is not ours: nothing is removed but what this output's own ``_job.json`` says was replaced."""
    storage.write(f"{output}/20240115-00000001.parquet", b"somebody's")
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="20240115-00000001"):
            run_job(job(overwrite=overwrite), display)
    assert storage.read(f"{output}/20240115-00000001.parquet").data == b"somebody's"


def test_what_a_late_worker_of_an_overwritten_job_writes_goes_at_the_end(job, output, display, monkeypatch):
    from inpaint_encode import pipeline

    run_job(job(), display)
    old = {path: storage.read(f"{output}/{path}").data for path in data_files(output)}
    planned = pipeline.remaining

    def remaining_then_late(*arguments):
        left = planned(*arguments)
        for path, data in old.items():
            storage.write(f"{output}/{path}", data)
        return left

    monkeypatch.setattr(pipeline, "remaining", remaining_then_late)
    run_job(job(grow_mask_by=3, overwrite=True), display)
    assert not old.keys() & set(files_of(output))
    assert whole_output(output)["encoded"] == 9


def test_a_rejects_file_that_gainsays_the_decision_is_put_right(job, output, display):
    """A late worker wrote its rejects and died before it could find the chunk decided."""
    run_job(job(), display)
    (path,) = [path for path in files_of(output) if path.startswith("_rejected/")]
    (reject,) = rejects_of(output)
    row = next(iter(rows_of(output)))
    both = pa.Table.from_pylist([reject, {**reject, "key": row}], rows.REJECTS)
    storage.write(f"{output}/{path}", rows.parquet_bytes(both))
    run_job(job(), display)
    whole_output(output)
    assert [one["key"] for one in rejects_of(output)] == [reject["key"]]


def test_pairs_added_later_are_new_chunks(job, pairs, output, display):
    run_job(job(), display)
    old = {path: storage.read(f"{output}/{path}").version for path in data_files(output)}
    for number in range(3):
        Image.new("RGB", (40, 40), (number, 2, 3)).save(pairs / f"images/0-new{number}.png")
        Image.new("L", (40, 40)).save(pairs / f"masks/0-new{number}.png")
    report = run_job(job(), display)
    assert report["this_run"]["encoded"] == 3
    assert whole_output(output)["encoded"] == 12
    assert {path: storage.read(f"{output}/{path}").version for path in old} == old


def test_a_lost_chunk_is_done_again_and_only_that(job, output, display):
    run_job(job(), display)
    before = rows_of(output)
    storage.delete(f"{output}/{data_files(output)[1]}")
    report = run_job(job(), display)
    assert report["this_run"]["files"] == 1
    whole_output(output)
    assert rows_of(output) == before


def test_lost_receipts_are_only_a_cache(job, output, display):
    run_job(job(), display)
    for path in files_of(output):
        if path.startswith("_receipts/"):
            storage.delete(f"{output}/{path}")
    report = run_job(job(), display)
    assert report["this_run"]["files"] == 0
    assert report["rejected_by_error"] == whole_output(output)["rejected_by_error"]
    assert report["rejected"] == 1


def test_rejected_pairs_wait_for_retry_rejected(job, pairs, output, display):
    first = run_job(job(), display)
    (reject,) = rejects_of(output)
    before = rows_of(output)
    Image.new("RGB", (32, 48)).save(reject["image_uri"], format="PNG")
    assert run_job(job(), display)["this_run"]["files"] == 0
    report = run_job(job(retry_rejected=True), display)
    assert (first["rejected"], report["rejected"], report["encoded"]) == (1, 0, 10)
    whole_output(output)
    after = rows_of(output)
    assert {key: after[key] for key in before} == before
    assert set(after) - set(before) == {reject["key"]}


def test_retry_that_fails_again_stays_a_reject(job, output, display):
    run_job(job(), display)
    before = rows_of(output)
    report = run_job(job(retry_rejected=True), display)
    assert (report["encoded"], report["rejected"]) == (9, 1)
    whole_output(output)
    assert rows_of(output) == before


def test_refresh_encodes_what_changed_and_only_that(job, pairs, output, display):
    run_job(job(), display)
    before = rows_of(output)
    changed, vanished = sorted(before)[0], sorted(before)[-1]
    replace_image(pairs, changed)
    next((pairs / "images").glob(f"{vanished}.*")).unlink()
    assert run_job(job(), display)["this_run"]["files"] == 0
    report = run_job(job(refresh=True), display)
    assert report["this_run"]["files"] == 1
    after = rows_of(output)
    assert {key for key in before if after[key] != before[key]} == {changed}
    assert after[changed] != before[changed]
    run_job(job(refresh=True, drop_vanished=True), display)
    assert set(rows_of(output)) == set(before) - {vanished}
    whole_output(output)
    assert run_job(job(refresh=True, drop_vanished=True), display)["this_run"]["files"] == 0


def replace_image(pairs, key) -> None:
    path = next((pairs / "images").glob(f"{key}.*"))
    size = Image.open(path).size
    Image.effect_noise(size, 90).convert("RGB").save(path)


def test_an_interrupted_refresh_goes_on(job, pairs, output, display):
    """The revised plan is kept, none of its chunks is done: the next run, without --refresh, finishes it."""
    run_job(job(), display)
    before = rows_of(output)
    changed = sorted(before)[0]
    old = {path: storage.read(f"{output}/{path}").data for path in data_files(output)}
    replace_image(pairs, changed)
    run_job(job(refresh=True), display)
    for path, data in old.items():
        storage.write(f"{output}/{path}", data)
    for path in files_of(output):
        if path.startswith("_receipts/"):
            storage.delete(f"{output}/{path}")
    report = run_job(job(), display)
    assert report["this_run"]["files"] == 1
    assert {key for key, row in rows_of(output).items() if row != before[key]} == {changed}
    whole_output(output)


def test_a_refresh_over_an_interrupted_refresh_forgets_nothing(job, pairs, output, display):
    """Two pairs of one chunk change one after the other, and the first refresh dies before the chunk is done."""
    run_job(job(chunk_rows=50), display)
    before = rows_of(output)
    first, second = sorted(before)[:2]
    (path,) = data_files(output)
    old = storage.read(f"{output}/{path}").data
    replace_image(pairs, first)
    run_job(job(chunk_rows=50, refresh=True), display)
    storage.write(f"{output}/{path}", old)
    replace_image(pairs, second)
    run_job(job(chunk_rows=50, refresh=True), display)
    assert {key for key, row in rows_of(output).items() if row != before[key]} == {first, second}
    whole_output(output)


def test_a_dropped_pair_that_comes_back_is_encoded_again(job, pairs, output, display, tmp_path):
    run_job(job(), display)
    before = rows_of(output)
    path = next((pairs / "images").glob(f"{sorted(before)[0]}.*"))
    path.rename(tmp_path / path.name)
    run_job(job(refresh=True, drop_vanished=True), display)
    assert len(rows_of(output)) == len(before) - 1
    (tmp_path / path.name).rename(path)
    run_job(job(), display)
    assert rows_of(output).keys() == before.keys()
    whole_output(output)


class TestLateWorkers:
    """A worker of a dead run commits when the new one has listed what is done."""

    def chunk(self, key):
        """A chunk of one decided pair in the shape that a worker commits it."""
        encoded = dict.fromkeys(rows.ENCODED.names)
        encoded |= {"key": key, "image_uri": "i", "mask_uri": "m", "height": 8, "width": 8, "mask_coverage": 0.0}
        encoded |= {"samples": np.zeros((4, 1, 1), np.float32), "samples_shape": [4, 1, 1]}
        encoded |= {"noise_mask": rows.pack_mask(np.zeros(64, np.uint8))}
        table = rows.table_of([encoded], rows.ENCODED)
        return rows.data_table(table, rows.data_schema(PLAIN)), rows.REJECTS.empty_table()

    def reject(self, key):
        reject = {"key": key, "image_uri": "i", "mask_uri": "m", "stage": "fetch", "error": "fetch.unavailable"}
        return rows.data_schema(PLAIN).empty_table(), pa.Table.from_pylist([reject], rows.REJECTS)

    @pytest.fixture(params=["disk", "s3"])
    def where(self, request, tmp_path, s3):
        return str(tmp_path / "late") if request.param == "disk" else s3.uri(f"late-{time.monotonic_ns()}")

    WORK: ClassVar = {"chunk": 7, "generation": 0, "part": "", "keep": False}

    def test_with_an_old_token_it_is_turned_away(self, where):
        storage.write(f"{where}/_lease.json", json.dumps(lease_of("new")).encode())
        late = Ledger(where, "0123abcd", "old")
        with pytest.raises(JobFailed, match="taken over"):
            late.commit(self.WORK, *self.chunk("a"))
        assert data_files(where) == []

    def test_whoever_is_first_decides_and_the_other_adopts(self, where):
        """The late one has passed its look at the lease when the new run commits: rows against a reject."""
        ledger = Ledger(where, "0123abcd", "new")
        first = ledger.publish(self.WORK, *self.chunk("a"))
        late = ledger.publish(self.WORK, *self.reject("a"))
        assert first == late
        assert (late.encoded, late.rejected) == (1, 0)
        assert rejects_of(where) == []
        assert list(rows_of(where)) == ["a"]

    def test_a_late_reject_that_was_first_is_adopted_too(self, where):
        ledger = Ledger(where, "0123abcd", "new")
        ledger.publish(self.WORK, *self.reject("a"))
        mine = ledger.publish(self.WORK, *self.chunk("a"))
        assert (mine.encoded, mine.rejected, mine.errors) == (0, 1, {"fetch.unavailable": 1})
        assert [row["key"] for row in rejects_of(where)] == ["a"]
        assert rows_of(where) == {}


def lease_of(token: str) -> dict:
    return {"token": token, "host": "elsewhere", "boot": "", "namespace": 0, "pid": 1, "started": 1, "renewals": 0}


def test_a_chunk_committed_while_the_job_runs_is_adopted(job, output, display, monkeypatch):
    """A late worker's file appears after the new run has listed what is done, before its own worker commits it."""
    from inpaint_encode import pipeline

    run_job(job(), display)
    whole = {path: storage.read(f"{output}/{path}").data for path in data_files(output)}
    for path in whole:
        storage.delete(f"{output}/{path}")
    listed = pipeline.remaining

    def remaining_then_late(*arguments):
        left = listed(*arguments)
        for path, data in whole.items():
            storage.write(f"{output}/{path}", data)
        return left

    monkeypatch.setattr(pipeline, "remaining", remaining_then_late)
    versions = run_job(job(), display)
    assert versions["this_run"]["files"] == len(whole)
    assert {path: storage.read(f"{output}/{path}").data for path in data_files(output)} == whole
    whole_output(output)


def test_the_second_of_two_jobs_is_refused(job, output, display, ray_cluster, monkeypatch):
    from inpaint_encode import lease

    monkeypatch.setattr(lease, "RENEW_S", 0.5)
    with lease.hold(storage.join(output, "_lease.json"), display.say), pytest.raises(UsageError, match="is writing"):
        run_job(job(), display)


def kill_worker(name: str) -> int:
    """SIGKILL one Ray worker process whose title says what it runs, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        listing = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
        for line in listing.splitlines():
            if f"ray::{name}" in line and "ps -eo" not in line:
                pid = int(line.split()[0])
                os.kill(pid, signal.SIGKILL)
                return pid
        time.sleep(0.02)
    raise TimeoutError(f"no worker runs {name}")


@pytest.mark.parametrize("victim", ["MapWorker(MapBatches(Encoder", "MapBatches(fetch_and_decode"])
def test_a_killed_worker_costs_no_row(tmp_path, make_job, ray_cluster, display, victim):
    write_random_pairs(tmp_path / "in", 120, seed=2, smallest=100, largest=220)
    job = make_job(tmp_path / "in/images", tmp_path / "in/masks", tmp_path / "out", chunk_rows=6, batch_size=1)
    killed = []
    killer = threading.Thread(target=lambda: killed.append(kill_worker(victim)))
    killer.start()
    report = run_job(job, display)
    killer.join()
    assert killed
    assert (report["encoded"], report["rejected"]) == (120, 0)
    assert whole_output(str(tmp_path / "out"))["encoded"] == 120


def test_a_source_object_that_is_deleted_during_the_job(job, pairs, output, display, monkeypatch):
    from inpaint_encode import pipeline

    planned = pipeline.remaining

    def remaining_then_deleted(*arguments):
        left = planned(*arguments)
        next((pairs / "masks").rglob("*.png")).unlink()
        return left

    monkeypatch.setattr(pipeline, "remaining", remaining_then_deleted)
    report = run_job(job(), display)
    assert report["rejected_by_error"]["fetch.not_found"] == 1
    whole_output(output)


def test_a_source_object_that_is_replaced_during_the_job(job, pairs, output, display, monkeypatch):
    """The row says of which version it is, and a refresh sees that the plan was made for another."""
    from inpaint_encode import pipeline

    planned = pipeline.remaining
    path = next(path for path in sorted((pairs / "images").rglob("*.png")) if path.stat().st_size > 60)

    def remaining_then_replaced(*arguments):
        left = planned(*arguments)
        Image.effect_noise(Image.open(path).size, 90).convert("RGB").save(path)
        return left

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "remaining", remaining_then_replaced)
        run_job(job(), display)
    row = next(row for row in table_of(output) if row["image_uri"] == str(path))
    assert row["image_version"] == storage.read(str(path)).version
    before = rows_of(output)
    run_job(job(refresh=True), display)
    assert rows_of(output) == before
    assert run_job(job(refresh=True), display)["this_run"]["files"] == 0


def table_of(output: str) -> list[dict]:
    return (
        ray.data.read_parquet(output, file_extensions=["parquet"])
        .select_columns(["image_uri", "image_version"])
        .take_all()
    )


class TestStoresThatFail:
    """The command on a Ray of its own, whose workers see the store that fails."""

    @pytest.fixture
    def uploaded(self, tmp_path, s3, vae_folder):
        write_random_pairs(tmp_path, 24, seed=9, smallest=24, largest=64)
        prefix = s3.uri(f"faults-{time.monotonic_ns()}")
        upload(tmp_path, prefix)
        options = ["--images", f"{prefix}/images", "--masks", f"{prefix}/masks", "--vae", vae_folder]
        return prefix, [*options, "--output", f"{prefix}/out", "--samples-dtype", "float32", "--chunk-rows", "6"]

    def test_a_fifth_of_all_requests_fails_and_the_job_is_exact(self, uploaded, s3):
        from tests.proxy import FaultyProxy

        prefix, options = uploaded
        with FaultyProxy(s3, share=0.2, seed=1, stall_s=1.0) as proxy:
            done = command("encode", *options, **proxy.environment)
        assert done.returncode == 0, done.stderr
        assert sum(proxy.counts.values()) > 100
        report = whole_output(f"{prefix}/out")
        assert (report["encoded"], report["rejected"]) == (24, 0)
        assert report["this_run"]["counters"]["retries"] > 0

    @pytest.mark.long
    def test_a_store_that_answers_nobody_ends_the_job_within_a_minute(self, uploaded, s3):
        from tests.proxy import FaultyProxy

        with FaultyProxy(s3, share=1.0, seed=1, stall_s=1.0) as proxy:
            start = time.monotonic()
            done = command("encode", *uploaded[1], **proxy.environment)
        assert time.monotonic() - start < 60
        assert done.returncode == 2
        assert "cannot be listed" in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.long
    def test_an_output_that_turns_read_only_is_a_sentence_and_a_resume_completes(self, uploaded, s3):
        from tests.proxy import FaultyProxy

        prefix, options = uploaded
        only = lambda method, path: method == "PUT" and path.endswith("0002.parquet")  # noqa: E731
        with FaultyProxy(s3, share=1.0, seed=1, kinds=("denied",), only=only) as proxy:
            done = command("encode", *options, **proxy.environment)
        assert done.returncode == 1
        assert "cannot be written" in done.stderr
        assert "same command goes on" in done.stderr
        assert "Traceback" not in done.stderr
        again = command("encode", *options)
        assert again.returncode == 0, again.stderr
        assert whole_output(f"{prefix}/out")["encoded"] == 24

    @pytest.mark.long
    def test_a_store_that_dies_in_mid_job_stops_it_with_a_sentence_and_no_rejects(self, uploaded, s3):
        """Listing and plan are fine, then no image is answered: that decides about none of the pairs."""
        from tests.proxy import FaultyProxy

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


def test_a_disk_that_fills_is_a_sentence_and_a_resume_completes(pairs, make_job, ray_cluster, display, tmp_path):
    """A real file system of 200 kilobytes, where this process may mount one."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this process may not mount a small file system")
    try:
        job = make_job(pairs / "images", pairs / "masks", small / "out", chunk_rows=2)
        ballast = small / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            file.write(b"x" * 150_000)
        with pytest.raises(JobFailed, match=r"No space left on device.*same command goes on"):
            run_job(job, display)
        ballast.unlink()
        assert run_job(job, display)["encoded"] == 9
        whole_output(str(small / "out"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_secrets_are_nowhere(pairs, tmp_path, vae_folder, ray_cluster):
    """Canaries in the environment and in a URI: none is in any file of the output, nor on the screen."""
    canaries = {
        "AWS_SECRET_ACCESS_KEY": "canary-secret-1",
        "AWS_SESSION_TOKEN": "canary-token-2",
        "HF_TOKEN": "canary-3",
    }
    options = ["--images", pairs / "images", "--masks", pairs / "masks", "--vae", vae_folder]
    done = command(
        "encode", *options, "--output", tmp_path / "out", "--max-rejected", "5", RAY_ADDRESS=ray_cluster, **canaries
    )
    assert done.returncode == 0, done.stderr
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    uri = command(
        "encode", "--images", "s3://AKIAKEY:canary-4@bucket/images", *options[2:], "--output", tmp_path / "o2"
    )
    assert uri.returncode == 2
    for text in (written.decode("latin-1"), done.stdout, done.stderr, uri.stdout, uri.stderr):
        assert "canary" not in text


def test_names_of_objects_stay_inside_the_output(tmp_path, make_job, ray_cluster, display):
    """A key is data, never a path: files are named by chunks."""
    for side in ("images", "masks"):
        (tmp_path / "in" / side / "..hidden").mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "in" / side / "..hidden/%2e%2e%2fescape;rm -rf.png")
    run_job(make_job(tmp_path / "in/images", tmp_path / "in/masks", tmp_path / "deep/out"), display)
    assert list(rows_of(str(tmp_path / "deep/out"))) == ["..hidden/%2e%2e%2fescape;rm -rf"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
