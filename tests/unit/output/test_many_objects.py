"""Time, requests and memory of planning the objects of a bucket, half of them images and half masks.

The number of objects is 300,000, or that of the environment variable ``LISTED_OBJECTS``. With 1,000,000 on an idle
machine, they were written in 419 s, and planned in 53 s with 48 s of CPU time and 1,006 requests; memory grew from 383
to 510 MB. On a busy machine, the server of the tests may answer PUTs with errors from about 400,000 objects on.
"""

import asyncio
import json
import os
import subprocess
import sys
import time

import obstore
import pytest
from obstore.store import S3Store

from tests.proxy import FaultyProxy

OBJECTS = int(os.environ.get("LISTED_OBJECTS", 300_000))
FOLDERS = 100
GROWTH_BYTES = 250e6

PLAN = """
import json, re, sys, time
from pathlib import Path
from inpaint_encode.settings import Source
from tests.plans import PlanningRun

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

prefix, output = sys.argv[1:]
begun, cpu_begun, before = time.monotonic(), time.process_time(), peak()
run = PlanningRun(output, Source(images=f"{prefix}/images", masks=f"{prefix}/masks"), chunk_rows=256).plan()
found = {"seconds": time.monotonic() - begun, "cpu_s": time.process_time() - cpu_begun, "before": before}
print(json.dumps({**found, "peak": peak(), "pairs": run.log.pairs, "units": len(run.log.units)}))
"""
"""Plans two prefixes into a folder, and prints figures."""


async def put_objects(store: S3Store, prefix: str) -> None:
    """Write the objects, each of one byte, some hundred at a time."""
    paths = (
        f"{prefix}/{side}/{number % FOLDERS:03}/{number:08}.png"
        for number in range(OBJECTS // 2)
        for side in ("images", "masks")
    )

    async def put_some() -> None:
        for path in paths:
            await obstore.put_async(store, path, b"x")

    await asyncio.gather(*(put_some() for _ in range(128)))


@pytest.fixture
def prefix(s3, tmp_path):
    begun = time.monotonic()
    uri = s3.uri(tmp_path.name)
    _, _, bucket, path = uri.split("/", 3)
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    store = S3Store(bucket, endpoint=endpoint, region="us-east-1", client_options={"allow_http": True})
    asyncio.run(put_objects(store, path))
    print(f"\n{OBJECTS:,} objects written in {time.monotonic() - begun:,.0f} s", flush=True)
    return uri


@pytest.mark.long
@pytest.mark.timeout(3 * 3600)
def test_the_objects_of_a_bucket_are_planned_in_bounded_memory(s3, prefix, tmp_path):
    with FaultyProxy(s3) as proxy:
        command = [sys.executable, "-c", PLAN, prefix, str(tmp_path / "out")]
        environment = {**os.environ, **proxy.environment}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        requests = proxy.counts["requests"]
    found = json.loads(done.stdout)
    print(f"planned in {found['seconds']:,.0f} s, {found['cpu_s']:,.0f} CPU s, with {requests:,} requests")
    print(f"memory {found['before'] / 1e6:,.0f} MB before, {found['peak'] / 1e6:,.0f} MB at most")
    assert found["pairs"] == OBJECTS // 2
    assert found["peak"] - found["before"] < GROWTH_BYTES
    assert requests < 1.5 * OBJECTS / 1000 + 100
