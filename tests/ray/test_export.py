"""Exports to disks and to an S3 server: complete, resumed, killed, and of outputs that change."""

import hashlib
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from inpaint_encode import iter_rows
from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.errors import UsageError
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.reader import Output
from inpaint_encode.reader.groups import RowGroupReader
from inpaint_encode.settings import ExportOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.export import pipeline as export_pipeline
from inpaint_encode.tools.export.compaction import export_id
from inpaint_encode.tools.export.formats import SUFFIXES, key_to_path
from inpaint_encode.tools.export.pipeline import export_output
from tests.exports import JOB, by_key, exported, load_latent, load_mask, of_rows, write_chunk
from tests.outputs import data_files, files_of, rows_of
from tests.units import UnitOutput

CHUNKS = [["a/042", "a/042/1", "v1.5/x.y"], ["b", "../c"], [], ["d//e", "ü%"]]


def export(output, to, destination, **options):
    return export_output(str(output), ExportOptions(to=to, output=str(destination), **options), Display().say)


def write_output(folder) -> str:
    for chunk, keys in enumerate(CHUNKS):
        write_chunk(str(folder), chunk, keys)
    return str(folder)


@pytest.fixture
def output(tmp_path, ray_cluster):
    return write_output(tmp_path / "out")


def test_an_encoded_output_on_s3_becomes_what_comfyui_loads(tmp_path, s3, ray_cluster, make_job, shell):
    """The files hold the latents of the rows, bit for bit."""
    write_random_pairs(tmp_path, 10, seed=5, smallest=24, largest=72)
    upload(tmp_path, s3.uri("export-in"))
    encoded, to = s3.uri("export-encoded"), s3.uri("export-comfyui", "input")
    run_job(make_job(s3.uri("export-in", "images"), s3.uri("export-in", "masks"), encoded, chunk_rows=4), Display())
    done = shell("export", encoded, "--to", "comfyui", "--output", to)
    assert (done.returncode, done.stdout.splitlines()[0].partition(" in ")[0]) == (
        0,
        "10 rows for comfyui; this run 10",
    )
    files, rows = of_rows(to), by_key(encoded)
    assert len(rows) == 10
    assert set(files) == {f"{key_to_path(key)}{suffix}" for key in rows for suffix in SUFFIXES["comfyui"]}
    for key, row in rows.items():
        assert np.array_equal(load_latent(files[f"{key_to_path(key)}.latent"])[0], row["samples"])
        assert np.array_equal(load_mask(files[f"{key_to_path(key)}_mask.png"]), row["noise_mask"][0])
    size = sum(map(len, files.values()))
    assert done.stdout.splitlines()[1] == f"{to}: 20 files, {size:,} bytes"
    again = shell("export", encoded, "--to", "comfyui", "--output", to)
    assert (again.returncode, again.stdout.splitlines()[0].partition(" in ")[0]) == (
        0,
        "10 rows for comfyui; this run 0",
    )
    assert again.stderr == "3 of 3 data files are exported\n"


@pytest.mark.parametrize("to", SUFFIXES)
def test_odd_keys_on_s3_and_on_a_disk_give_the_same_files(to, output, s3):
    there, here = s3.uri("export-odd", to), f"{output}-{to}"
    made = [export(output, to, destination) for destination in (there, here)]
    assert of_rows(there) == of_rows(here)
    assert [made[0].whole, made[0].rows_now] == [made[1].whole, made[1].rows_now]
    assert made[0].whole.rows == 7
    assert made[0].whole[1:] == (len(of_rows(here)), sum(map(len, of_rows(here).values())))
    assert "_lease.json" not in files_of(there)


def versions_of(destination) -> dict[str, str]:
    return {
        path: version
        for listed in storage.list_objects(str(destination))
        for path, version in zip(listed.paths, listed.versions, strict=True)
    }


def test_only_missing_files_are_exported(output, tmp_path):
    """Of four data files one has no record, and one is unfinished."""
    to = tmp_path / "to"
    export(output, "comfyui", to)
    before, bytes_before = versions_of(to), exported(str(to))
    note = to / "_export" / "0a1b2c3d-00000001.json"
    mark = json.loads(note.read_text())
    note.write_text(json.dumps({**mark, "done": False, "bytes": 0}))
    (to / "b.latent").unlink()
    (to / "_export" / "0a1b2c3d-00000003.json").unlink()
    (to / f"_tmp-{'0' * 32}").write_bytes(b"cut, beside b.latent")
    (to / "another").mkdir()
    (to / "another" / f"_tmp-{'1' * 32}").write_bytes(b"of a job that is running there")
    (to / "_tmp-of-another").write_bytes(b"mine")
    made = export(output, "comfyui", to)
    assert exported(str(to)) == bytes_before
    assert sorted(path.name for path in to.rglob("_tmp-*")) == [f"_tmp-{'1' * 32}", "_tmp-of-another"]
    shutil.rmtree(to / "another")
    written = {path for path, version in versions_of(to).items() if before[path] != version}
    assert {path for path in written if not path.startswith("_")} == {
        *("b.latent", "b_mask.png", "%2E%2E/c.latent", "%2E%2E/c_mask.png"),
        *("d/%/e.latent", "d/%/e_mask.png", "ü%25.latent", "ü%25_mask.png"),
    }
    assert (made.rows_now, made.whole.rows, made.whole.files) == (4, 7, 14)


