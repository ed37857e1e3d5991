"""Time and memory of indexing tars with a million members."""

import importlib
import json
import subprocess
import sys
import tarfile
import threading
import time

import pytest

from inpaint_encode.settings import Source
from inpaint_encode.sources import open_source, tars
from inpaint_encode.sources import pairs as source_pairs
from tests.unit.sources.make_sources import found_pairs, sample, write_tar

PEAK_BYTES, FOUR_PEAK_BYTES = 350e6, 500e6
"""Limits of the memory that the pairs of a million members need, in one tar and in four tars."""

READ = """
import json, re, sys, time
from pathlib import Path
from inpaint_encode.settings import Source
from inpaint_encode.sources import open_source

def memory(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

source, begun, before = open_source(Source(pairs=sys.argv[1])), time.process_time(), memory("VmRSS")
pairs = sum(batch.pairs.num_rows for batch in source.batches({}))
print(json.dumps({"pairs": pairs, "cpu_s": time.process_time() - begun, "bytes": memory("VmHWM") - before}))
"""


def write_members(path, samples: int) -> None:
    """Write a tar with an image, a mask and a text for each sample."""
    with path.open("wb", buffering=2**20) as file:
        for number in range(samples):
            for suffix in ("jpg", "mask.png", "json"):
                info, data = tarfile.TarInfo(f"{number // 1000:05d}/{number:09d}.{suffix}"), b"%0100d" % number
                info.size = len(data)
                file.write(info.tobuf(tarfile.USTAR_FORMAT) + data.ljust(tarfile.BLOCKSIZE, b"\0"))
        file.write(bytes(2 * tarfile.BLOCKSIZE))


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("count", "limit"), [(1, PEAK_BYTES), (4, FOUR_PEAK_BYTES)])
def test_a_million_members(tmp_path, count, limit):
    samples = 333_333 // count
    for number in range(count):
        write_members(tmp_path / f"{number}.tar", samples)
    output = subprocess.run([sys.executable, "-c", READ, str(tmp_path)], check=True, stdout=subprocess.PIPE, text=True)
    for number in range(count):
        (tmp_path / f"{number}.tar").unlink()
    found = json.loads(output.stdout)
    print(
        f"\n{3 * count * samples:,} members in {count} tars: {found['cpu_s']:.1f} CPU s, {found['bytes'] / 1e6:,.0f} MB"
    )
    assert found["pairs"] == count * samples
    assert found["bytes"] <= limit


def test_tars_wait_for_memory_and_their_order_stays(tmp_path, monkeypatch):
    for number in range(20):
        write_tar(f"{tmp_path}/{number:02d}.tar", sample(f"a{number}"))
    expected = found_pairs(Source(pairs=str(tmp_path)))
    monkeypatch.setattr(tars, "AHEAD_BYTES", 0)
    monkeypatch.setattr("inpaint_encode.sources.tar_index._RESERVE_EVERY", 1)
    assert found_pairs(Source(pairs=str(tmp_path))) == expected


def test_waiting_tars_end_with_an_error():
    ahead, ended = tars._ReadAhead(), []

    def reserve():
        with pytest.raises(tars.CancelledError):
            ahead.reserve(1, 2**40)
        ended.append(True)

    thread = threading.Thread(target=reserve)
    thread.start()
    time.sleep(0.1)
    assert not ended
    ahead.reserve(0, 2**40)  # the due tar does not wait
    ahead.end()
    thread.join(10)
    assert ended


@pytest.mark.parametrize("where", ["tar_index.member_uris", "batches.with_random_masks"])
def test_waiting_tars_end_when_the_pairs_of_another_cannot_be_made(tmp_path, monkeypatch, where):
    """Also while the error is kept, and with it everything that was in use."""
    for number in range(4):
        write_tar(f"{tmp_path}/{number:02d}.tar", sample(f"a{number}"))
    monkeypatch.setattr(tars, "AHEAD_BYTES", 0)
    monkeypatch.setattr("inpaint_encode.sources.tar_index._RESERVE_EVERY", 1)

    monkeypatch.setattr(source_pairs, "BATCH_PAIRS", 1)
    module, name = where.split(".")
    module = importlib.import_module(f"inpaint_encode.sources.{module}")
    succeed = getattr(module, name)

    def fail(*arguments):
        if threading.current_thread() is not threading.main_thread():
            return succeed(*arguments)
        time.sleep(0.2)  # until the other tars wait
        raise MemoryError("no memory")

    monkeypatch.setattr(module, name, fail)
    others = {*threading.enumerate()}
    with pytest.raises(MemoryError) as kept:
        list(open_source(Source(pairs=str(tmp_path), random_masks=1)).batches({}))
    ended = time.monotonic() + 10
    while any(thread.name.startswith("requests") for thread in {*threading.enumerate()} - others):
        assert time.monotonic() < ended
        time.sleep(0.05)
    assert kept.value.args == ("no memory",)
