"""``verify`` finds every kind of damage, ``--repair`` removes it, and the same encode command restores it."""

import io
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.errors import JobFailed, NotWhole, UsageError
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Silent
from inpaint_encode.output.lease import hold
from inpaint_encode.output.parquet import parquet_bytes, read_data
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import FOOTER_KEY, PAIRS, data_schema
from inpaint_encode.settings import VerifyOptions
from inpaint_encode.tools.verify.resample import Resampled, _samples_problems, draw
from inpaint_encode.tools.verify.run import verify_output
from inpaint_encode.tools.verify.verdict import CHECKS, SHOWN, show
from tests.conftest import save_vae
from tests.metadata import row_metadata
from tests.outputs import PLAIN, rejects_of, rows_of, whole_output

CHUNKS, CHUNK_ROWS = 8, 3


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Pairs on a disk; the first image ends too early."""
    folder = tmp_path_factory.mktemp("source")
    write_random_pairs(folder, CHUNKS * CHUNK_ROWS, seed=11, largest=96)
    first = min((folder / "images").rglob("*.*"))
    first.write_bytes(first.read_bytes()[:-200])
    return folder


@pytest.fixture(scope="module")
def encode(source, ray_cluster, make_job):
    """Run the one encode command of this module on an output."""

    def run(output: Path) -> dict:
        options = {"chunk_rows": CHUNK_ROWS, "dtype": "float32"}
        return run_job(make_job(source / "images", source / "masks", output, **options), Silent())

    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory, encode):
    output = tmp_path_factory.mktemp("whole") / "out"
    report = encode(output)
    assert (report["files"], report["rejected_by_error"]) == (CHUNKS, {"decode.truncated": 1})
    return output


@pytest.fixture
def output(whole, tmp_path):
    """A copy to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "out"))


def verify(output: Path, **options):
    return verify_output(VerifyOptions(output=str(output), **options), Silent().say)


def data_file(output: Path, chunk: int) -> Path:
    (path,) = output.glob(f"*-{chunk:08d}.parquet")
    return path


def remake(path: Path, change) -> None:
    """Rewrite a data file with rows that ``change`` has changed."""
    data = path.read_bytes()
    schema = data_schema(PLAIN).with_metadata(pq.read_schema(pa.BufferReader(data)).metadata)
    table = read_data(data, schema).to_pylist()
    change(table)
    path.write_bytes(parquet_bytes(pa.Table.from_pylist(table, schema)))


def truncate(output, chunk=2):
    path = data_file(output, chunk)
    path.write_bytes(path.read_bytes()[:-100])


def flip_a_byte(output):
    """Flip a byte of a latent in a file whose pages have checksums."""
    path = data_file(output, 2)
    pq.write_table(pq.read_table(path), path, compression="zstd", use_dictionary=False, write_page_checksum=True)
    group = pq.read_metadata(path).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    latents = columns["samples.data.list.element"]
    data = bytearray(path.read_bytes())
    data[latents.data_page_offset + latents.total_compressed_size - 20] ^= 1
    path.write_bytes(data)


def in_row(name, change, chunk=2, row=1):
    """Change one field of one row."""

    def damage(output):
        def apply(table):
            table[row][name] = change(table[row][name])

        remake(data_file(output, chunk), apply)

    damage.__name__ = name
    return damage


def with_first(value):
    def change(tensor):
        return {**tensor, "data": [value, *tensor["data"][1:]]}

    return change


def swap_sides(tensor):
    """Give a latent another shape of the same size."""
    channels, height, width = tensor["shape"]
    return {**tensor, "shape": [channels, 1, height * width] if height > 1 else [channels, width, height]}


def drop_a_row(output):
    remake(data_file(output, 2), lambda table: table.pop())


def key_in_two_chunks(output):
    taken = pq.read_table(data_file(output, 3), columns=["key"])["key"][0].as_py()
    remake(data_file(output, 2), lambda table: table[0].update(key=taken))