@pytest.mark.parametrize("to", SUFFIXES)
def test_changes_of_the_output_are_exported(to, output, tmp_path):
    """A row was removed, one moved to a later data file, one was added, and a data file was removed."""
    export(output, to, tmp_path / "to")
    write_chunk(output, 0, ["a/042", "new"], seed=1)
    write_chunk(output, 4, ["a/042/1"])
    Path(output, "0a1b2c3d-00000003.parquet").unlink()
    made = export(output, to, tmp_path / "to")
    fresh = export(output, to, tmp_path / "fresh")
    assert exported(str(tmp_path / "to")) == exported(str(tmp_path / "fresh"))
    assert made.whole == fresh.whole
    assert (made.rows_now, made.whole.rows) == (3, 5)


def test_another_export_is_refused_or_overwritten_on_request(output, tmp_path, shell):
    to = str(tmp_path / "to")
    export(output, "comfyui", to)
    before = exported(to)
    done = shell("export", output, "--to", "webdataset", "--output", to)
    assert done.returncode == 2
    assert "contains an export in another format (to: comfyui there, webdataset now)" in " ".join(done.stderr.split())
    other = str(tmp_path / "other")
    write_chunk(other, 0, ["z"], job="99999999")
    with pytest.raises(
        UsageError,
        match=f"another output .source: {output} there, {other} now; job: 0a1b2c3d there, 99999999 now",
    ):
        export(other, "comfyui", to)
    assert exported(to) == before
    (tmp_path / "to/mine.png").write_bytes(b"mine")
    export(other, "webdataset", to, overwrite=True)
    export(other, "webdataset", tmp_path / "fresh")
    assert exported(to) == {**exported(str(tmp_path / "fresh")), "mine.png": b"mine"}


def test_a_damaged_file_ends_the_command_and_keeps_the_rest(output, tmp_path, shell):
    path = Path(output, "0a1b2c3d-00000003.parquet")
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    done = shell("export", output, "--to", "safetensors", "--output", tmp_path / "to")
    assert done.returncode == 1
    assert f"no job has finished in {output} yet" in done.stderr
    assert f"{path} cannot be exported: " in done.stderr
    assert "exported data files stay, and the same command resumes from them" in " ".join(done.stderr.split())
    path.write_bytes(whole)
    export(output, "safetensors", tmp_path / "to")
    export(output, "safetensors", tmp_path / "fresh")
    files, fresh = (of_rows(str(tmp_path / name)) for name in ("to", "fresh"))
    assert files == fresh


def test_an_output_that_grows_becomes_large_parquet_files(tmp_path, s3, ray_cluster, make_job, shell):
    """Each unit has files of its own: a new unit adds some, and a changed image redoes those of its unit."""
    write_random_pairs(tmp_path / "first", 10, seed=5, smallest=24, largest=72)
    write_random_pairs(tmp_path / "second", 6, seed=6, smallest=24, largest=72)
    source, encoded, to = s3.uri("compact-in"), s3.uri("compact-encoded"), s3.uri("compact-out")

    def step(folder: str | None, **options) -> dict[str, str]:
        """Upload and encode a folder of pairs, export the output, and return the versions of the exported files."""
        if folder:
            for path in (tmp_path / folder).rglob("*.*"):
                name = path.relative_to(tmp_path / folder).with_stem(f"{folder}-{path.stem}")
                storage.write(f"{source}/{name}", path.read_bytes())
        run_job(make_job(f"{source}/images", f"{source}/masks", encoded, chunk_rows=4, **options), Display())
        done = shell("export", encoded, "--to", "parquet", "--output", to)
        assert done.returncode == 0, done.stderr
        assert rows_of(to) == rows_of(encoded)
        check_index(to)
        versions = versions_of(to)
        return {path: versions[path] for path in data_files(to)}

    first = step("first")
    assert len(first) == 1
    second = step("second")
    assert len(second) == 2
    assert first.items() < second.items()
    image = min(path for path in files_of(source) if re.search("images/.*first", path))
    storage.write(f"{source}/{image}", storage.read(f"{source}/{image}").data + b"\0")  # decoders ignore the end
    third = step(None, refresh=True)
    assert third.keys() == second.keys()
    assert [path for path in third if third[path] != second[path]] == list(first)


