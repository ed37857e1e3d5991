"""Encodes image/mask pairs as inpainting latents: a function on tensors, a distributed job, and readers of its output.

Names are imported on first use: ``import inpaint_encode`` loads neither torch nor Ray, and the readers need no package
of the ``[job]`` extra.

Reading (base install):
    open_latents: open an output as a torch dataset, for training.
    iter_rows: iterate over an output's rows as numpy arrays.
    inpaint_input: combine noisy latents, mask and latents of the masked image to a denoiser's input.
    RowMetadata: how the rows of an output were made.
    grow_mask: dilate a mask.

Encoding (``[job]`` extra):
    load_vae: load a VAE from a folder, a single file or the hub.
    encode_for_inpaint: encode images and masks in memory; returns InpaintLatents.
    EncodeJob, run_job: describe a distributed job, and run it.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:
    from .core.inpaint import InpaintLatents, encode_for_inpaint
    from .core.transform import grow_mask
    from .job.pipeline import run_job
    from .metadata import RowMetadata
    from .reader import iter_rows
    from .reader.conventions import inpaint_input
    from .reader.dataset import open_latents
    from .settings import EncodeJob
    from .vae.load import load_vae

__all__ = [
    "EncodeJob",
    "InpaintLatents",
    "RowMetadata",
    "__version__",
    "encode_for_inpaint",
    "grow_mask",
    "inpaint_input",
    "iter_rows",
    "load_vae",
    "open_latents",
    "run_job",
]

_MODULES = {
    "EncodeJob": ("settings", "pydantic"),
    "InpaintLatents": ("core.inpaint", "diffusers"),
    "RowMetadata": ("metadata",),
    "encode_for_inpaint": ("core.inpaint", "diffusers"),
    "grow_mask": ("core.transform",),
    "inpaint_input": ("reader.conventions",),
    "iter_rows": ("reader",),
    "load_vae": ("vae.load", "diffusers", "safetensors"),
    "open_latents": ("reader.dataset",),
    "run_job": ("job.pipeline", "diffusers", "pydantic", "ray"),
}
"""The module of each name, and the packages of the ``[job]`` extra that the name cannot work without. The module may
import them only later."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, *packages = _MODULES[name]
    try:
        for package in packages:
            if find_spec(package) is None:
                raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return getattr(import_module(f".{module}", __name__), name)
    except ModuleNotFoundError as error:
        if not packages:
            raise
        sentence = f"{name} needs packages that are not installed; run: pip install 'inpaint-encode[job]'"
        raise ImportError(f"{sentence} ({error})", name=error.name) from error
