"""As what an output is exported, and where to."""

from __future__ import annotations

from typing import Annotated, Literal

from .base import Frozen, measured_in, section

__all__ = ["ExportOptions"]


@section("The export", 1)
class ExportOptions(Frozen):
    """Everything that ``inpaint-encode export`` can be told but which output."""

    to: Literal["comfyui", "webdataset", "safetensors"]
    """What a row becomes: latent and mask, a sample in a tar, or one file. comfyui: a/042.latent, float32 and not
    scaled, as LoadLatent reads it, and a/042_mask.png, the grown mask, white = repaint; the latents of --also-original
    are below _original. webdataset: of each data file a tar with a/042.json, a/042.samples.npy, a/042.noise_mask.png
    and what else there is. safetensors: a/042.safetensors with all tensors as they are stored, masks at a byte a pixel,
    most of the file, and all other columns as strings."""
    output: Annotated[str, measured_in("URI")]
    """Folder or prefix to export to, on s3:// or a disk. Rows' keys are their files' names. What a store or disk would
    refuse there, and in tars a dot, is written as % and two hexadecimal digits; an empty part of a key is %, and a name
    of over 200 bytes ends in a hash of it."""
    overwrite: bool = False
    """Start anew: remove the files of an earlier export there, whatever of."""
    address: Annotated[str, measured_in("HOST:PORT")] = ""
    """Ray cluster to join; by default the one this process runs in, else one is started on this machine."""
