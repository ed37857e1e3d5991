"""Checks of a model's files before diffusers reads them: sizes, names of other files, and numbers that need memory."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_encode.errors import UsageError

if TYPE_CHECKING:
    from diffusers import ModelMixin

INDEX = "diffusion_pytorch_model.safetensors.index.json"
"""File of a folder whose weights are in several files; it names them."""

_MAX_JSON_BYTES = 2**24
_MAX_NUMBER, _MAX_TEXT, _MAX_DEPTH = 2**16, 1_000, 8
"""Limits for the numbers, the characters and the nesting of a configuration."""
_MAX_LEVELS = 64
"""Limit for the levels, blocks and layers of a configuration; each becomes a module."""
_MAX_STATISTICS = 1_024
"""Limit for the channels that a configuration has means or standard deviations for."""
_MAX_WEIGHTS = 2**31
"""Limit for the weights of a model whose files' sizes are not known."""
_COUNTS = re.compile(r"layers|num_|blocks")
_SHARD = re.compile(r"\w[\w.-]*\.safetensors")


def check_files(vae: str, folder: Path) -> None:
    """Check the sizes of a folder's JSON files; raise UsageError if one is too large for a model's."""
    for name in ("config.json", INDEX):
        path = folder / name
        if path.exists() and (size := path.stat().st_size) > _MAX_JSON_BYTES:
            raise UsageError(f"--vae {vae}: {name} has {size:,} bytes, and the limit is {_MAX_JSON_BYTES:,}")


def check_index(vae: str, index: Any) -> None:
    """Check that an index only names ``.safetensors`` files of its own folder; others may be pickles.

    Raises:
        UsageError: another file is named, or it is not an index.
    """
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict):
        raise UsageError(f"--vae {vae}: {INDEX} has no weight_map; download the model again")
    for name in names.values():
        if not isinstance(name, str) or not _SHARD.fullmatch(name):
            raise UsageError(
                f"--vae {vae}: {INDEX} names {str(name)[:_MAX_TEXT]!r}, which is not a .safetensors file of its folder"
            )


def check_config(vae: str, config: Any) -> None:
    """Check the types and the limits of a configuration, so that a small file cannot describe a huge model.

    Raises:
        UsageError: a value is not one of a VAE's configuration.
    """
    if not isinstance(config, dict):
        raise UsageError(f"--vae {vae}: its config.json is not an object with a VAE's options")
    if "quantization_config" in config:  # diffusers would import the package that it names
        raise UsageError(f"--vae {vae} is quantized; give the VAE with its original weights")
    stack: list[tuple[str, Any, int]] = [(str(name), value, 1) for name, value in config.items()]
    while stack:
        name, value, depth = stack.pop()
        statistics = name.startswith("latents_")
        if isinstance(value, dict | list | tuple):
            items = list(value.values()) if isinstance(value, dict) else list(value)
            allowed = depth < _MAX_DEPTH and len(items) <= (_MAX_STATISTICS if statistics else _MAX_LEVELS)
            stack += [(name, item, depth + 1) for item in items] if allowed else []
        elif isinstance(value, bool) or value is None:
            allowed = not statistics or value is None
        elif isinstance(value, str):
            allowed = len(value) <= _MAX_TEXT and not statistics and name not in ("scaling_factor", "shift_factor")
        else:
            is_count = isinstance(value, int) and bool(_COUNTS.search(name))
            allowed = math.isfinite(value) and (0 <= value <= _MAX_LEVELS if is_count else abs(value) <= _MAX_NUMBER)
        if not allowed:
            shown = json.dumps(value, default=str)[:100]
            raise UsageError(
                f"--vae {vae}: {name} in its configuration cannot be {shown}; give a VAE that is supported"
            )


def check_size(vae: str, model_class: type[ModelMixin], config: Any, weights_bytes: int | None) -> None:
    """Check that a model has no more weights than its files have bytes, before memory is allocated for it.

    Args:
        vae: for errors.
        model_class: of diffusers.
        config: of the model.
        weights_bytes: size of its files; None if it is not known.

    Raises:
        UsageError: it has more.
    """
    import torch

    with torch.device("meta"):  # tensors of this device have a shape and no memory
        model = model_class.from_config(config)
    weights = sum(tensor.numel() for tensor in model.state_dict().values())
    if weights > (_MAX_WEIGHTS if weights_bytes is None else weights_bytes):
        has = "" if weights_bytes is None else f", and its files have {weights_bytes:,} bytes"
        raise UsageError(f"--vae {vae}: its configuration describes {weights:,} weights{has}; give a complete VAE")
