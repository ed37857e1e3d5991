"""Files that kill, fill or hold the process that decodes them cost one reject each; all others are as always."""

import io
import subprocess
import sys
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inpaint_encode.core.chunk import DecodedPair, Deferred, Pair, Reject, fetch_and_decode
from inpaint_encode.core.circuit_breaker import CircuitBreaker
from inpaint_encode.core.counters import Counters
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.core.isolation import DecodingProcess, IsolatedDecoder, IsolatedReader
from inpaint_encode.errors import JobFailed
from inpaint_encode.sources import PairReader
from inpaint_encode.sources.part_uris import row_uris
from tests import poison
from tests.warm import WARM_SITE


def jpeg(seed: int, kind: bytes = b"") -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 48, 3), np.uint8)).save(file, "JPEG")
    return poison.poisoned(file.getvalue(), kind) if kind else file.getvalue()


def write_pairs(folder, kinds: dict[str, bytes]) -> list[Pair]:
    """Write five pairs; those of ``kinds``, by the name of their file, are poisoned."""
    for number in range(5):
        for role in ("image", "mask"):
            name = f"{role}-{number}.jpg"
            (folder / name).write_bytes(jpeg(number, kinds.get(name, b"")))
    uris = [(str(number), *(f"{folder}/{role}-{number}.jpg" for role in ("image", "mask"))) for number in range(5)]
    return [Pair(*uri) for uri in uris]


def decode(pairs, reader, decoder, **options):
    breaker, counters = CircuitBreaker(reader), Counters(float)
    return list(fetch_and_decode(pairs, reader, decoder, breaker, counters, threads=2, **options))


@pytest.fixture
def reader():
    return PairReader()


@pytest.fixture
def decoder():
    return PairDecoder(sizing=Sizing(multiple=8))


@pytest.fixture
def isolated(reader, decoder, monkeypatch):
    """Decode pairs in child processes with the flaw of `tests.poison`."""
    monkeypatch.setenv(poison.VARIABLE, "1")
    monkeypatch.setattr(sys, "path", [WARM_SITE, *sys.path])

    def run(pairs, **limits):
        with DecodingProcess(reader, decoder, **limits) as process:
            return decode(pairs, IsolatedReader(reader, process), IsolatedDecoder.in_process(process))

    return run


def assert_same(found, wanted):
    assert found.pair == wanted.pair
    assert found.image[1:] == wanted.image[1:]
    assert np.array_equal(found.image.pixels, wanted.image.pixels)
    assert np.array_equal(found.mask, wanted.mask)


def test_an_image_and_a_mask_that_kill_their_process_are_the_only_rejects(tmp_path, isolated, reader, decoder):
    pairs = write_pairs(tmp_path, {})
    wanted = decode(pairs, reader, decoder)
    write_pairs(tmp_path, {"image-1.jpg": poison.CRASH, "mask-3.jpg": poison.CRASH})
    found = isolated(pairs)
    errors = {result.pair.key: result.error for result in found if isinstance(result, Reject)}
    assert errors == {"1": "image.crashed", "3": "mask.crashed"}
    assert f"{tmp_path}/image-1.jpg: the process that read and decoded it was ended by SIGSEGV" == found[1].message
    for number in (0, 2, 4):
        assert isinstance(found[number], DecodedPair)
        assert found[number].pair.key == str(number)
        assert np.array_equal(found[number].image.pixels, wanted[number].image.pixels)
        assert np.array_equal(found[number].mask, wanted[number].mask)


def test_memory_and_time_are_limited(tmp_path, isolated):
    pairs = write_pairs(tmp_path, {"image-1.jpg": poison.MEMORY, "image-2.jpg": poison.HANG})
    found = isolated(pairs, memory=2**30, cpu_seconds=4)
    assert [getattr(result, "error", None) for result in found] == [None, "image.crashed", "image.crashed", None, None]
    assert "it needed more than 1.0 GiB of memory" in found[1].message
    assert "reading or decoding took more than 4 s of a core" in found[2].message


