"""Large images wait for their share of the machine's memory; small ones do not."""

import io
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from inpaint_encode.core.decode import PairDecoder, decode_image, memory
from inpaint_encode.core.decode.memory import UNCOUNTED_PIXELS, DecodingMemory
from inpaint_encode.core.geometry import Sizing

HOLD = """
import sys, time
from inpaint_encode.core.decode import memory
memory.machine_memory = lambda: int(sys.argv[1])
with memory.DecodingMemory() as held:
    held.reserve(2**25)
    print("held", flush=True)
    time.sleep(60)
"""
TWO_SHARES = 2 * 4 * 2**28


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with memory for two shares, whose locks are in a folder of their own."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(memory, "machine_memory", lambda: TWO_SHARES)
    memory._lock_folder.cache_clear()
    yield tmp_path
    memory._lock_folder.cache_clear()


def seconds_to_reserve(pixels: int) -> float:
    start = time.monotonic()
    with DecodingMemory() as held:
        held.reserve(pixels)
    return time.monotonic() - start


def test_a_large_image_waits_for_another_process_and_a_killed_one_frees_its_shares(machine):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(TWO_SHARES)], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        assert seconds_to_reserve(UNCOUNTED_PIXELS) < 0.5
        threading.Timer(0.5, process.kill).start()
        assert seconds_to_reserve(UNCOUNTED_PIXELS + 1) > 0.4
    finally:
        process.kill()
        process.communicate()


def test_images_larger_than_the_machine_are_decoded_one_at_a_time(machine):
    with DecodingMemory() as held:
        held.reserve(2**30)
        held.reserve(2**30)  # replaces the first
        assert len(list(machine.glob("inpaint-encode-*/share-*"))) == 2
    assert seconds_to_reserve(2**30) < 0.5


def test_a_folder_of_another_user_is_not_used(machine, caplog):
    memory._lock_folder().chmod(0o777)
    memory._lock_folder.cache_clear()
    assert memory._lock_folder() is None
    assert "no private folder" in caplog.text
    assert seconds_to_reserve(2**30) < 0.5


def test_images_and_masks_reserve_what_they_decode(monkeypatch):
    reserved = []
    monkeypatch.setattr("inpaint_encode.core.decode.image_file.UNCOUNTED_PIXELS", 1_000)
    monkeypatch.setattr("inpaint_encode.core.decode.pair.UNCOUNTED_PIXELS", 1_000)
    monkeypatch.setattr(DecodingMemory, "reserve", lambda _, pixels: reserved.append(pixels))
    decoder = PairDecoder(sizing=Sizing(multiple=8, resize=64, upscale=True))
    large, small = (io.BytesIO() for _ in range(2))
    Image.new("RGB", (40, 40)).save(large, "PNG")
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(small, "PNG")
    image = decoder.image(large.getvalue())
    decoder.mask(small.getvalue(), image)
    assert reserved == [1600, 64 * 64, 64 * 64]
    decode_image(large.getvalue())
    assert len(reserved) == 3
