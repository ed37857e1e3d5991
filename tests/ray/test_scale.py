"""A job that is nearly done at a size where anything kept for every key in Python would show."""

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

from inpaint_encode.job.transfer import ENCODED, table_of
from inpaint_encode.output import plan
from inpaint_encode.output.lease import hold
from inpaint_encode.output.parquet import data_table
from inpaint_encode.output.resume import job_record, open_output, remaining
from inpaint_encode.schema import REJECTS, data_schema, pack_mask
from inpaint_encode.settings import VaeSource
from inpaint_encode.sources import find_pairs
from inpaint_encode.stores import storage
from inpaint_encode.vae import load_vae, vae_facts
from tests.outputs import whole_report

DONE = 1_000_000
NEW = 50


@pytest.fixture
def folder(tmp_path):
    """Two million files are not left behind for a later session to remove."""
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
    """In a process of its own, whose peak is of nothing else: well under 60 s, with under 1 GB."""
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
from inpaint_encode.output.lease import hold
from inpaint_encode.output.state import Ledger
from inpaint_encode.output.resume import remaining
from inpaint_encode.settings import EncodeJob, Output, Source, VaeSource
from inpaint_encode.sources import find_pairs
from tests.ray.test_scale import resident_peak

manifest, output = sys.argv[1:]
job = EncodeJob(source=Source(pairs=manifest), vae=VaeSource(vae="none"), output=Output(output=output))
begun = time.monotonic()
with hold(f"{output}/_lease.json", lambda _: None) as lease:
    ledger = Ledger(output, "0123abcd", lease.token)
    left = remaining(ledger, ledger.inventory(), job, find_pairs(job.source))
print(left.pairs, time.monotonic() - begun, resident_peak("self"))
"""


def make_sources(folder: Path) -> None:
    """Empty files: the pairs are done, so that nothing ever reads them."""
    for side, suffix in (("images", "jpg"), ("masks", "png")):
        for block in range(DONE // 1_000):
            directory = folder / side / f"{block:04d}"
            directory.mkdir(parents=True)
            for number in range(1_000):
                os.close(os.open(f"{directory}/{number:03d}.{suffix}", os.O_CREAT | os.O_WRONLY))


def make_done(job) -> None:
    """An output in which every planned pair is a row, written by the product's own ledger."""
    source = VaeSource(vae=job.vae.vae)
    record = job_record(job, vae_facts(load_vae(source), source).as_dict())
    output = storage.normalize_uri(job.output.output)
    with hold(f"{output}/_lease.json", print) as lease:
        ledger, inventory = open_output(output, record, overwrite=False, token=lease.token)
        left = remaining(ledger, inventory, job, find_pairs(job.source))
    schema = data_schema(record["rows"])
    for work in left.work.to_pylist():
        encoded = tiny_rows(plan.read_chunk(work["part"], work["chunk"]))
        ledger.publish(work, [data_table(encoded, schema)], schema, REJECTS.empty_table())


def tiny_rows(pairs: pa.Table) -> pa.Table:
    tensors = {"samples": np.zeros(4, np.float32), "samples_shape": [4, 1, 1]}
    tensors |= {"noise_mask": pack_mask(np.zeros(64, np.uint8)), "height": 8, "width": 8, "mask_coverage": 0.0}
    return table_of([{**pair, **tensors} for pair in pairs.to_pylist()], ENCODED)


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
