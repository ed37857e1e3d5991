"""Image/mask pairs become inpainting latents: the tensor function here, the distributed job in ``inpaint-encode``.

Names load on first use, so that importing the package costs neither torch nor Ray.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .core.inpaint import InpaintLatents, encode_for_inpaint
    from .core.transform import grow_mask
    from .reader import iter_rows
    from .reader.dataset import open_latents
    from .settings import EncodeJob
    from .vae.load import load_vae

_HOMES = {
    "EncodeJob": "settings",
    "InpaintLatents": "core.inpaint",
    "encode_for_inpaint": "core.inpaint",
    "grow_mask": "core.transform",
    "iter_rows": "reader",
    "load_vae": "vae.load",
    "open_latents": "reader.dataset",
}

__all__ = [
    "EncodeJob",
    "InpaintLatents",
    "__version__",
    "encode_for_inpaint",
    "grow_mask",
    "iter_rows",
    "load_vae",
    "open_latents",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
