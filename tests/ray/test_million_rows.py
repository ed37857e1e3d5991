"""Time and memory of the driver for a million pairs."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inpaint_encode.core.chunk import Pair
from inpaint_encode.output import plan
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.resume import Remaining, job_record, open_output, row_metadata
from inpaint_encode.schema import REJECTS
from inpaint_encode.settings import VaeSource
from inpaint_encode.sources import open_source
from inpaint_encode.stores import storage
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata
from tests.outputs import whole_report
from tests.rows import encoded_pair, groups_of

DONE = 1_000_000
NEW = 50


@pytest.fixture
def folder(tmp_path):
    """A temporary folder that is removed at once: it holds two million files."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_resume_over_a_million_done_rows(folder, make_job, vae_folder):
    """From the command to the first new row in under 60 s, with under 1 GB in the driver."""
    make_sources(folder / "in")
    job = make_job(folder / "in/images", folder / "in/masks", folder / "out")
    begun = time.monotonic()
    make_done(job)
    print(f"{DONE:,} rows made in {time.monotonic() - begun:,.0f} s")
    for number in range(NEW):
        for side, mode in (("images", "RGB"), ("masks", "L")):
            Image.new(mode, (16, 16)).save(folder / "in" / side / f"new-{number}.png")
    seconds, peak = resume(job, vae_folder)
    print(f"first new row after {seconds:.1f} s, peak memory of the driver {peak / 1e6:,.0f} MB")
    report = whole_report(str(folder / "out"))
    assert (report["encoded"], report["this_run"]["encoded"]) == (DONE + NEW, NEW)
    assert seconds < 60
    assert peak < 1e9


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_manifest_of_a_million_lines_is_planned(folder):
    """Planning takes less than 60 s and 1 GB, measured in a process of its own."""
    number = pa.array(range(DONE), pa.int64())
    names = number.cast(pa.string())
    columns = {
        "image": pc.binary_join_element_wise("images/a-folder/", names, ".jpg", ""),
        "mask": pc.binary_join_element_wise("masks/a-folder/", names, ".png", ""),
        "caption": pc.binary_join_element_wise(
            "a photograph of some thing on a table beside a window, no. ", names, ""
        ),
        "id": number,
    }
    pq.write_table(pa.table(columns), folder / "list.parquet")
    command = [sys.executable, "-c", PLAN, folder / "list.parquet", folder / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    pairs, seconds, peak = map(float, done.stdout.split())
    print(f"{pairs:,.0f} lines planned in {seconds:.1f} s, peak memory {peak / 1e6:,.0f} MB")
    assert pairs == DONE
    assert seconds < 60
    assert peak < 1e9


PLAN = """
import sys, time
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.state import OutputState
from inpaint_encode.output.resume import Remaining
from inpaint_encode.settings import EncodeJob, Output, Source, VaeSource
from inpaint_encode.sources import open_source
from tests.ray.test_million_rows import resident_peak

manifest, output = sys.argv[1:]
job = EncodeJob(source=Source(pairs=manifest), vae=VaeSource(vae="none"), output=Output(output=output))
begun = time.monotonic()
with acquire_lease(f"{output}/_lease.json", lambda _: None) as lease:
    state = OutputState(output, "0123abcd", lease.token)
    left = Remaining(state, state.inventory(), job, open_source(job.source))
    for _ in left.work():
        pass
print(left.log.pairs, time.monotonic() - begun, resident_peak("self"))
"""


def make_sources(folder: Path) -> None:
    """Write empty files; the pairs are done already, so nothing reads them."""
    for side, suffix in (("images", "jpg"), ("masks", "png")):
        for block in range(DONE // 1_000):
            directory = folder / side / f"{block:04d}"
            directory.mkdir(parents=True)
            for number in range(1_000):
                os.close(os.open(f"{directory}/{number:03d}.{suffix}", os.O_CREAT | os.O_WRONLY))


def make_done(job) -> None:
    """An output in which every planned pair is a row, written by the product's own state."""
    source = VaeSource(vae=job.vae.vae)
    metadata = row_metadata(job.rows, job.decoding, vae_metadata(load_vae(source), source))
    record = job_record(job, metadata)
    output = storage.normalize_uri(job.output.output)
    with acquire_lease(f"{output}/_lease.json", print) as lease:
        state, inventory = open_output(output, record, overwrite=False, token=lease.token)
        works = [
            work
            for table in Remaining(state, inventory, job, open_source(job.source)).work()
            for work in table.to_pylist()
        ]
    for work in works:
        planned = plan.read_chunk(work["part"], work["chunk"], work["hash"]).select(Pair._fields).to_pylist()
        rows = [encoded_pair(pair.pop("key"), SAMPLES, MASK, **pair) for pair in planned]
        state.commit(work, *groups_of(rows, metadata), REJECTS.empty_table(), check=lambda: None)


SAMPLES, MASK = np.zeros((4, 1, 1), np.float32), np.zeros((8, 8), np.uint8)


def resume(job, vae_folder) -> tuple[float, float]:
    """Run the command; return the seconds to the first new row and the driver's peak of resident bytes."""
    source, output = job.source, Path(job.output.output)
    done = len(list(output.glob("*.parquet")))
    arguments = ["--images", source.images, "--masks", source.masks, "--vae", vae_folder, "--output", output]
    command = [sys.executable, "-m", "inpaint_encode", "encode", *arguments, "--samples-dtype", "float32"]
    begun, first, peak = time.monotonic(), None, 0.0
    process = subprocess.Popen([str(part) for part in command])
    while process.poll() is None:
        peak = max(peak, resident_peak(process.pid))
        if first is None and sum(1 for _ in output.glob("*.parquet")) > done:
            first = time.monotonic() - begun
        time.sleep(0.2)
    assert process.returncode == 0
    return first, peak


def resident_peak(pid: int | str) -> float:
    try:
        return 1024.0 * int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])
    except (OSError, TypeError):
        return 0.0
