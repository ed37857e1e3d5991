"""The VAE classes that this package supports: one entry each in `VAE_CLASSES`.

`inpaint_encode.vae.properties` reads a loaded model's configuration by these entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from inpaint_encode.errors import UsageError

if TYPE_CHECKING:
    from diffusers import ModelMixin


@dataclass(frozen=True, kw_only=True)
class VaeClass:
    """How to encode with one VAE class of diffusers."""

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


_VIDEO: dict[str, Any] = {"levels_key": "dim_mult", "channels_key": "z_dim", "video": True, "compilable": False}

# To add a VAE class:
# 1. Add an entry here, under the name of its class in diffusers. State only what differs from VaeClass's defaults.
# 2. Add a small model of it to SMALL in tests/vaes.py. The tests then compare it with diffusers, alone and in a job.
# 3. Add the published configuration to PUBLISHED in tests/unit/vae/test_registry.py, and its line to README's table.
# 4. To load its single files, add their layout in single_file.py. `--vae-family` names a model's scaling: add
#    it to SCALINGS in latents.py if single files do not contain it.
# A class whose latents need other steps than these fields describe also needs them in encode.py and latents.py.
VAE_CLASSES: Mapping[str, VaeClass] = MappingProxyType(
    {
        # SD 1.x, SD 2, SDXL, SD 3, Flux.1; the x4 upscaler at 4.
        "AutoencoderKL": VaeClass(
            precision="float16 overflows in SDXL's", checked="autoencoder_kl.py, vae.py (Encoder)"
        ),
        # Flux.2. Packed by default, like ComfyUI and the denoiser: 2x2 values become channels, normalized with the
        # running mean and variance of the weights. --flux2-latents plain stores 32 channels at 1/8 instead.
        "AutoencoderKLFlux2": VaeClass(
            packs_patches=True,
            checked="autoencoder_kl_flux2.py; pipelines/flux2/pipeline_flux2.py (_encode_vae_image)",
        ),
        # TAESD and its kin. Takes -1..1 like every class; has no posterior; its latents are already scaled.
        "AutoencoderTiny": VaeClass(
            levels_key="encoder_block_out_channels",
            output_attr="latents",
            latents_are_scaled=True,
            checked="autoencoder_tiny.py, vae.py (EncoderTiny)",
        ),
        # Sana's DC-AE. Has no posterior.
        "AutoencoderDC": VaeClass(
            levels_key="encoder_block_out_channels",
            output_attr="latent",
            checked="autoencoder_dc.py (Encoder); pipelines/sana",
        ),
        # Qwen-Image: a video VAE with a mean and a standard deviation per channel.
        "AutoencoderKLQwenImage": VaeClass(**_VIDEO, checked="autoencoder_kl_qwenimage.py; pipelines/qwenimage"),
        # Qwen-Image 2.1: a video VAE of RGBA; an opaque fourth channel is added.
        "AutoencoderKLQwenImage21": VaeClass(
            **_VIDEO, in_channels=4, checked="autoencoder_kl_qwenimage21.py; pipelines/qwenimage21"
        ),
        # Wan 2.1 at 8 with 16 channels, Wan 2.2 at 16 with 48: a video VAE with a mean and a standard deviation per
        # channel. scale_factor_spatial is not used.
        "AutoencoderKLWan": VaeClass(**_VIDEO, checked="autoencoder_kl_wan.py; pipelines/wan/pipeline_wan_i2v.py"),
        # HunyuanImage 2.1.
        "AutoencoderKLHunyuanImage": VaeClass(
            scale_factor_key="spatial_compression_ratio",
            checked="autoencoder_kl_hunyuanimage.py; pipelines/hunyuan_image",
        ),
        # The asymmetric VQGAN for SD 1.x. Its block_out_channels are the decoder's.
        "AsymmetricAutoencoderKL": VaeClass(levels_key="down_block_out_channels", checked="autoencoder_asym_kl.py"),
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
