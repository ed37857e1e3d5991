"""Time, memory and size of the plan of a very long list.

The number of pairs is 2 million, or that of the environment variable ``PLANNED_PAIRS``. For 100 million, the list and
the plan need about 4 GB below pytest's ``--basetemp``.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

PAIRS = int(os.environ.get("PLANNED_PAIRS", 2_000_000))
ROW_GROUP = 131_072

FIRST_UNIT_S = 60
CPU_S_PER_MILLION = 7.6
PEAK_BYTES, PEAK_BYTES_PER_PAIR = 0.6e9, 34
"""4 GB for 100 million pairs."""


@pytest.fixture
def folder(tmp_path):
    """A temporary folder that is removed at once."""
    yield tmp_path
    shutil.rmtree(tmp_path)


def uris(template: bytes, numbers: np.ndarray) -> pa.StringArray:
    """Return URIs of 38 bytes with the number in place of nine zeros, and its first three digits as the folder."""
    digits = (numbers[:, None] // 10 ** np.arange(8, -1, -1) % 10 + ord("0")).astype(np.uint8)
    text = np.tile(np.frombuffer(template, np.uint8), (len(numbers), 1))
    text[:, 21:24], text[:, 25:34] = digits[:, :3], digits
    offsets = np.arange(0, text.size + 1, len(template), dtype=np.int32)
    return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(text))


def write_list(path: Path, pairs: int, step: int = 1) -> None:
    """Write a list of pairs, one row group at a time. Its numbers are different and not in order.

    Args:
        path: of the list.
        pairs: length of the list; a longer list begins with the lines of a shorter one.
        step: a prime number; the list has the same lines in another order for each.
    """
    schema = pa.schema([("image", pa.string()), ("mask", pa.string())])
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for start in range(0, pairs, ROW_GROUP):
            numbers = np.arange(start, min(pairs, start + ROW_GROUP)) * step % pairs * 618_033_989 % 10**9
            images = uris(b"s3://pictures/images/000/000000000.jpg", numbers)
            masks = uris(b"s3://pictures/masks-/000/000000000.png", numbers)
            writer.write_table(pa.table([images, masks], schema=schema))


PLAN = """
import json, re, sys, time
from pathlib import Path
import pyarrow as pa
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.planner import Planner
from inpaint_encode.output.state import OutputState
from inpaint_encode.settings import Chunks, RunOptions, Source
from inpaint_encode.sources import open_source

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

list_of_pairs, output = sys.argv[1:]
begun, cpu_begun = time.monotonic(), time.process_time()
found, shown = {}, 0
with acquire_lease(f"{output}/_lease.json", lambda _: None) as lease:
    state = OutputState(output, "0123abcd", lease.token)
    log = PlanLog.read(state, state.inventory().plan, pa.schema([]))
    planner = Planner(log, open_source(Source(pairs=list_of_pairs)), Chunks(), RunOptions(), lambda unit: ())
    for _ in planner.plan():
        now = {"seconds": time.monotonic() - begun, "cpu_s": time.process_time() - cpu_begun}
        found.setdefault("first", now)
        if log.pairs // 10_000_000 > shown:
            shown = log.pairs // 10_000_000
            text = ", ".join(f"{name} {value:,.0f}" for name, value in now.items())
            print(f"{log.pairs:,} pairs: {text}, {memory('VmRSS') / 1e6:,.0f} MB", file=sys.stderr, flush=True)
found["all"] = {"seconds": time.monotonic() - begun, "cpu_s": time.process_time() - cpu_begun}
counts = {"pairs": log.pairs, "repeated": log.repeated, "units": len(log.units), "chunks": len(log.chunks)}
counts["changed"] = planner.changed
print(json.dumps({**found, **counts, "peak": memory("VmHWM")}))
"""
"""Plans a list into an output, and prints the figures."""

FOLLOW = """
import json, re, sys, threading, time
from pathlib import Path
from inpaint_encode.output.resume import job_record, open_output
from inpaint_encode.output.shards import SharedRemaining, hold_output, lease_path
from inpaint_encode.settings import EncodeJob, Output, RunOptions, Source, VaeSource
from inpaint_encode.sources import open_source
from tests.metadata import row_metadata

