"""Time, memory and requests of opening an output of 100 million rows by its index.

The number of data files is 390,625, or that of the environment variable ``INDEXED_FILES``. Only one of them exists. The
index needs about 2 GB, and its writing 1.4 GB for temporary files.
"""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pytest

from inpaint_encode.output import plan
from inpaint_encode.output.index_files import (
    encode_index_file,
    read_note,
    unit_index_path,
    unit_keys_path,
)
from inpaint_encode.output.plan_log import Unit
from inpaint_encode.schema import KEY_INDEX, UNIT_INDEX
from inpaint_encode.stores import storage
from tests.indexed import IndexedRun, write_pairs
from tests.proxy import FaultyProxy

FILES = int(os.environ.get("INDEXED_FILES", 390_625))
FILES_PER_UNIT, GROUPS, GROUP_ROWS = 256, 8, 32

CPU_S, PEAK_BYTES, REQUESTS_BY_KEY = 10, 500e6, 3
"""Limits for a rank: CPU time and requests to open an output and to read a row, and memory with a shuffled epoch."""

OPEN = """
import json, re, sys, time
from pathlib import Path

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

from inpaint_encode import open_latents
from inpaint_encode.reader import sampler

def report(**found):
    figures = {"cpu_s": time.process_time(), "rss": memory("VmRSS"), "peak": memory("VmHWM")}
    print(json.dumps({**figures, **found}), flush=True)
    sys.stdin.readline()

report()
dataset = open_latents(sys.argv[1])
report(rows=len(dataset))
key = dataset[sys.argv[2]]["key"]
report(key=key)
iter(dataset.stream(batch_size=8, shuffle=True, seed=1, rank=3, world_size=64))
rows = sampler.shard(range(len(dataset)), 3, 64)
windows = sampler.windows(dataset.groups.index.sizes, rows, sampler.Shuffle(1, 0, 16))
report(rows=sum(map(len, windows)), expected=len(rows))
"""
"""Opens an output, reads a row by its key, and orders a rank's rows of an epoch; prints figures after each step."""


def add_unit(run: IndexedRun, unit: int, files: int) -> None:
    """Add a unit to the plan and to the results, and write its index, as if all its chunks were committed."""
    random = np.random.default_rng(unit)
    log, state = run.left.log, run.state
    versions = [f'"{random.bytes(16).hex()}"' for _ in range(files)]
    rows = []
    log.units.append(Unit(unit))
    log.units[unit].revisions, log.units[unit].chunks = [()], set(range(files))
    for chunk, version in enumerate(versions):
        name, chunk_hash = plan.chunk_name(unit, chunk), version[1:-1]
        log.chunks[name] = plan.PlannedChunk(0, chunk_hash, "", GROUPS * GROUP_ROWS)
        run.results[name] = type(next(iter(run.results.values())))(
            GROUPS * GROUP_ROWS, 0, {}, 8_400_000, version=version, rejects_version=""
        )
        groups = random.integers(1_000_000, 1_100_000, GROUPS).tolist()
        row = run.results[name].to_receipt() | {"chunk": chunk, "revision": 0, "hash": chunk_hash}
        rows.append(row | {"group_rows": [GROUP_ROWS] * GROUPS, "group_bytes": groups, "footer_bytes": 9_000})
    count = files * GROUPS * GROUP_ROWS
    places = random.permutation(count)
    columns = [
        np.sort(random.integers(2**64, size=count, dtype=np.uint64)),
        (places // (GROUPS * GROUP_ROWS)).astype(np.uint32),
        (places // GROUP_ROWS % GROUPS).astype(np.uint16),
    ]
    path = unit_index_path(state.job, unit, 0)
    table = pa.Table.from_pylist([{name: row[name] for name in UNIT_INDEX.names} for row in rows], UNIT_INDEX)
    storage.write(state.uri(path), encode_index_file(table))
    storage.write(state.uri(unit_keys_path(path)), encode_index_file(pa.table(columns, schema=KEY_INDEX)))


@pytest.fixture
def output(s3, tmp_path, make_job):
    """An output whose first unit is real and has one file; the others have only an index."""
    uri = s3.uri(tmp_path.name)
    run = IndexedRun(uri, make_job, write_pairs(tmp_path / "list.jsonl", ["the key"])).commit()
    begun = time.process_time()
    for unit, start in enumerate(range(1, FILES, FILES_PER_UNIT), 1):
        add_unit(run, unit, min(FILES_PER_UNIT, FILES - start))
    print(f"\n{len(run.left.log.units):,} units fabricated in {time.process_time() - begun:,.0f} CPU s", flush=True)
    begun, cpu_begun = time.monotonic(), time.process_time()
    run.left.index.complete(run.results, run.state.inventory())
    run.end()
    seconds, cpu_s = time.monotonic() - begun, time.process_time() - cpu_begun
    print(f"index of {FILES:,} files written in {seconds:,.0f} s, {cpu_s:,.0f} CPU s", flush=True)
    return uri


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_an_output_of_a_hundred_million_rows(s3, output):
    note = read_note(output)
    sizes = {
        path: size for page in storage.list_objects(output) for path, size in zip(page.paths, page.sizes, strict=True)
    }
    for name, part in {"units": ".0.parquet", "keys of units": ".0-keys", "files": "-files-", "keys": "-keys-"}.items():
        found = [size for path, size in sizes.items() if part in path and (name != "keys" or path in note.buckets)]
        print(f"{name}: {len(found):,} files, {sum(found) / 1e6:,.1f} MB")
    with FaultyProxy(s3) as proxy:
        environment = {**os.environ, **proxy.environment}
        command = [sys.executable, "-c", OPEN, output, "the key"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        steps = []
        for _ in range(4):
            steps.append({**json.loads(child.stdout.readline()), "requests": proxy.counts["requests"]})
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.wait() == 0
    imported, opened, by_key, ordered = steps
    open_s = opened["cpu_s"] - imported["cpu_s"]
    print(f"imports: {imported['cpu_s']:.1f} CPU s, {imported['rss'] / 1e6:,.0f} MB")
    print(f"open_latents and len: {open_s:.1f} CPU s, {opened['requests']} requests, {opened['rss'] / 1e6:,.0f} MB")
    key_requests = by_key["requests"] - opened["requests"]
    print(f"a row by its key: {by_key['cpu_s'] - opened['cpu_s']:.2f} CPU s, {key_requests} requests")
    ordered_s = ordered["cpu_s"] - by_key["cpu_s"]
    print(f"order of a rank's {ordered['rows']:,} rows: {ordered_s:.1f} CPU s, {ordered['rss'] / 1e6:,.0f} MB")
    peaks = [step["peak"] for step in steps]
    print(f"peak memory after each step: {', '.join(f'{peak / 1e6:,.0f}' for peak in peaks)} MB")
    assert opened["rows"] == note.rows == 1 + (FILES - 1) * GROUPS * GROUP_ROWS
    assert by_key["key"] == "the key"
    assert open_s <= CPU_S
    assert key_requests <= REQUESTS_BY_KEY
    assert ordered["rows"] == ordered["expected"]
    assert max(peaks) <= PEAK_BYTES
