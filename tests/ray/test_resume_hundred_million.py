"""A job of 100 million rows resumes: one unit is not encoded yet, all others have their files and their index.

The number of chunks is 390,625, or that of the environment variable ``RESUMED_CHUNKS``. Data files of finished units
have one byte: a resumed run only lists them.
"""

import json
import os
import secrets
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.demo.pairs import write_random_pairs
from inpaint_encode.output import plan
from inpaint_encode.output.index_files import encode_index_file, unit_index_path
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.plan_log import MarkedChunk, Marker, PlanLog
from inpaint_encode.output.resume import Remaining, job_record, open_output, row_metadata
from inpaint_encode.schema import PAIRS, UNIT_INDEX
from inpaint_encode.sources import open_source
from inpaint_encode.stores import storage
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata
from tests.ray.test_million_rows import resident_peak

CHUNKS = int(os.environ.get("RESUMED_CHUNKS", 390_625))
CHUNKS_PER_UNIT, ROWS = 256, 256

FIRST_ROW_S, PEAK_BYTES = 60, 2e9
"""Limits for 390,625 chunks."""


def add_finished_unit(log: PlanLog, state, unit: int, chunks: int) -> None:
    """Write the plan, the data files and the index of a unit; its parts have one pair a chunk instead of 256."""
    columns = {name: [""] * chunks for name in ("image_uri", "mask_uri", "image_version", "mask_version")}
    columns |= {"key": [f"{unit}/{number}" for number in range(chunks)], "error": [None] * chunks}
    columns |= {"chunk": np.arange(chunks), "mask_index": [0] * chunks, "line": [0] * chunks, "encode": [True] * chunks}
    table = pa.table([columns[name] for name in PAIRS.names], schema=PAIRS)
    parts, tables = log.write_parts(unit, 0, table)
    hashes = [secrets.token_hex(16) for _ in range(chunks)]
    of_part = np.repeat(np.arange(len(tables)), [part.num_rows for part in tables]).tolist()
    marked = [MarkedChunk(number, ROWS, hashes[number], of_part[number], 0) for number in range(chunks)]
    marker = Marker(
        unit=unit,
        revision=0,
        previous=log.previous(unit, 0),
        slices=(),
        parts=parts,
        chunks=tuple(marked),
    )
    data = marker.encode()
    storage.write(state.uri(log.marker_path(unit, 0)), data)
    log.add(marker, data)
    rows = []
    for number in range(chunks):
        path = Path(state.data_uri(plan.chunk_name(unit, number)))
        path.write_bytes(b"x")
        rows.append(
            {"chunk": number, "revision": 0, "hash": hashes[number], "encoded": ROWS, "rejected": 0, "errors": []}
            | {"data_bytes": 1, "version": storage.stat(str(path)).version, "rejects_version": ""}
            | {"group_rows": [32] * 8, "group_bytes": [1_000_000] * 8, "footer_bytes": 9_000}
        )
    index = pa.Table.from_pylist([{name: row[name] for name in UNIT_INDEX.names} for row in rows], UNIT_INDEX)
    storage.write(state.uri(unit_index_path(state.job, unit, 0)), encode_index_file(index))


@pytest.fixture
def job(tmp_path, make_job):
    """A job whose output lacks its last unit: 40 pairs of a list."""
    keys = write_random_pairs(tmp_path / "in", 40, seed=1, smallest=32, largest=64)
    names = {key: [next((tmp_path / "in" / side).glob(f"{key}.*")) for side in ("images", "masks")] for key in keys}
    lines = [json.dumps({"image": str(image), "mask": str(mask)}) for image, mask in names.values()]
    (tmp_path / "list.jsonl").write_text("\n".join(lines))
    job = make_job("", "", tmp_path / "out", pairs=tmp_path / "list.jsonl", chunk_rows=8)
    metadata = row_metadata(job.rows, job.decoding, vae_metadata(load_vae(job.vae), job.vae))
    begun = time.monotonic()
    with acquire_lease(f"{job.output.output}/_lease.json", print) as lease:
        state, _ = open_output(job.output.output, job_record(job, metadata), overwrite=False, token=lease.token)
        log = PlanLog(state, pa.schema([]))
        for unit, start in enumerate(range(0, CHUNKS, CHUNKS_PER_UNIT)):
            add_finished_unit(log, state, unit, min(CHUNKS_PER_UNIT, CHUNKS - start))
        left = Remaining(state, state.inventory(), job, open_source(job.source))
        assert sum(table.num_rows for table in left.work()) == 5
        assert len(left.done) == CHUNKS
    print(
        f"\n{CHUNKS:,} chunks in {len(left.log.units):,} units written in {time.monotonic() - begun:,.0f} s", flush=True
    )
    return job


@pytest.mark.long
@pytest.mark.timeout(2 * 3600)
def test_a_hundred_million_rows_are_resumed(job, ray_cluster, vae_folder):
    output, begun, first, peak = Path(job.output.output), time.monotonic(), None, 0.0
    job_id = json.loads((output / "_job.json").read_text())["job"]
    unit = (CHUNKS + CHUNKS_PER_UNIT - 1) // CHUNKS_PER_UNIT
    options = ["--pairs", job.source.pairs, "--vae", vae_folder, "--output", output, "--chunk-rows", "8"]
    command = [sys.executable, "-m", "inpaint_encode", "encode", *options, "--samples-dtype", "float32"]
    environment = {**os.environ, "RAY_ADDRESS": ray_cluster}
    process = subprocess.Popen([str(part) for part in command], env=environment)
    while first is None and process.poll() is None:
        peak = max(peak, resident_peak(process.pid))
        if any((output / f"{job_id}-{plan.chunk_name(unit, number)}.parquet").exists() for number in range(5)):
            first = time.monotonic() - begun
        time.sleep(0.05)
    process.kill()
    process.wait()
    print(f"first new row after {first:.1f} s, with at most {peak / 1e6:,.0f} MB in the driver", flush=True)
    assert first < FIRST_ROW_S
    assert peak < PEAK_BYTES