list_of_pairs, output, shard, pairs = sys.argv[1:]
run = RunOptions(shard=shard)
job = EncodeJob(source=Source(pairs=list_of_pairs), vae=VaeSource(vae="a/vae"), output=Output(output=output), run=run)
begun, cpu_begun, first, stopped = time.monotonic(), time.process_time(), None, threading.Event()
with hold_output(output, run, lambda _: None) as lease:
    record = job_record(job, row_metadata())
    state, inventory = open_output(output, record, overwrite=False, token=lease.token, lease=lease_path(run))
    left = SharedRemaining(state, inventory, job, open_source(job.source), lambda _: None, stopped)

    def stop_when_all_is_planned():
        while left.log.pairs < int(pairs):
            time.sleep(0.1)
        stopped.set()

    threading.Thread(target=stop_when_all_is_planned, daemon=True).start()
    work = 0
    for table in left.work():
        first = first or time.monotonic() - begun
        work += table.num_rows
    cpu_s, seconds = time.process_time() - cpu_begun, time.monotonic() - begun
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
found = {"planned": left.planner.complete, "chunks": len(left.log.chunks), "work": work}
print(json.dumps({**found, "first": first, "seconds": seconds, "cpu_s": cpu_s, "peak": peak}))
"""
"""Takes the work of one shard, without encoding it; prints figures."""


def plan(folder: Path) -> dict[str, Any]:
    """Plan the list in a process of its own; return its figures."""
    command = [sys.executable, "-c", PLAN, folder / "list.parquet", folder / "out"]
    found: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return found


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_a_long_list_is_planned_in_bounded_memory(folder):
    begun = time.monotonic()
    write_list(folder / "list.parquet", PAIRS)
    size = (folder / "list.parquet").stat().st_size
    print(f"\n{PAIRS:,} lines ({size / 1e6:,.0f} MB) written in {time.monotonic() - begun:,.0f} s", flush=True)
    found = plan(folder)
    first, whole, millions = found["first"], found["all"], PAIRS / 1e6
    plan_bytes = sum(path.stat().st_size for path in (folder / "out/_plan").iterdir())
    print(f"first unit after {first['seconds']:.1f} s and {first['cpu_s']:.1f} CPU s")
    print(f"planned in {whole['seconds']:,.0f} s; {whole['cpu_s'] / millions:.2f} CPU s per million pairs")
    print(f"peak memory {found['peak'] / 1e6:,.0f} MB")
    print(f"_plan has {found['units']:,} units and {plan_bytes / 1e6:,.0f} MB, {plan_bytes / PAIRS:.1f} bytes per pair")
    assert (found["pairs"], found["repeated"]) == (PAIRS, 0)
    assert found["chunks"] >= PAIRS / 256
    assert first["seconds"] < FIRST_UNIT_S
    assert whole["cpu_s"] / millions <= CPU_S_PER_MILLION
    assert found["peak"] < PEAK_BYTES + PEAK_BYTES_PER_PAIR * PAIRS


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_a_long_list_in_another_order_gains_its_new_lines(folder):
    write_list(folder / "list.parquet", PAIRS)
    before = plan(folder)
    more = PAIRS + PAIRS // 50
    write_list(folder / "list.parquet", more, step=1_000_003)
    found = plan(folder)
    whole, millions = found["all"], more / 1e6
    print(f"\n{PAIRS:,} lines of {more:,} were planned before")
    print(f"planned in {whole['seconds']:,.0f} s; {whole['cpu_s'] / millions:.2f} CPU s per million lines")
    print(f"peak memory {found['peak'] / 1e6:,.0f} MB")
    assert (before["pairs"], found["pairs"], found["repeated"], found["changed"]) == (PAIRS, more, 0, 0)
    assert whole["cpu_s"] / millions <= 2 * CPU_S_PER_MILLION  # the plan is read too
    assert found["peak"] < PEAK_BYTES + PEAK_BYTES_PER_PAIR * more


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_two_runs_share_a_long_list_in_bounded_memory(folder):
    """One of them plans and the other follows; each gets its half of the chunks."""
    write_list(folder / "list.parquet", PAIRS)
    command = [sys.executable, "-c", FOLLOW, folder / "list.parquet", folder / "out"]
    shards = [[*command, shard, str(PAIRS)] for shard in ("0/2", "1/2")]
    runs = [subprocess.Popen(shard, stdout=subprocess.PIPE, text=True) for shard in shards]
    found = [json.loads(run.communicate()[0]) for run in runs]
    print()
    for one in found:
        kind = "plans" if one["planned"] else "follows"
        print(
            f"the run that {kind}: first chunk after {one['first']:.1f} s, {one['seconds']:,.0f} s, "
            f"{one['cpu_s'] / (PAIRS / 1e6):.2f} CPU s per million pairs, {one['peak'] / 1e6:,.0f} MB at most, "
            f"{one['work']:,} of {one['chunks']:,} chunks"
        )
        assert one["first"] < FIRST_UNIT_S
        assert one["cpu_s"] / (PAIRS / 1e6) <= CPU_S_PER_MILLION
        assert one["peak"] < PEAK_BYTES + PEAK_BYTES_PER_PAIR * PAIRS
    assert [one["planned"] for one in found].count(True) == 1
    assert found[0]["chunks"] == found[1]["chunks"] == sum(one["work"] for one in found)
