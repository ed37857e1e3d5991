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

__all__ = ["PrivateFunctionMissing", "rename_tensors"]


class PrivateFunctionMissing(Exception):
    """The installed diffusers has no such function; the message names it."""


def rename_tensors(function: str, *arguments: Any) -> dict[str, Tensor]:
    """Call a function of ``diffusers.loaders.single_file_utils`` that returns tensors under diffusers' names.

    Raises:
        PrivateFunctionMissing: there is no such function.
    """
    import diffusers

    try:
        rename = getattr(import_module("diffusers.loaders.single_file_utils"), function)
    except (ImportError, AttributeError) as error:
        raise PrivateFunctionMissing(f"diffusers {diffusers.__version__} has no {function}") from error
    renamed: dict[str, Tensor] = rename(*arguments)
    return renamed
