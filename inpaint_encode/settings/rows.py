"""What a row contains: the VAE, and what is stored of its output."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from .base import Frozen, section, unit

__all__ = ["RowSettings", "VaeSource"]


@section("VAE", 2)
class VaeSource(Frozen):
    """The VAE to load, and where from."""

    vae: Annotated[str, unit("MODEL")]
    """Diffusers folder, .safetensors file or Hugging Face hub id. A folder or file may be on s3://. The file may be a
    whole checkpoint. For a VAE in a pipeline's folder, add --subfolder. Only safetensors weights are loaded."""
    subfolder: Annotated[str, unit("FOLDER")] = ""
    """Folder of the VAE in a pipeline, usually "vae"."""
    revision: Annotated[str, unit("NAME")] = ""
    """Branch, tag or commit on the hub. Give a commit if the repository may change while a job is not finished."""
    vae_family: Literal["", "sd1", "sdxl", "sd3", "flux1"] = ""
    """Model family of a single-file VAE. Give it if the names and shapes of the tensors fit several families. The
    family determines the scaling factor, for the metadata and --scaled. Use sd1 for SD 1.x and SD 2."""
    flux2_latents: Literal["packed", "plain"] = "packed"
    """Layout of Flux.2 latents. packed: normalized, 128 channels at 1/16 of the image's size, as in ComfyUI. plain: 32
    channels at 1/8. For both, images are cropped to multiples of 16."""


@section("Row contents", 4)
class RowSettings(Frozen):
    """Settings that change the rows; all rows of an output have the same."""

    grow_mask_by: Annotated[int, Field(ge=0, le=64), unit("PIXELS")] = 6
    """Dilate the mask with a square of this side. The side is 0 to 64; 0 and 1 do not change the mask. A larger side
    makes the border of the repainted part less visible. Only noise_mask is dilated. The masked image that the VAE
    encodes uses the original mask."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Compute dtype of the VAE. auto: bfloat16 on GPUs of compute capability 8.0 and up, otherwise float32. Give a
    dtype if workers have different hardware and all rows must have the same precision."""
    samples_dtype: Literal["float16", "float32"] = "float16"
    """Dtype of stored latents. float32 takes twice the bytes; use it if values exceed the range of float16."""
    posterior: Literal["mean", "sample", "moments"] = "mean"
    """What to store of the VAE's posterior. mean: its mean. sample: a random sample, which depends only on the key and
    --posterior-seed. moments: the means, then the log-variances, which takes twice as many channels."""
    posterior_seed: Annotated[int, unit("NUMBER")] = 0
    """Seed of --posterior sample. Another seed gives another sample of every row."""
    scaled: bool = False
    """Store latents scaled and shifted by the factors in the VAE's configuration. Diffusers' denoisers expect scaled
    latents; ComfyUI expects unscaled ones."""
    also_original: bool = False
    """Add the column original_samples, the latent of the image without a mask. This encodes each row twice."""
    latent_mask: Literal["none", "comfyui", "diffusers"] = "none"
    """Add the column latent_mask, a mask of the latent's size. comfyui: noise_mask, resized bilinearly, 0 to 1.
    diffusers: the mask before it is grown, resized by nearest neighbor, 0 or 1."""
    tile: Annotated[
        bool | None, Parameter(negative="--no-tile", show_default="only if an image does not fit in memory")
    ] = None
    """Encode images larger than a tile in overlapping tiles. --no-tile: never encode in tiles, and reject an image that
    does not fit in memory. A latent from tiles is close to the latent of the whole image, but not equal to it. The
    column tiled marks these rows."""
    tile_size: Annotated[int, Field(ge=64), unit("PIXELS")] = 512
    """Side of a tile, at least 64. Smaller tiles need less memory, but the latent differs more from that of the whole
    image."""
    mask_encoding: Literal["tensor", "packed"] = "tensor"
    """Format of stored masks. tensor: one byte per pixel, for any Parquet reader. packed: one bit per pixel, and a
    third less CPU time for the whole job, not counting the VAE; the Python functions open_latents and iter_rows unpack
    it."""
    deterministic: bool = False
    """Give a row the same bits in every run on the same kind of hardware. The batch size is 1, and a worker on a CPU
    uses one thread, so the job is slower. Images that do not fit in memory are rejected unless --tile is given."""

    @model_validator(mode="after")
    def _validate_combinations(self) -> Self:
        if self.posterior_seed and self.posterior != "sample":
            raise ValueError("--posterior-seed needs --posterior sample; add it")
        if self.scaled and self.posterior == "moments":
            raise ValueError(
                "--scaled cannot be combined with --posterior moments; leave out --scaled, and scale after sampling"
            )
        if self.tile is False and self.tile_size != type(self).model_fields["tile_size"].default:
            raise ValueError("--tile-size cannot be combined with --no-tile; leave out one of the two")
        return self

    def recorded(self) -> dict[str, Any]:
        """Return the fields by their names in `inpaint_encode.metadata.RowMetadata`."""
        return {"compute_dtype" if name == "dtype" else name: value for name, value in self.model_dump().items()}
