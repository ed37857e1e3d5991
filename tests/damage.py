"""Damage the files of an output of one unit, whose keys are ``000/000000``, ... in chunks of `CHUNK_ROWS`."""

import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.output import plan
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.notes import CHUNK_KEY
from inpaint_encode.output.parquet import parquet_bytes, read_data
from inpaint_encode.output.plan import chunk_name
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import FOOTER_KEY, data_schema
from tests.outputs import PLAIN

CHUNK_ROWS = 3


def data_file(output: Path, chunk: int) -> Path:
    (path,) = output.glob(f"*-{chunk_name(0, chunk)}.parquet")
    return path


def change_rows(path: Path, change: Callable[[list[dict]], object]) -> None:
    """Rewrite a data file with rows that ``change`` has changed."""
    data = path.read_bytes()
    schema = data_schema(PLAIN).with_metadata(pq.read_schema(pa.BufferReader(data)).metadata)
    rows = read_data(data, schema).to_pylist()
    change(rows)
    path.write_bytes(parquet_bytes(pa.Table.from_pylist(rows, schema)))


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
    """Return a function that changes one value of one row."""

    def damage(output):
        def apply(rows):
            rows[row][name] = change(rows[row][name])

        change_rows(data_file(output, chunk), apply)

    damage.__name__ = name
    return damage


def with_first(value):
    """Return a function that replaces the first value of a tensor."""

    def change(tensor):
        return {**tensor, "data": [value, *tensor["data"][1:]]}

    return change


def swap_sides(tensor):
    """Give a latent another shape of the same size."""
    channels, height, width = tensor["shape"]
    return {**tensor, "shape": [channels, 1, height * width] if height > 1 else [channels, width, height]}


def drop_a_row(output):
    change_rows(data_file(output, 2), lambda rows: rows.pop())


def key_in_two_chunks(output):
    key = pq.read_table(data_file(output, 3), columns=["key"])["key"][0].as_py()
    change_rows(data_file(output, 2), lambda rows: rows[0].update(key=key))


def key_twice(output):
    change_rows(data_file(output, 2), lambda rows: rows.append(dict(rows[0])))


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
    metadata = {**json.loads(table.schema.metadata[FOOTER_KEY]), "grow_mask_by": 9}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, FOOTER_KEY: json.dumps(metadata)}), path)


def file_of_an_overwritten_job(output):
    job = json.loads((output / "_job.json").read_text())
    (output / "_job.json").write_text(json.dumps({**job, "replaces": ["00000000"]}))
    (output / "00000000-000000-00077.parquet").write_bytes(data_file(output, 1).read_bytes())


def copy_of_a_file(output):
    path = data_file(output, 1)
    path.with_name(path.name.replace("-00001", "-00099")).write_bytes(path.read_bytes())


def other_hash(output):
    """Change the hash of the planned pairs in a footer, as if the plan was another one."""
    path = data_file(output, 2)
    table = pq.read_table(path)
    footer = {**json.loads(table.schema.metadata[CHUNK_KEY]), "hash": "0" * 32}
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, CHUNK_KEY: json.dumps(footer)}), path)


def lost_marker(output):
    next((output / "_plan").glob("*.json")).unlink()


def unknown_file(output):
    (output / "notes.txt").write_text("not a latent")


def temporary_file(output):
    (output / "_plan" / f"_tmp-{'0' * 32}").write_bytes(b"PAR1")


def rejects_file(output: Path) -> Path:
    """Return the only rejects file, of chunk 0."""
    return output / "_rejected" / data_file(output, 0).name


def missing_rejects(output):
    rejects_file(output).unlink()


def extra_rejects(output):
    path = rejects_file(output)
    path.with_name(data_file(output, 2).name).write_bytes(path.read_bytes())


def other_rejects(output):
    path = rejects_file(output)
    pq.write_table(pq.read_table(path).slice(0, 0), path)


def wrong_report(output):
    change_report(output, encoded=100)


def change_report(output: Path, **values: int) -> None:
    path = output / "_report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def wrong_receipts(output):
    """Change the number of rows in all receipts; a slow run writes several files of them."""
    for path in (output / "_receipts").iterdir():
        table = pq.read_table(path)
        wrong = pa.array([4] * len(table), pa.int64())
        pq.write_table(table.set_column(table.column_names.index("encoded"), "encoded", wrong), path)