def test_file_sizes_on_s3_and_on_a_disk(tmp_path, s3, ray_cluster, shell):
    """The rows are the same for two values of --file-bytes; another value needs --overwrite."""
    made = UnitOutput(tmp_path / "out", sides=(32, 32))
    made.encode(made.plan([f"{row:03d}" for row in range(300)], 20))
    there, here = s3.uri("compact-sizes"), str(tmp_path / "to")
    export(made.uri, "parquet", here, file_bytes="1MB")
    sizes = [Path(here, path).stat().st_size for path in data_files(here)]
    assert len(sizes) == -(-sum(file.stat().st_size for file in Path(made.uri).glob("*.parquet")) // 10**6) > 2
    assert max(sizes) < 1.1e6
    assert digest_of(here) == digest_of(made.uri)
    export(made.uri, "parquet", there, file_bytes="1MB")
    assert of_rows(there) == of_rows(here)
    done = shell("export", made.uri, "--to", "parquet", "--output", here)
    assert done.returncode == 2
    assert "an export with another --file-bytes (file_bytes: 1000000 there, 256000000 now)" in " ".join(
        done.stderr.split()
    )
    whole = export(made.uri, "parquet", here, overwrite=True).whole
    assert (whole.rows, whole.files) == (300, 1)
    assert digest_of(here) == digest_of(there)


def test_units_that_are_not_finished_are_left_out_and_added_later(tmp_path, ray_cluster, shell):
    made, to = UnitOutput(tmp_path / "out"), tmp_path / "to"
    made.encode(made.plan([f"a{row}" for row in range(9)], 4))
    last = made.plan([f"b{row}" for row in range(9)], 4)
    made.encode(last[:2])
    done = shell("export", made.uri, "--to", "parquet", "--output", to)
    assert done.returncode == 0, done.stderr
    check_index(str(to))
    assert done.stdout.splitlines()[0].startswith("9 rows for parquet; this run 9 in ")
    assert done.stdout.splitlines()[2] == "1 of 2 units is not finished yet (1); run this command again later"
    assert data_files(str(to)) == [f"{export_id(JOB)}-000000-00000.parquet"]
    made.encode(last[2:])
    made.encode(made.revise(["a0"]), seed=1)
    made_now = export(made.uri, "parquet", to)
    assert (made_now.rows_now, made_now.unfinished) == (18, "")
    export(made.uri, "parquet", tmp_path / "fresh")
    assert exported(str(to)) == exported(str(tmp_path / "fresh"))
    assert digest_of(to) == digest_of(made.uri)


def test_an_export_to_parquet_never_joins_the_files_of_a_job(tmp_path, ray_cluster):
    made = UnitOutput(tmp_path / "out")
    made.encode(made.plan(["a"], 4))
    other = UnitOutput(tmp_path / "new-job")
    with pytest.raises(
        UsageError, match=r"contains 1 file ending in \.parquet or _job\.json that export did not write"
    ):
        export(made.uri, "parquet", other.uri)
    to = tmp_path / "to"
    export(made.uri, "parquet", to)
    export(made.uri, "safetensors", to, overwrite=True)
    assert {path for path in files_of(str(to)) if not path.startswith("_export")} == {"a.safetensors"}


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_rate_of_an_export_to_parquet(tmp_path, ray_cluster):
    made = UnitOutput(tmp_path / "out", sides=(64, 64))
    begun = time.monotonic()
    made.encode(made.plan([f"{row:06d}" for row in range(RATE_ROWS)], 256))
    print(f"{RATE_ROWS:,} rows made in {time.monotonic() - begun:,.0f} s")
    for size in ("64MB", "256MB"):
        done = export(made.uri, "parquet", tmp_path / size, file_bytes=size)
        rate, speed = done.whole.rows / done.seconds, done.whole.bytes / done.seconds / 1e6
        print(f"--file-bytes {size}: {done.whole.files} files, {rate:,.0f} rows/s, {speed:,.1f} MB/s")
        assert done.whole.rows == RATE_ROWS
        assert digest_of(tmp_path / size) == digest_of(made.uri)


def digest_of(output: object) -> str:
    """Return a hash of the keys, latents and masks of all rows in order."""
    digest = hashlib.sha256()
    for row in iter_rows(str(output)):
        digest.update(row["key"].encode() + row["samples"].tobytes() + row["noise_mask"].tobytes())
    return digest.hexdigest()


RATE_ROWS = 48 * 256
"""Rows of the size of 512 x 512 pixels, in files of 8 MB."""


KILLED_CHUNKS = 24


@pytest.fixture(scope="module")
def large(tmp_path_factory, ray_cluster):
    """An output with enough data files to kill an export in the middle."""
    folder = str(tmp_path_factory.mktemp("large") / "out")
    for chunk in range(KILLED_CHUNKS):
        write_chunk(folder, chunk, [f"{chunk:03d}/{row:02d}" for row in range(12)])
    return folder


def export_and_die(source: str, to: str, destination: str, done: int) -> None:
    """Export in this process, which kills itself when ``done`` data files are exported."""

    def say(line: str) -> None:
        exported = re.match(r"([\d,]+) of [\d,]+ (?:data )?files are exported", line)
        if exported and int(exported[1]) >= done:
            os.kill(os.getpid(), signal.SIGKILL)

    export_pipeline.EVERY_S = 0.0  # so that ``say`` is called after each data file
    export_output(source, ExportOptions(to=to, output=destination), say)


def done_in(destination: str) -> int:
    notes = [path for path in files_of(destination) if path.startswith("_export/") and path.endswith(".json")]
    return sum(json.loads(storage.read(f"{destination}/{path}").data)["done"] for path in notes)


@pytest.fixture
def killed_and_finished(large, driver):
    """Start an export and kill it after each of some numbers of data files; then let it end."""

    def run(to: str, destination: str, *when: int, source: str = large) -> None:
        for done in when:
            process = driver(export_and_die, source, to, destination, done)
            process.join(600)
            assert process.exitcode == -signal.SIGKILL
            assert done <= done_in(destination) < KILLED_CHUNKS
        process = driver(export, source, to, destination)
        process.join(600)
        assert process.exitcode == 0

    return run


def test_a_killed_export_resumes(large, killed_and_finished, tmp_path):
    killed_and_finished("comfyui", str(tmp_path / "to"), 6)
    export(large, "comfyui", tmp_path / "undisturbed")
    assert exported(str(tmp_path / "to")) == exported(str(tmp_path / "undisturbed"))
    assert list(storage.temporary_files(str(tmp_path / "to"))) == []


@pytest.fixture(scope="module")
def many_units(tmp_path_factory, ray_cluster):
    """An output with enough units to kill an export to Parquet in the middle."""
    made = UnitOutput(tmp_path_factory.mktemp("many") / "out")
    for unit in range(KILLED_CHUNKS):
        made.encode(made.plan([f"{unit:03d}/{row:02d}" for row in range(12)], 5))
    made.keep_receipts()
    return made.uri


def test_a_killed_export_to_parquet_resumes(many_units, killed_and_finished, tmp_path):
    killed_and_finished("parquet", str(tmp_path / "to"), 6, source=many_units)
    export(many_units, "parquet", tmp_path / "undisturbed")
    assert exported(str(tmp_path / "to")) == exported(str(tmp_path / "undisturbed"))
    assert list(storage.temporary_files(str(tmp_path / "to"))) == []
    check_index(str(tmp_path / "to"))


def check_index(output: str) -> None:
    """Check that readers open the export by its index, and find the keys of all rows in it."""
    opened = Output.open(output)
    assert [file.path for file in opened.files] == data_files(output)
    assert all(file.footer_bytes for file in opened.files)
    reader = RowGroupReader(opened)
    assert all(reader.find(row["key"]) for row in iter_rows(output))


@pytest.mark.long
def test_an_export_to_parquet_on_s3_that_is_killed_six_times_resumes(many_units, killed_and_finished, s3, tmp_path):
    destination = s3.uri("export-killed", "parquet")
    killed_and_finished("parquet", destination, 1, 3, 6, 9, 12, 15, source=many_units)
    export(many_units, "parquet", tmp_path)
    assert exported(destination) == exported(str(tmp_path))
    check_index(destination)
    print("parquet: killed six times, exact")


@pytest.mark.long
@pytest.mark.parametrize("to", SUFFIXES)
def test_an_export_to_s3_that_is_killed_six_times_resumes(to, large, killed_and_finished, s3, tmp_path):
    destination = s3.uri("export-killed", to)
    killed_and_finished(to, destination, 1, 3, 6, 9, 12, 15)
    export(large, to, tmp_path)
    assert exported(destination) == exported(str(tmp_path))
    print(f"{to}: killed six times, exact")