def test_files_that_are_not_at_fault_are_decoded_as_in_the_worker_and_errors_have_their_names(
    tmp_path, isolated, reader, decoder
):
    """As after three lost nodes: nothing is rejected for it."""
    pairs = write_pairs(tmp_path, {})
    values = [(tmp_path / f"image-{number}.jpg").read_bytes() for number in range(3)]
    pq.write_table(pa.table({"image": values}), tmp_path / "images.parquet")
    rows = row_uris(f"{tmp_path}/images.parquet", pa.array([0, 1, 2]), "image").to_pylist()
    (tmp_path / "cut.jpg").write_bytes(values[0][:-300])
    pairs += [Pair(f"row {number}", uri, pairs[0].mask_uri) for number, uri in enumerate(rows)]
    pairs += [Pair("random", pairs[0].image_uri, "random:brush?seed=0&index=3")]
    pairs += [Pair("cut", f"{tmp_path}/cut.jpg", pairs[0].mask_uri), Pair("gone", f"{tmp_path}/gone.jpg", "m.png")]
    pairs += [Pair("null", rows[0], rows[0].replace("image", "images", 1)), Pair("own", rows[1], rows[1])]
    wanted, found = decode(pairs, reader, decoder), isolated(pairs)
    assert [type(result) for result in found] == [type(result) for result in wanted]
    for one, other in zip(found, wanted, strict=True):
        if isinstance(one, Reject):
            assert (one.error, one.message) == (other.error, other.message)
        else:
            assert_same(one, other)
    assert {"image.truncated", "fetch.not_found"} <= {one.error for one in found if isinstance(one, Reject)}


def test_a_child_that_cannot_start_fails_the_job_and_rejects_nothing(tmp_path, reader, decoder, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with (
        DecodingProcess(reader, decoder) as process,
        pytest.raises(JobFailed, match="the process that decodes files one by one cannot be started"),
    ):
        decode(write_pairs(tmp_path, {}), IsolatedReader(reader, process), IsolatedDecoder.in_process(process))


def test_pairs_over_the_memory_of_a_task_are_deferred_and_decoded_in_parts(tmp_path, reader, decoder):
    pairs = write_pairs(tmp_path, {})
    size = 40 * 48 * 3 + 40 * 48 // 8
    whole = decode(pairs, reader, decoder)
    left, parts = pairs, []
    while left:
        part = decode(left, reader, decoder, max_bytes=2 * size)
        left = [result.pair for result in part if isinstance(result, Deferred)]
        parts.append([result for result in part if not isinstance(result, Deferred)])
    assert [len(part) for part in parts] == [2, 2, 1]
    for found, wanted in zip(chain.from_iterable(parts), whole, strict=True):
        assert_same(found, wanted)
    assert len(decode(pairs, reader, decoder, max_bytes=1)) == 5


def test_masks_of_an_image_over_the_limit_are_not_fetched_with_it(tmp_path, reader, decoder, monkeypatch):
    monkeypatch.setattr("inpaint_encode.core.chunk.MAX_MASK_BYTES", 1)
    pairs = write_pairs(tmp_path, {})
    pairs = [pair._replace(image_uri=pairs[0].image_uri) for pair in pairs]
    found = decode(pairs, reader, decoder)
    assert [type(result) for result in found] == [DecodedPair, *[Deferred] * 4]


@pytest.mark.parametrize(("limit", "code"), [("CPU_S", -27), ("DECODE_S", -14)])
def test_a_decoder_that_hangs_ends_its_worker(limit, code):
    """Whether it computes or waits, and without Python's help."""
    script = f"""
import threading, time
from inpaint_encode.core import isolation
isolation.{limit} = 0.3
with isolation.time_limit("decode"):
    pass
with isolation.time_limit("decode"):
    {"while True: pass" if limit == "CPU_S" else "threading.Event().wait()"}
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=30).returncode == code