def key_twice(output):
    remake(data_file(output, 2), lambda table: table.append(dict(table[0])))


def other_columns(output):
    path = data_file(output, 2)
    pq.write_table(pq.read_table(path).drop_columns("mask_coverage"), path)


def exchange_two_files(output):
    two, three = data_file(output, 2), data_file(output, 3)
    content = two.read_bytes()
    two.write_bytes(three.read_bytes())
    three.write_bytes(content)


def settings_of_another_job(output):
    path = data_file(output, 2)
    table = pq.read_table(path)
    made_by = {**json.loads(table.schema.metadata[FOOTER_KEY]), "grow_mask_by": 9}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, FOOTER_KEY: json.dumps(made_by)}), path)


def foreign_file(output):
    """Add a file of a job that was overwritten here."""
    job = json.loads((output / "_job.json").read_text())
    (output / "_job.json").write_text(json.dumps({**job, "replaces": ["00000000"]}))
    (output / "00000000-00000077.parquet").write_bytes(data_file(output, 1).read_bytes())


def unplanned_chunk(output):
    path = data_file(output, 1)
    path.with_name(path.name.replace("-00000001", "-00000099")).write_bytes(path.read_bytes())


def stranger(output):
    (output / "notes.txt").write_text("not a latent")


def temporary_file(output):
    (output / "_plan" / "_tmp-0123").write_bytes(b"PAR1")


def rejects_file(output: Path) -> Path:
    """The only rejects file of the whole output, of chunk 0."""
    return output / "_rejected" / data_file(output, 0).name


def missing_rejects(output):
    rejects_file(output).unlink()


def extra_rejects(output):
    path = rejects_file(output)
    path.with_name(data_file(output, 2).name).write_bytes(path.read_bytes())


def other_rejects(output):
    path = rejects_file(output)
    pq.write_table(pq.read_table(path).slice(0, 0), path)


def false_report(output):
    path = output / "_report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "encoded": 24}))


def false_receipts(output):
    path = next((output / "_receipts").iterdir())
    table = pq.read_table(path)
    table = table.set_column(table.column_names.index("encoded"), "encoded", pa.array([4] * len(table), pa.int64()))
    pq.write_table(table, path)


def broken_receipts(output):
    next((output / "_receipts").iterdir()).write_bytes(b"PAR1")


def lost_chunk(output, chunk=2):
    data_file(output, chunk).unlink()


IN_CHUNK_2 = r"-00000002\.parquet"
DAMAGES = {
    truncate: ("file", IN_CHUNK_2, "cannot be read whole"),
    flip_a_byte: ("file", IN_CHUNK_2, "CRC"),
    lost_chunk: ("file", IN_CHUNK_2, "is not there, though it was committed"),
    exchange_two_files: ("decision", IN_CHUNK_2, "its footer names chunk 3, its name chunk 2"),
    settings_of_another_job: ("settings", IN_CHUNK_2, "grow_mask_by 9"),
    other_columns: ("columns", IN_CHUNK_2, "its columns are key, samples"),
    drop_a_row: ("keys", IN_CHUNK_2, "neither rows nor rejects: 1, the first 000/000008"),
    key_in_two_chunks: ("keys", IN_CHUNK_2, "not planned for this chunk: 1, the first 000/000009"),
    key_twice: ("keys", IN_CHUNK_2, "more than once: 1, the first 000/000006"),
    in_row("samples", with_first(float("nan"))): ("samples", IN_CHUNK_2, "1 of 3 rows, the first 000/000007: 1 of"),
    in_row("samples", swap_sides): ("shapes", IN_CHUNK_2, r"samples is \[4, "),
    in_row("crop_left", lambda left: left + 1): ("shapes", IN_CHUNK_2, "crop_left is"),
    in_row("noise_mask", with_first(2)): ("noise_mask", IN_CHUNK_2, "pixels are neither 0 nor 1"),
    in_row("mask_coverage", lambda share: share + 1e-4): ("coverage", IN_CHUNK_2, "mask_coverage is"),
    foreign_file: ("foreign", "00000000-00000077.parquet", "is another job's"),
    unplanned_chunk: ("foreign", "-00000099.parquet", "is of chunk 99, which is not planned"),
    stranger: ("stranger", "notes.txt", "move it"),
    temporary_file: ("temporary", "_plan/_tmp-0123", "is unfinished"),
    missing_rejects: ("rejects", "_rejected/", "is not there; rejects of its data file: 1"),
    extra_rejects: ("rejects", "_rejected/", "is there, but its data file has no rejects"),
    other_rejects: ("rejects", "_rejected/", "0 there, 1 in the data file"),
    false_report: ("report", "_report.json", "says encoded 24, not 23"),
    false_receipts: ("receipts", "_receipts/", "says that chunk 0 has 4 rows and 1 rejects; its file has 2 and 1"),
    broken_receipts: ("receipts", "_receipts/", "cannot be read"),
}


