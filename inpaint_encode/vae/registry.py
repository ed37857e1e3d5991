"""The VAE classes that this package supports: one entry each in `VAE_CLASSES`.

`inpaint_encode.vae.properties` reads a loaded model's configuration by these entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from inpaint_encode.errors import UsageError

if TYPE_CHECKING:
    from diffusers import ModelMixin


@dataclass(frozen=True, kw_only=True)
class VaeClass:
    """How to encode with one VAE class of diffusers."""

    models: str
    """Models that use the class."""
    levels_key: str = "block_out_channels"
    """Configuration key with one item per encoder level. Each level but the last halves the sides."""
    scale_factor_key: str = ""
    """Configuration key of the encoder's scale factor itself; replaces ``levels_key``."""
    channels_key: str = "latent_channels"
    """Configuration key of the number of latent channels."""
    in_channels: int = 3
    """Channels of an input image: 3 for RGB, 4 for RGB and an opaque alpha."""
    video: bool = False
    """Takes ``[B, C, frames, H, W]``; each image is encoded as a clip of one frame."""
    output_attr: Literal["latent_dist", "latents", "latent"] = "latent_dist"
    """Attribute of ``encode``'s output: the posterior, or the latent where there is no posterior."""
    packs_patches: bool = False
    """Patches of latent values can be packed into channels; images are cropped to whole patches."""
    latents_are_scaled: bool = False
    """Latents are already in the denoiser's scaled space."""
    compilable: bool = True
    """On a GPU, ``encoder`` may run channels-last and compiled."""
    precision: str = "any"
    """Values of ``--dtype`` that work."""
    checked: str = ""
    """Files of diffusers 0.42.1 that these facts were read from; relative to ``models/autoencoders``."""
    notes: str = ""


# To add a VAE class:
# 1. Add an entry here, under the name of its class in diffusers. State only what differs from VaeClass's defaults.
# 2. Add a small model of it to SMALL in tests/vaes.py. The tests then compare it with diffusers, alone and in a job.
# 3. Add the published configuration to PUBLISHED in tests/unit/vae/test_registry.py, and its line to README's table.
# 4. To load its single files, add their layout in single_file.py. `--vae-family` names a model's scaling: add
#    it to SCALINGS in latents.py if single files do not contain it.
# A class whose latents need other steps than these fields describe also needs them in encode.py and latents.py.
VAE_CLASSES: Mapping[str, VaeClass] = MappingProxyType(
    {
        "AutoencoderKL": VaeClass(
            models="SD 1.x, SD 2, SDXL, SD 3, Flux.1; the x4 upscaler at 4",
            precision="float16 overflows in SDXL's",
            checked="autoencoder_kl.py, vae.py (Encoder)",
        ),
        "AutoencoderKLFlux2": VaeClass(
            models="Flux.2",
            packs_patches=True,
            checked="autoencoder_kl_flux2.py; pipelines/flux2/pipeline_flux2.py (_encode_vae_image)",
            notes="packed by default, like ComfyUI and the denoiser: 2x2 values become channels, normalized with the "
            "running mean and variance of the weights; --flux2-latents plain stores 32 channels at 1/8 instead",
        ),
        "AutoencoderTiny": VaeClass(
            models="TAESD and its kin",
            levels_key="encoder_block_out_channels",
            output_attr="latents",
            latents_are_scaled=True,
            checked="autoencoder_tiny.py, vae.py (EncoderTiny)",
            notes="takes -1..1 like every class; no posterior; its latents are already scaled",
        ),
        "AutoencoderDC": VaeClass(
            models="Sana (DC-AE)",
            levels_key="encoder_block_out_channels",
            output_attr="latent",
            checked="autoencoder_dc.py (Encoder); pipelines/sana",
            notes="no posterior",
        ),
        "AutoencoderKLQwenImage": VaeClass(
            models="Qwen-Image",
            levels_key="dim_mult",
            channels_key="z_dim",
            video=True,
            compilable=False,
            checked="autoencoder_kl_qwenimage.py; pipelines/qwenimage",
            notes="a video VAE with a mean and a standard deviation per channel",
        ),
        "AutoencoderKLQwenImage21": VaeClass(
            models="Qwen-Image 2.1",
            levels_key="dim_mult",
            channels_key="z_dim",
            in_channels=4,
            video=True,
            compilable=False,
            checked="autoencoder_kl_qwenimage21.py; pipelines/qwenimage21",
            notes="a video VAE of RGBA: an opaque fourth channel is added",
        ),
        "AutoencoderKLWan": VaeClass(
            models="Wan 2.1 at 8 with 16 channels, Wan 2.2 at 16 with 48",
            levels_key="dim_mult",
            channels_key="z_dim",
            video=True,
            compilable=False,
            checked="autoencoder_kl_wan.py; pipelines/wan/pipeline_wan_i2v.py",
            notes="a video VAE with a mean and a standard deviation per channel; scale_factor_spatial is not used",
        ),
        "AutoencoderKLHunyuanImage": VaeClass(
            models="HunyuanImage 2.1",
            scale_factor_key="spatial_compression_ratio",
            checked="autoencoder_kl_hunyuanimage.py; pipelines/hunyuan_image",
        ),
        "AsymmetricAutoencoderKL": VaeClass(
            models="the asymmetric VQGAN for SD 1.x",
            levels_key="down_block_out_channels",
            checked="autoencoder_asym_kl.py",
            notes="its block_out_channels are the decoder's",
        ),
    }
)
"""Supported VAE classes, by their names in diffusers."""


def vae_class_of(vae: ModelMixin | str, subject: str = "the VAE") -> VaeClass:
    """Return the entry of a loaded model's class.

    Args:
        vae: a loaded model, or the name of a class in diffusers.
        subject: begins the error's sentence.

    Raises:
        UsageError: the class is not supported.
    """
    name = vae if isinstance(vae, str) else type(vae).__name__
    if name not in VAE_CLASSES:
        raise UsageError(
            f"{subject} is of class {name}, which is not supported; supported are {', '.join(VAE_CLASSES)}"
        )
    return VAE_CLASSES[name]
