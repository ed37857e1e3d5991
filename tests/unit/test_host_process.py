"""Using the library changes nothing in the process that uses it."""

import subprocess
import sys

from tests.fabricated import tables, write_output

USE = """
import logging, os, signal, sys
import numpy as np
import pyarrow as pa
import torch
from PIL import Image, ImageFile

def state():
    return {
        "Pillow's limit": Image.MAX_IMAGE_PIXELS,
        "Pillow's truncated files": ImageFile.LOAD_TRUNCATED_IMAGES,
        "Arrow's pool": pa.default_memory_pool().backend_name,
        "Arrow's threads": pa.cpu_count(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)],
        "log handlers": list(logging.getLogger().handlers),
        "log level": logging.getLogger().level,
        "exception hook": sys.excepthook,
        "environment": dict(os.environ),
        "torch threads": torch.get_num_threads(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
    }

Image.MAX_IMAGE_PIXELS = 1_000
import diffusers, obstore  # their own imports are not ours
before = state()
import inpaint_encode
from inpaint_encode import encode_for_inpaint, iter_rows, load_vae, open_latents
from inpaint_encode.core.decode.image_file import decode_image
vae = load_vae(sys.argv[1])
encode_for_inpaint(torch.rand(1, 16, 16, 3), torch.ones(1, 16, 16), vae, grow_mask_by=2)
import io
file = io.BytesIO()
Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(file, "PNG")
decode_image(file.getvalue())
rows = list(iter_rows(sys.argv[2]))
assert len(rows) == len(open_latents(sys.argv[2])) == 22
after = state()
assert before == after, {name: (before[name], after[name]) for name in before if before[name] != after[name]}
"""


def test_encoding_and_reading_leave_the_process_as_it_was(vae_folder, tmp_path):
    output = write_output(tmp_path / "out", tables())
    done = subprocess.run([sys.executable, "-c", USE, vae_folder, output], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