def problems_of(verdict, check: str) -> list:
    return [problem for problem in verdict.problems if problem.check == check]


def test_a_whole_output_has_no_problem(whole):
    verdict = verify(whole)
    assert verdict.problems == []
    assert (verdict.pairs, verdict.encoded, verdict.rejects) == (24, 23, {"decode.truncated": 1})
    verdict.refuse_unless_whole()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_repaired(output, damage):
    check, file, sentence = DAMAGES[damage]
    damage(output)
    verdict = verify(output, repair=True)
    found = [one for one in problems_of(verdict, check) if re.search(file, one.file)]
    assert any(re.search(sentence, one.sentence) for one in found), verdict.problems
    again = verify(output)
    assert [problem.check for problem in again.problems] == (["stranger"] if damage is stranger else [])
    assert again.undone == verdict.undone == verdict.damaged
    assert verdict.undone <= {2, 3}


def test_after_a_repair_the_same_command_restores_the_output(output, whole, encode):
    """All damages at once, in all chunks except the last; the rows come out bit for bit."""
    key_in_two_chunks(output)
    in_row("noise_mask", with_first(2), chunk=1)(output)
    in_row("samples", with_first(float("nan")), chunk=3)(output)
    in_row("mask_coverage", lambda share: share / 2, chunk=4)(output)
    truncate(output, chunk=5)
    lost_chunk(output, chunk=6)
    for damage in (extra_rejects, other_rejects, unplanned_chunk, foreign_file, temporary_file, false_receipts):
        damage(output)
    damaged = verify(output)
    assert damaged.undone == {6}
    with pytest.raises(NotWhole, match=r"not whole: 15 problems, 1 of 8 chunks not done yet; run verify with --repair"):
        damaged.refuse_unless_whole()
    repaired = verify(output, repair=True)
    assert repaired.undone == {1, 2, 3, 4, 5, 6}
    with pytest.raises(NotWhole, match=r"not whole: 6 of 8 chunks not done yet; run the same encode command again"):
        repaired.refuse_unless_whole()
    assert encode(output)["this_run"]["files"] == 6
    verify(output).refuse_unless_whole()
    whole_output(str(output))
    assert rows_of(str(output)) == rows_of(str(whole))
    assert rejects_of(str(output)) == rejects_of(str(whole))


def test_missing_chunks_are_no_damage(output):
    lost_chunk(output)
    next((output / "_receipts").iterdir()).unlink()
    verdict = verify(output)
    assert (verdict.problems, verdict.undone) == ([], {2})
    with pytest.raises(NotWhole, match=r"not whole: 1 of 8 chunks not done yet; run the same encode command again"):
        verdict.refuse_unless_whole()


def test_a_chunk_planned_for_refresh_is_not_done(output):
    """A run died after it had planned a refresh: the file is of the generation before."""
    revise(output)
    verdict = verify(output)
    assert (verdict.problems, verdict.undone) == ([], {2})


