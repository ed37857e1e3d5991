"""Weights in formats that run code as they are read are refused, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from inpaint_encode.errors import UsageError

__all__ = ["refuse_pickles"]

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pickle", ".pkl"}


def refuse_pickles(vae: str, names: Iterable[str]) -> None:
    """Refuse a VAE of which any of ``names`` is a pickle by its suffix, in whatever case.

    Raises:
        UsageError: one is; the sentence says how to convert it.
    """
    for name in names:
        if Path(name).suffix.lower() in _PICKLES:
            raise UsageError(
                f"--vae {vae}: {Path(name).name} is a pickle, which may run any code; where you trust it, "
                "convert it once: torch.load(file, weights_only=True), take out its state_dict, and write that with "
                "safetensors.torch.save_file"
            )
