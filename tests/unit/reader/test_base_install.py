"""Readers work without the packages of the ``[job]`` extra."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inpaint_encode import iter_rows
from tests.outputs import write_output

from .conftest import COUNT, FILES

ROOT = Path(__file__).parents[3]

BLOCK = """
import importlib.abc, json, sys

class Blocked(importlib.abc.MetaPathFinder):
    names = {"PIL", "cyclopts", "diffusers", "jinja2", "markupsafe", "pydantic", "ray", "rich", "s3fs", "safetensors"}
    names |= {"simplejpeg"}
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.names:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
"""

READ = """
from inpaint_encode import inpaint_input, iter_rows, open_latents
from torch.utils.data import DataLoader
uri = sys.argv[1]
ds = open_latents(uri)
stream = ds.for_diffusers(with_latents=False).stream(batch_size=4, shuffle=True)
batch = next(iter(stream))
print(json.dumps({
    "rows": [len(ds), len(list(ds)), len(list(iter_rows(uri)))],
    "by_key": ds["00/003"]["key"],
    "batch": sorted(batch),
    "input": list(inpaint_input(batch["masked_image_latents"], batch).shape[:2]),
    "streamed": sum(len(batch["key"]) for batch in DataLoader(stream, batch_size=None, num_workers=2)),
    "comfyui": [list(ds.for_comfyui()[0][name].shape) for name in ("samples", "noise_mask")],
    "scale": ds.metadata.vae.scaling_factor,
}))
"""

NAMES = """
import inpaint_encode
sentences = {}
for name in inpaint_encode.__all__:
    try:
        getattr(inpaint_encode, name)
    except ImportError as error:
        sentences[name] = str(error)
print(json.dumps(sentences))
"""


def run_without_job_packages(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", BLOCK + code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("store", ["disk", "s3"])
def test_an_output_can_be_read(request, store, tmp_path):
    uri = str(tmp_path) if store == "disk" else request.getfixturevalue("s3").uri("base-install")
    write_output(uri, FILES, scaling_factor=0.5)
    (first, *_) = iter_rows(uri)
    _, height, width = first["noise_mask"].shape
    assert json.loads(run_without_job_packages(READ, uri)) == {
        "rows": [COUNT] * 3,
        "by_key": "00/003",
        "batch": sorted({*first, "mask", "masked_image_latents"} - {"samples", "noise_mask"}),
        "input": [4, 9],
        "streamed": COUNT,
        "comfyui": [[1, *first["samples"].shape], [1, 1, height, width]],
        "scale": 0.5,
    }


def test_names_of_the_job_say_what_to_install():
    sentences = json.loads(run_without_job_packages(NAMES))
    assert sentences.keys() == {"EncodeJob", "InpaintLatents", "encode_for_inpaint", "load_vae", "run_job"}
    for name, sentence in sentences.items():
        assert sentence.startswith(
            f"{name} needs packages that are not installed; run: pip install 'inpaint-encode[job]'"
        )


def test_to_ray_says_what_to_install(on_disk):
    code = """
from inpaint_encode import open_latents
try:
    open_latents(sys.argv[1]).to_ray()
except ImportError as error:
    print(error)
"""
    printed = run_without_job_packages(code, on_disk[0])
    assert printed == "to_ray needs Ray, which is not installed; run: pip install 'ray[data]'\n"
