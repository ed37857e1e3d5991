"""Options of ``export``."""

from __future__ import annotations

from typing import Annotated, Literal

from .base import Frozen, section, unit

__all__ = ["ExportOptions"]


@section("Export", 1)
class ExportOptions(Frozen):
    """Options of ``inpaint-encode export``."""

    to: Literal["comfyui", "webdataset", "safetensors"]
    """Format of the exported files. comfyui: for each row a/042.latent, unscaled float32 for LoadLatent, and
    a/042_mask.png, the grown mask, where white is repainted. Latents of encode's --also-original are in the folder
    _original. webdataset: a tar for each data file, with a/042.json, a/042.samples.npy, a/042.noise_mask.png and the
    other columns. safetensors: for each row a/042.safetensors, with all tensors as they are stored and all other
    columns as strings. The mask takes one byte per pixel, which is most of the file."""
    output: Annotated[str, unit("URI")]
    """Folder or prefix to export to, on s3:// or a disk. File names are the rows' keys. A character that is not allowed
    in a file name is written as % and two hexadecimal digits; in tars, dots are too. An empty part of a key, as in
    a//b, becomes %. A name of more than 200 bytes is cut and ends in a hash."""
    overwrite: bool = False
    """Remove the files of any earlier export at --output and start over."""
    address: Annotated[str, unit("HOST:PORT", "RAY_ADDRESS")] = ""
    """Ray cluster to join. The default is RAY_ADDRESS, which `ray job submit` sets. If neither is set, Ray starts on
    this machine."""
