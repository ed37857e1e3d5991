"""Options of ``export``."""

from __future__ import annotations

from typing import Annotated, Literal

from .base import Frozen, measured_in, section

__all__ = ["ExportOptions"]


@section("The export", 1)
class ExportOptions(Frozen):
    """Options of ``inpaint-encode export``."""

    to: Literal["comfyui", "webdataset", "safetensors"]
    """Format: latent and mask for ComfyUI, samples in tar files, or one file per row. comfyui: a/042.latent, float32,
    unscaled, for LoadLatent, and a/042_mask.png, the grown mask, white = repaint; latents of --also-original go to
    _original. webdataset: one tar per data file, with a/042.json, a/042.samples.npy, a/042.noise_mask.png and the
    optional tensors. safetensors: a/042.safetensors with all tensors as stored and all other columns as strings; the
    mask takes one byte per pixel, most of the file."""
    output: Annotated[str, measured_in("URI")]
    """Folder or prefix to export to, on s3:// or a disk. Files are named by the rows' keys. Characters that stores or
    disks refuse, and dots in tar files, become % and two hexadecimal digits; an empty part of a key becomes %; names
    longer than 200 bytes end in a hash."""
    overwrite: bool = False
    """Remove the files of an earlier export at the destination, also of a different one, and start again."""
    address: Annotated[str, measured_in("HOST:PORT")] = ""
    """Ray cluster to join. Default: the cluster of this process, else a local one is started."""
