"""A VAE by its name: a folder or a hub id, safetensors only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

__all__ = ["load_vae"]


def load_vae(source: VaeSource) -> AutoencoderKL:
    """Load a diffusers ``AutoencoderKL`` in float32 on the CPU, from safetensors only.

    Raises:
        UsageError: there is no such model, its weights are pickles, or its class is another.
    """
    from diffusers import AutoencoderKL

    where = {name: value for name in ("subfolder", "revision") if (value := getattr(source, name))}
    try:
        config = AutoencoderKL.load_config(source.vae, **where)
        _refuse_other_classes(source, config)
        vae, loading = AutoencoderKL.from_pretrained(
            source.vae,
            use_safetensors=True,
            torch_dtype=torch.float32,
            low_cpu_mem_usage=False,  # True needs another package, for a model that is loaded once
            output_loading_info=True,
            **where,
        )
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--vae {source.vae} cannot be loaded: {str(error).splitlines()[0]}; give a folder in the diffusers "
            "layout with .safetensors weights, or a hub id, and --subfolder if the VAE is a part of a pipeline"
        ) from error
    if loading["missing_keys"]:
        missing = sorted(loading["missing_keys"])
        raise UsageError(f"--vae {source.vae} lacks {len(missing)} of its weights, the first is {missing[0]}")
    return vae.eval().requires_grad_(False)


def _refuse_other_classes(source: VaeSource, config: Any) -> None:
    found = config.get("_class_name", "AutoencoderKL")
    if found != "AutoencoderKL":
        raise UsageError(f"--vae {source.vae} is a {found}; only AutoencoderKL is known so far")