def broken_receipts(output):
    next((output / "_receipts").iterdir()).write_bytes(b"PAR1")


def lost_chunk(output, chunk=2):
    data_file(output, chunk).unlink()


def plan_a_refresh(output):
    """Plan chunk 2 again: encode its first pair, keep the others."""
    with opened_log(output) as log:
        current = log.read_unit(0)
        revised = current.slice(2 * CHUNK_ROWS, 1).select(["key", "image_version"])
        log.revise(0, plan.revise(current, revised, pa.array([], pa.string()), pa.array([], pa.int32())))


@contextmanager
def opened_log(output):
    """Read the plan of an output, to add to it."""
    job = json.loads((output / "_job.json").read_text())["job"]
    with acquire_lease(str(output / "_lease.json"), print) as lease:
        state = OutputState(str(output), job, lease.token)
        yield PlanLog.read(state, state.inventory().plan, pa.schema([]))


def repeat_a_key_in_the_plan(output):
    with opened_log(output) as log:
        log.append(log.read_unit(0).slice(4, 1), ())


IN_CHUNK_2 = r"-000000-00002\.parquet"
DAMAGES = {
    truncate: ("file", IN_CHUNK_2, "cannot be read"),
    flip_a_byte: ("file", IN_CHUNK_2, "CRC"),
    lost_chunk: ("file", IN_CHUNK_2, "was written earlier but is missing now"),
    exchange_two_files: (
        "footer",
        IN_CHUNK_2,
        "has chunk 000000-00003 in its footer and chunk 000000-00002 in its name",
    ),
    settings_of_another_job: ("settings", IN_CHUNK_2, "grow_mask_by 9"),
    other_columns: ("columns", IN_CHUNK_2, "has the columns key, samples"),
    drop_a_row: ("keys", IN_CHUNK_2, "has 1 planned keys that are neither rows nor rejects, the first 000/000008"),
    key_in_two_chunks: ("keys", IN_CHUNK_2, "has 1 keys that are not planned for this chunk, the first 000/000009"),
    key_twice: ("keys", IN_CHUNK_2, "has 1 repeated keys, the first 000/000006"),
    in_row("samples", with_first(float("nan"))): (
        "samples",
        IN_CHUNK_2,
        "has 1 wrong rows of 3, the first 000/000007: 1 of",
    ),
    in_row("samples", swap_sides): ("shapes", IN_CHUNK_2, r"samples is \[4, "),
    in_row("crop_left", lambda left: left + 1): ("shapes", IN_CHUNK_2, "crop_left is"),
    in_row("source_width", lambda _: 0): ("shapes", IN_CHUNK_2, "a source of 0 x .* pixels cannot be encoded"),
    in_row("noise_mask", with_first(2)): ("noise_mask", IN_CHUNK_2, "pixels are neither 0 nor 1"),
    in_row("mask_coverage", lambda share: share + 1e-4): ("mask_coverage", IN_CHUNK_2, "mask_coverage is"),
    file_of_an_overwritten_job: ("orphan", "00000000-000000-00077.parquet", "belongs to an overwritten job"),
    copy_of_a_file: ("footer", "-00099.parquet", "has chunk 000000-00001 in its footer and chunk 000000-00099 in its"),
    other_hash: ("footer", IN_CHUNK_2, "has other pairs than the plan has for this chunk"),
    lost_marker: ("plan", IN_CHUNK_2, "belongs to a chunk that is not in the plan, so a part of the plan was lost"),
    unknown_file: ("unknown", "notes.txt", "move it away"),
    temporary_file: ("temporary", "_plan/_tmp-0000", "is a temporary file"),
    missing_rejects: ("rejects", "_rejected/", "does not exist, but its data file has 1 rejects"),
    extra_rejects: ("rejects", "_rejected/", "exists, but its data file has no rejects"),
    other_rejects: ("rejects", "_rejected/", "has 0 rejects that are not the 1 of its data file"),
    wrong_report: ("report", "_report.json", r"has encoded 100, not \d+"),
    wrong_receipts: (
        "receipts",
        "_receipts/",
        "has 4 rows and 1 rejects for chunk 000000-00000, but its file has 2 and 1",
    ),
    broken_receipts: ("receipts", "_receipts/", "cannot be read"),
}
"""The check, the file and the sentence that ``verify`` reports for each damage."""
