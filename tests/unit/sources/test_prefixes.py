"""What listing costs the process that does it, on the real S3 server."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest
import stamina

from inpaint_encode.stores import s3 as clients
from inpaint_encode.stores import storage

OBJECTS = 100_000
MOST_BYTES = 150
"""An object, in the process that lists, at its peak."""

MOST_BYTES_WITHOUT_SOME_MASKS = 250
"""The same where names on both sides are not the same, so that keys must be looked up, and what is paired is copied."""

LIST = """
import pathlib, re, sys, time
from inpaint_encode.settings import Source
from inpaint_encode.sources import find_pairs

def resident(what):
    return 1024 * int(re.search(rf"{what}:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

def pairs_below(prefix):
    return find_pairs(Source(images=f"{prefix}/images", masks=f"{prefix}/masks"))

pairs_below(sys.argv[1])  # what clients and libraries take at their first use is not the listing's
before = resident("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
begun = time.monotonic()
found = pairs_below(sys.argv[2])
seconds = time.monotonic() - begun
print(found.pairs.num_rows, seconds, resident("VmHWM") - before, found.pairs.nbytes)
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_objects_under_one_prefix(s3):
    small, large = s3.uri("listing-small"), s3.uri("listing-large")
    begun = time.monotonic()
    fill(small, 2_000)
    fill(large, OBJECTS)
    print(f"\n{OBJECTS:,} objects written in {time.monotonic() - begun:,.0f} s")
    assert bytes_an_object(small, large, OBJECTS // 2) <= MOST_BYTES
    for number in range(0, OBJECTS // 2, 100):
        storage.delete(f"{large}/masks/{number // 1000:03d}/photograph-{number:06d}.png")
    assert bytes_an_object(small, large, OBJECTS // 200 * 99) <= MOST_BYTES_WITHOUT_SOME_MASKS


def bytes_an_object(small: str, large: str, expected: int) -> float:
    done = subprocess.run([sys.executable, "-c", LIST, small, large], capture_output=True, text=True, check=True)
    pairs, seconds, peak, kept = map(float, done.stdout.split())
    print(
        f"{pairs:,.0f} pairs of {OBJECTS:,} objects found in {seconds:.1f} s; memory rose by {peak / 1e6:.1f} MB at "
        f"most, {peak / OBJECTS:.0f} bytes an object, of which the table of pairs keeps {kept / OBJECTS:.0f}"
    )
    assert pairs == expected
    return peak / OBJECTS


def fill(prefix: str, objects: int) -> None:
    """Half of them images and half of them their masks, in folders of a thousand."""
    bucket, _, below = prefix.removeprefix("s3://").partition("/")
    put = stamina.retry(on=obstore.exceptions.BaseError, attempts=6)(obstore.put)

    def write(number: int) -> None:
        name = f"{number // 1000:03d}/photograph-{number:06d}"
        for path in (f"images/{name}.jpg", f"masks/{name}.png"):
            put(clients.connect(bucket), f"{below}/{path}", b"1")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(objects // 2)))
