"""A VAE by its name: a folder, a single file or a hub id; safetensors only, and no code that comes with a model."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource

from .node_cache import on_this_node
from .pickles import refuse_pickles
from .properties import patch_statistics
from .registry import FAMILIES, known_family
from .single_file import load_single_file

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["load_vae"]

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def load_vae(source: VaeSource) -> ModelMixin:
    """Load a VAE of any class in `inpaint_encode.vae.FAMILIES` in float32 on the CPU, from safetensors only.

    What is on ``s3://`` or on the hub is brought to this node once, however many processes ask for it: into
    ``inpaint-encode`` below ``XDG_CACHE_HOME`` (by default ``~/.cache``), and into the hub's own cache.

    Raises:
        UsageError: there is no such model, its weights are pickles or not whole, or its class is not known here.
    """
    refuse_pickles(source.vae, [source.vae])
    place = on_this_node(source)
    vae = load_single_file(source, Path(place)) if Path(place).is_file() else _from_folder(source, place)
    if known_family(type(vae).__name__, f"--vae {source.vae}").patch(vae.config) > 1:
        mean, std = patch_statistics(vae)
        vae.register_to_config(flux2_latents=source.flux2_latents, latents_mean=mean, latents_std=std)
    return vae.eval().requires_grad_(False)


def _from_folder(source: VaeSource, place: str) -> ModelMixin:
    """Load from ``place``, a folder or a hub id, of the class that its configuration names."""
    if source.vae_family:
        raise UsageError(f"--vae-family is for single files; the configuration of --vae {source.vae} tells the scaling")
    _refuse_missing_folder(source, place)
    at_hub = not Path(place).is_dir()
    where = {"subfolder": source.subfolder} if source.subfolder and not source.vae.startswith("s3://") else {}
    where |= {"revision": source.revision} if source.revision and at_hub else {}
    if not at_hub:
        folder = Path(place, where.get("subfolder", ""))
        refuse_pickles(source.vae, () if [*folder.glob("*.safetensors")] else (path.name for path in folder.glob("*")))
    try:
        kind = _class_of(source, _config(place, where))
        vae, loading = kind.from_pretrained(
            place,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # True needs another package, for a model that is loaded once
            output_loading_info=True,
            **where,
        )
    except (OSError, ValueError) as error:
        raise UsageError(_cannot_be_loaded(source, error, at_hub=at_hub)) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise UsageError(f"--vae {source.vae} lacks {len(missing)} of its weights, the first is {missing[0]}")
    return vae


def _config(place: str, where: dict[str, str]) -> dict[str, Any]:
    from diffusers import AutoencoderKL

    config: dict[str, Any] = AutoencoderKL.load_config(place, **where)  # of any class
    return config


def _class_of(source: VaeSource, config: dict[str, Any]) -> Any:
    import diffusers

    name = str(config.get("_class_name", "(its config.json names none)"))
    known_family(name, f"--vae {source.vae}")
    if not hasattr(diffusers, name):
        there = [known for known in FAMILIES if hasattr(diffusers, known)]
        raise UsageError(
            f"--vae {source.vae} is of class {name}, which diffusers {diffusers.__version__} does not have; it has "
            f"{', '.join(there)}; install a newer diffusers"
        )
    return getattr(diffusers, name)


def _refuse_missing_folder(source: VaeSource, place: str) -> None:
    """Nothing but what can be a hub id is asked of the hub."""
    if not Path(place).is_dir() and not _HUB_ID.fullmatch(place):
        raise UsageError(
            f"--vae {source.vae} cannot be loaded: there is no such folder or file on this node, and it is no hub id"
        )


def _cannot_be_loaded(source: VaeSource, error: Exception, *, at_hub: bool) -> str:
    offline = at_hub and os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    why = f"{'there is no such folder on this node, and as a hub id ' if at_hub else ''}{str(error).splitlines()[0]}"
    return (
        f"--vae {source.vae} cannot be loaded: {why}; give a folder in the diffusers layout "
        "with .safetensors weights, a single .safetensors file, or a hub id, and --subfolder if the VAE is a part of "
        "a pipeline" + ("; HF_HUB_OFFLINE is set, so that only the hub's cache on this node was looked into" * offline)
    )