def test_a_row_that_a_refresh_keeps_must_exist(output):
    """The next run copies it from the old file."""
    revise(output)
    drop_a_row(output)
    (problem,) = verify(output).problems
    assert problem.check == "keys"
    assert "neither rows nor rejects: 1, the first 000/000008" in problem.sentence


def revise(output):
    """Plan chunk 2 again: encode its first pair, keep the others."""
    (path,) = (output / "_plan").glob("*.parquet")
    stated = pq.read_table(path, schema=PAIRS).slice(2 * CHUNK_ROWS, CHUNK_ROWS)
    stated = stated.set_column(stated.column_names.index("encode"), "encode", pa.array([True, False, False]))
    with hold(str(output / "_lease.json"), print) as lease:
        OutputState(str(output), json.loads((output / "_job.json").read_text())["job"], lease.token).write_plan(
            1, stated
        )


def test_a_lost_part_of_the_plan_is_a_problem(output):
    next((output / "_plan").glob("*.parquet")).write_bytes(b"PAR1")
    (problem,) = verify(output, repair=True).left
    assert problem.check == "plan"
    assert len(list(output.glob("*.parquet"))) == CHUNKS


def test_duplicate_keys_in_the_plan_are_a_problem(output):
    (path,) = (output / "_plan").glob("*.parquet")
    table = pq.read_table(path)
    path.write_bytes(parquet_bytes(pa.concat_tables([table, table.slice(4, 1)])))
    drop_a_row(output)
    verdict = verify(output, repair=True)
    assert {problem.check for problem in verdict.left} == {"plan", "keys"}
    assert data_file(output, 2).exists()
    sentences = {problem.sentence for problem in problems_of(verdict, "plan")}
    assert sentences == {"says 24 pairs, its parts have 25", "has keys more than once: 1, such as 000/000004"}


def test_repair_removes_nothing_if_every_file_is_wrong(output):
    """The wrong file is _job.json, and encoding may have taken weeks."""
    job = json.loads((output / "_job.json").read_text())
    job["rows"]["grow_mask_by"] = 9
    (output / "_job.json").write_text(json.dumps(job))
    verdict = verify(output, repair=True)
    assert {problem.check for problem in verdict.left} == {"settings"}
    assert len(list(output.glob("*.parquet"))) == CHUNKS
    assert "_job.json" in verdict.repairs[-1]
    with pytest.raises(NotWhole, match="8 problems; what is left cannot be repaired here"):
        verdict.refuse_unless_whole()


def test_an_output_in_a_bucket_is_repaired(output, s3):
    truncate(output)
    extra_rejects(output)
    foreign_file(output)
    uri = s3.uri("verify")
    upload(output, uri)
    options = VerifyOptions(output=uri, repair=True)
    assert sorted(problem.check for problem in verify_output(options, print).problems) == ["file", "foreign"]
    again = verify_output(options, print)
    assert (again.problems, again.undone) == ([], {2})


def test_only_a_repair_takes_the_lease(output):
    for repair in (False, True):
        held = []
        options = VerifyOptions(output=str(output), repair=repair)
        verify_output(options, lambda _: held.append((output / "_lease.json").exists()))  # noqa: B023 - called at once
        assert set(held) == {repair}
    assert not (output / "_lease.json").exists()


