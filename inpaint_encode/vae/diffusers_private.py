"""The private functions of diffusers that this package uses: those that rename the tensors of original checkpoints.

diffusers' public way, ``from_single_file``, asks the hub for a configuration and does not check for missing tensors.
Only single files in an original layout need these functions. If a version of diffusers lacks one, such a file is
refused, and folders and other files load as before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PrivateFunctionMissing", "convert_dc", "convert_latent_diffusion", "convert_wan"]

Tensors = dict[str, "Tensor"]


class PrivateFunctionMissing(Exception):
    """The installed diffusers has no such function; the message names it."""


def convert_latent_diffusion(tensors: Tensors, config: dict[str, Any]) -> Tensors:
    """Rename the tensors of an original AutoencoderKL; those that the function does not know are left out."""
    return _call("convert_ldm_vae_checkpoint", tensors, config)


def convert_wan(tensors: Tensors) -> Tensors:
    """Rename the tensors of an original Wan 2.1."""
    return _call("convert_wan_vae_to_diffusers", tensors)


def convert_dc(tensors: Tensors) -> Tensors:
    """Rename the tensors of an original DC-AE."""
    return _call("convert_autoencoder_dc_checkpoint_to_diffusers", dict(tensors))


def _call(name: str, *arguments: Any) -> Tensors:
    import diffusers

    try:
        function = getattr(import_module("diffusers.loaders.single_file_utils"), name)
    except (ImportError, AttributeError) as error:
        raise PrivateFunctionMissing(f"diffusers {diffusers.__version__} has no {name}") from error
    converted: Tensors = function(*arguments)
    return converted
