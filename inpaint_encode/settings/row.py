"""What a row is: by which VAE, and what of its answer."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from cyclopts import Parameter
from pydantic import Field, model_validator

from .base import Frozen, measured_in, section

__all__ = ["RowSettings", "VaeSource"]


@section("The VAE", 2)
class VaeSource(Frozen):
    """Which VAE to load, and from where."""

    vae: Annotated[str, measured_in("MODEL")]
    """Diffusers folder, .safetensors file or hub id. Folder and file may be on s3://; the file may be a whole
    checkpoint; a VAE inside a pipeline's folder needs --subfolder; weights are read from safetensors only."""
    subfolder: Annotated[str, measured_in("FOLDER")] = ""
    """Folder of the VAE inside a whole pipeline, usually "vae"."""
    revision: Annotated[str, measured_in("NAME")] = ""
    """Branch, tag or commit on the hub; a commit keeps a long job from changing under you."""
    vae_family: Literal["", "sd1", "sdxl", "sd3", "flux1"] = ""
    """The model that a single file's VAE is of, where its names and shapes are those of several: settles the scaling in
    the metadata and for --scaled. SD 1.x and SD 2 are one: sd1."""
    flux2_latents: Literal["packed", "plain"] = "packed"
    """How Flux.2's latents are stored: packed and normalised, 128 channels at 1/16, as ComfyUI has them, or plain, 32
    channels at 1/8. Both are cropped to multiples of 16."""


@section("What a row is", 4)
class RowSettings(Frozen):
    """Settings that shape every row; an output holds rows of one such set only."""

    grow_mask_by: Annotated[int, Field(ge=0, le=64), measured_in("PIXELS")] = 6
    """Side of the square to grow masks by, 0 to 64; 0 and 1 leave noise_mask as it is. A larger one hides more of
    the seam. What is greyed in the image before it is encoded is the mask that is not grown."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The VAE's compute type; auto is bfloat16 on GPUs of compute capability 8.0 and up, else float32."""
    samples_dtype: Literal["float16", "float32"] = "float16"
    """How latents are stored; float32 doubles their bytes."""
    posterior: Literal["mean", "sample", "moments"] = "mean"
    """What of the VAE's posterior is stored: its mean; a draw, which is the same for a key and a seed on any cluster;
    or the means and then the log-variances, twice as many channels."""
    posterior_seed: Annotated[int, measured_in("NUMBER")] = 0
    """Which draw --posterior sample takes: another seed, another draw of every row."""
    scaled: bool = False
    """Store latents as diffusion models take them, scaled and shifted as the VAE's configuration says."""
    also_original: bool = False
    """Add original_samples, the latent of the image as it is, not greyed; each row is encoded twice."""
    latent_mask: Literal["none", "comfyui", "diffusers"] = "none"
    """Add latent_mask, a mask at the latent's size: noise_mask by ComfyUI's bilinear rule, 0 to 1, or the mask that was
    not grown by diffusers' nearest rule, 0 or 1."""
    tile: Annotated[bool | None, Parameter(negative="--no-tile", show_default="where memory forces it")] = None
    """Encode images larger than a tile in tiles that overlap, or never; by default only where memory holds not even
    one image. A tiled latent is near the whole one, and not equal to it; the column tiled says which is which."""
    tile_size: Annotated[int, Field(ge=64), measured_in("PIXELS")] = 512
    """Side of a tile in pixels, from 64 on: smaller ones need less memory, and are farther from the whole latent."""
    mask_encoding: Literal["tensor", "packed"] = "tensor"
    """How masks are stored: a tensor that every reader takes, or packed bits, which cost a sixth as much to write."""
    deterministic: bool = False
    """The same bits for the same pair on the same kind of hardware, by batches of one: slower on GPUs, and on a CPU one
    thread for each worker. Nothing is tiled for want of memory then."""

    @model_validator(mode="after")
    def _meant(self) -> Self:
        if self.posterior_seed and self.posterior != "sample":
            raise ValueError("--posterior-seed says which draw --posterior sample takes; add that")
        if self.scaled and self.posterior == "moments":
            raise ValueError("--scaled is of a latent, and moments are not one yet; scale what you draw from them")
        if self.tile is False and self.tile_size != type(self).model_fields["tile_size"].default:
            raise ValueError("--tile-size is of tiles, and --no-tile forbids them; leave out one of the two")
        return self

    def recorded(self) -> dict[str, Any]:
        """Return the fields by their names in `inpaint_encode.metadata.RowMetadata`."""
        return {"compute_dtype" if name == "dtype" else name: value for name, value in self.model_dump().items()}