class TestSample:
    """Rows encoded again from their sources."""

    def test_an_intact_output_gives_the_same_rows(self, whole):
        resampled = verify(whole, sample=100).resampled
        assert (resampled.rows, resampled.changed, resampled.other_masks) == (23, 0, 0)
        assert resampled.largest < 1e-5

    def test_a_wrong_value_is_found(self, output):
        in_row("samples", lambda tensor: with_first(tensor["data"][0] + 0.01)(tensor))(output)
        verdict = verify(output, sample=100, repair=True)
        (problem,) = verdict.problems
        assert (problem.check, problem.chunk) == ("sample", 2)
        assert problem.sentence.startswith("000/000007: 1 of ")
        assert verdict.resampled.largest == pytest.approx(0.01, abs=1e-5)
        assert verdict.undone == {2}

    def test_repair_removes_nothing_if_every_row_differs(self, output):
        """The reason is this machine or another version of a decoder."""

        def shift(table):
            for row in table:
                row["samples"]["data"][0] += 0.01

        for chunk in range(CHUNKS):
            remake(data_file(output, chunk), shift)
        verdict = verify(output, sample=5, repair=True)
        assert {problem.check for problem in verdict.left} == {"sample"}
        assert (verdict.resampled.different, verdict.undone) == (5, set())
        assert len(list(output.glob("*.parquet"))) == CHUNKS

    def test_a_wrong_mask_pixel_is_found(self, output):
        def flip(table):
            data = table[1]["noise_mask"]["data"]
            data[0] = 1 - data[0]
            table[1]["mask_coverage"] = float(np.float32(np.mean(data)))

        remake(data_file(output, 2), flip)
        (problem,) = verify(output, sample=100).problems
        assert (problem.check, problem.chunk) == ("sample", 2)
        assert re.search(r"000/000007: 1 of [\d,]+ pixels of noise_mask are not", problem.sentence)

    def test_a_source_that_has_changed_is_no_damage(self, output, source):
        image = next((source / "images").rglob("000007.*"))
        stat = image.stat()
        os.utime(image, (stat.st_atime, stat.st_mtime + 1))
        try:
            verdict = verify(output, sample=100)
        finally:
            os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        assert verdict.problems == []
        assert (verdict.resampled.rows, verdict.resampled.changed) == (22, 1)

    def test_another_vae_is_refused(self, whole, tmp_path):
        with pytest.raises(JobFailed, match=r"another VAE than where the job was begun: .*weights_sha256"):
            verify(whole, sample=1, vae=save_vae(tmp_path, levels=4, seed=1))

    @pytest.mark.parametrize("where", ["stored", "again"])
    def test_a_value_that_is_no_number_is_a_problem(self, where):
        values = {"stored": np.ones(8, np.float16), "again": np.ones(8, np.float32)}
        values[where][3] = np.nan
        metadata = row_metadata()
        (wrong,) = _samples_problems(values["stored"], values["again"], metadata, Resampled(), "latent")
        assert re.match("[18] of 8 latent values are not what its source gives", wrong)

    def test_every_row_is_equally_likely(self):
        drawn = [draw({3: 1, 7: 9}, 1, seed) for seed in range(1_000)]
        assert 60 < sum(one == {3: [0]} for one in drawn) < 140
        assert draw({3: 1, 7: 2}, 10, 0) == {3: [0], 7: [0, 1]}


def test_output_and_exit_code_of_the_command(output, shell):
    done = shell("verify", output)
    assert done.returncode == 0, done.stderr
    assert "24 pairs planned in 8 chunks: 23 encoded, 1 rejected (1 decode.truncated)" in done.stdout
    drop_a_row(output)
    done = shell("verify", output)
    assert done.returncode == 4
    assert data_file(output, 2).name in done.stdout
    assert "1 problem; run verify with --repair" in done.stderr


def test_a_folder_without_an_output_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"_job\.json cannot be read"):
        verify(tmp_path, repair=True)
    assert list(tmp_path.iterdir()) == []


def test_the_table_shows_the_first_problems_and_counts_all(output):
    for chunk in range(CHUNKS - 1):
        for name in ("samples", "noise_mask"):
            in_row(name, with_first(3 if name == "noise_mask" else float("inf")), chunk=chunk, row=0)(output)
        in_row("crop_top", lambda _: 7, chunk=chunk)(output)
    console = Console(record=True, width=160, file=io.StringIO())
    verdict = verify(output)
    show(verdict, console)
    text = console.export_text()
    assert all(check in text for check in CHECKS if check != "sample")
    assert f"… and {len(verdict.problems) - SHOWN:,} more" in text
    assert text.count("-0000000") == SHOWN
