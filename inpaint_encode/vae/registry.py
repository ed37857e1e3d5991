"""Every VAE class that is known here, each as one entry: what an image must become for it, and what its answer is.

The numbers come from a model's own layers as its configuration describes them, never from what a configuration merely
claims: a three-level Wan model says ``scale_factor_spatial`` 8 and encodes at 4, and AsymmetricAutoencoderKL's
``block_out_channels`` are its decoder's. `inpaint_encode.vae.warm_up` holds them against an encoded image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from inpaint_encode.errors import UsageError

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["FAMILIES", "Family", "family_of", "known_family"]

Config = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What is particular about one class of VAE."""

    models: str
    """Where it is met."""
    ratio: Callable[[Config], int]
    """Pixels of a side that become one value of the encoder's answer."""
    patch: Callable[[Config], int] = lambda _config: 1
    """The crop is a multiple of this many such values: the side of the patches that are packed afterwards."""
    channels: str = "latent_channels"
    """Name in the configuration of the latent's channels."""
    colours: int = 3
    """Channels of an image: RGB, or RGB and an opaque alpha."""
    video: bool = False
    """Takes ``[B, C, frames, H, W]``: each image goes alone, as a clip of one frame."""
    answer: Literal["latent_dist", "latents", "latent"] = "latent_dist"
    """Attribute of the answer: a posterior, or the latent itself."""
    scaled: bool = False
    """The latent lives in the denoiser's scaled space as it is."""
    graphs: bool = True
    """On a GPU, ``encoder`` may be laid out channels-last and compiled as a function of one tensor."""
    precision: str = "any"
    """Which of ``--dtype`` it may be asked for; ``auto`` and the check of every row are those of all."""
    checked: str = ""
    """Where in diffusers 0.42.1, below ``models/autoencoders`` if not said otherwise, the facts were read."""
    notes: str = ""

    def inputs(self, config: Config) -> tuple[int, int]:
        """Channels that the first layer takes, and those that it would be given; they must be the same."""
        takes = config.get("in_channels", config.get("input_channels", 3))
        return int(takes), self.colours * _patch_before(config) ** 2


def _halvings(name: str) -> Callable[[Config], int]:
    """Each level of the encoder but the last halves the sides; a side may be cut into patches before."""
    return lambda config: int(2 ** (len(config[name]) - 1)) * _patch_before(config)


def _patch_before(config: Config) -> int:
    side = config.get("patch_size")
    return side if isinstance(side, int) else 1


FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        "AutoencoderKL": Family(
            models="SD 1.x, SD 2, SDXL, SD 3, Flux.1; the x4 upscaler at 4",
            ratio=_halvings("block_out_channels"),
            precision="float16 overflows in SDXL's",
            checked="autoencoder_kl.py, vae.py (Encoder)",
        ),
        "AutoencoderKLFlux2": Family(
            models="Flux.2",
            ratio=_halvings("block_out_channels"),
            patch=lambda config: int(config["patch_size"][0]),
            checked="autoencoder_kl_flux2.py; pipelines/flux2/pipeline_flux2.py (_encode_vae_image)",
            notes="by default packed, as ComfyUI and the denoiser have it: 2x2 values become channels, normalised by "
            "the weights' running mean and variance; --flux2-latents plain stores 32 channels at 1/8 instead",
        ),
        "AutoencoderTiny": Family(
            models="TAESD and its kin",
            ratio=_halvings("encoder_block_out_channels"),
            answer="latents",
            scaled=True,
            checked="autoencoder_tiny.py, vae.py (EncoderTiny)",
            notes="takes -1..1 like every class; no posterior; its latents are in the scaled space already",
        ),
        "AutoencoderDC": Family(
            models="Sana (DC-AE)",
            ratio=_halvings("encoder_block_out_channels"),
            answer="latent",
            checked="autoencoder_dc.py (Encoder); pipelines/sana",
            notes="no posterior",
        ),
        "AutoencoderKLQwenImage": Family(
            models="Qwen-Image",
            ratio=_halvings("dim_mult"),
            channels="z_dim",
            video=True,
            graphs=False,
            checked="autoencoder_kl_qwenimage.py; pipelines/qwenimage",
            notes="a video VAE, with a mean and a deviation for each channel",
        ),
        "AutoencoderKLQwenImage21": Family(
            models="Qwen-Image 2.1",
            ratio=_halvings("dim_mult"),
            channels="z_dim",
            colours=4,
            video=True,
            graphs=False,
            checked="autoencoder_kl_qwenimage21.py; pipelines/qwenimage21",
            notes="a video VAE of RGBA: a fourth channel, opaque, is added",
        ),
        "AutoencoderKLWan": Family(
            models="Wan 2.1 at 8 with 16 channels, Wan 2.2 at 16 with 48",
            ratio=_halvings("dim_mult"),
            channels="z_dim",
            video=True,
            graphs=False,
            checked="autoencoder_kl_wan.py; pipelines/wan/pipeline_wan_i2v.py",
            notes="a video VAE, with a mean and a deviation for each channel; scale_factor_spatial is not believed",
        ),
        "AutoencoderKLHunyuanImage": Family(
            models="HunyuanImage 2.1",
            ratio=lambda config: int(config["spatial_compression_ratio"]),
            checked="autoencoder_kl_hunyuanimage.py; pipelines/hunyuan_image",
        ),
        "AsymmetricAutoencoderKL": Family(
            models="the asymmetric VQGAN for SD 1.x",
            ratio=_halvings("down_block_out_channels"),
            checked="autoencoder_asym_kl.py",
            notes="its block_out_channels are the decoder's",
        ),
    }
)
"""By the name of the class in diffusers."""


def family_of(vae: ModelMixin) -> Family:
    """Return the entry of a loaded model's class.

    Raises:
        UsageError: the class is not known here.
    """
    return known_family(type(vae).__name__, "the VAE")


def known_family(name: str, whose: str) -> Family:
    """Return the entry of the class ``name``; ``whose`` begins the sentence if there is none.

    Raises:
        UsageError: the class is not known here.
    """
    if name not in FAMILIES:
        raise UsageError(f"{whose} is of class {name}, which is not known here; known are {', '.join(FAMILIES)}")
    return FAMILIES[name]
