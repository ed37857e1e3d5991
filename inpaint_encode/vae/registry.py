"""The VAE classes that this package supports, one entry each in `VAE_CLASSES`, and what follows for a loaded VAE."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import torch

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import LatentForm, VaeMetadata
from inpaint_encode.stores.redaction import redacted

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from inpaint_encode.settings import VaeSource


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


def vae_scale_factor(vae: ModelMixin) -> int:
    """Pixels of a side per value of the stored latent."""
    return crop_multiple(vae) if latent_form(vae) == "packed" else _encoder_scale_factor(vae)


def crop_multiple(vae: ModelMixin) -> int:
    """Multiple of pixels that image sides are cropped to. Plain Flux.2 latents are cropped like packed ones."""
    return _encoder_scale_factor(vae) * latent_patch_size(vae)


def _encoder_scale_factor(vae: ModelMixin) -> int:
    """Pixels of a side per value of the encoder's output, computed from the layers that the configuration describes.

    The configuration's own claims are not used: a Wan VAE of three levels says ``scale_factor_spatial`` 8 and encodes
    at 4. `inpaint_encode.vae.encode.warm_up` checks the result.
    """
    vae_class = vae_class_of(vae)
    if vae_class.scale_factor_key:
        return int(vae.config[vae_class.scale_factor_key])
    return int(2 ** (len(vae.config[vae_class.levels_key]) - 1)) * pixel_patch_size(vae)


def pixel_patch_size(vae: ModelMixin) -> int:
    """Side of the pixel patches that the model moves into channels before its first layer; 1 for none."""
    side = vae.config.get("patch_size")
    return side if isinstance(side, int) else 1


def latent_patch_size(vae: ModelMixin) -> int:
    """Latent values of a side per packed patch; 1 if the class packs none."""
    return int(vae.config["patch_size"][0]) if vae_class_of(vae).packs_patches else 1


def latent_channels(vae: ModelMixin) -> int:
    """Channels of the stored latent."""
    patch = latent_patch_size(vae) if latent_form(vae) == "packed" else 1
    return int(vae.config[vae_class_of(vae).channels_key]) * patch**2


def latent_form(vae: ModelMixin) -> LatentForm:
    """Form of the latents that the model's encoder gives; Flux.2's are packed unless loaded as plain."""
    vae_class = vae_class_of(vae)
    if vae_class.latents_are_scaled:
        return "scaled"
    return "packed" if vae_class.packs_patches and vae.config.get("flux2_latents") != "plain" else "unscaled"


def patch_statistics(vae: ModelMixin) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of packed Flux.2 latents, in float32.

    `load_vae` copies them into the configuration, because a cast of the model to half precision rounds them.
    """
    if "latents_std" in vae.config:
        return vae.config.latents_mean, vae.config.latents_std
    variance = vae.bn.running_var.float() + vae.config.batch_norm_eps
    return vae.bn.running_mean.float().tolist(), variance.sqrt().tolist()


def vae_metadata(vae: ModelMixin, source: VaeSource) -> VaeMetadata:
    """Read the metadata from a loaded VAE's configuration and weights; ``source`` is where it was loaded from."""
    config, packs = vae.config, vae_class_of(vae).packs_patches
    mean, std = patch_statistics(vae) if packs else (config.get("latents_mean"), config.get("latents_std"))
    return VaeMetadata(
        vae_class=type(vae).__name__,
        vae_source=redacted(
            "/".join(part for part in (source.vae, source.subfolder) if part)
            + (f"@{source.revision}" if source.revision else "")
        ),
        weights_sha256=weights_sha256(vae),
        config_sha256=config_sha256(vae),
        vae_scale_factor=vae_scale_factor(vae),
        crop_multiple=crop_multiple(vae),
        latent_channels=latent_channels(vae),
        latent_form=latent_form(vae),
        scaling_factor=config.get("scaling_factor"),
        shift_factor=config.get("shift_factor"),
        latents_mean=None if mean is None else tuple(mean),
        latents_std=None if std is None else tuple(std),
        vae_family=source.vae_family,
    )


_NOT_HASHED = {"scaling_factor", "shift_factor", "latents_mean", "latents_std", "sample_size", "force_upcast"}
"""Configuration keys that have their own metadata field, or that do not change how this package encodes."""


def config_sha256(vae: ModelMixin) -> str:
    """SHA-256 over the configuration's values that differ from the class's defaults, as JSON sorted by name.

    Keys that begin with ``_`` (versions and paths) and options that a newer diffusers adds do not change it.
    """
    parameters = inspect.signature(type(vae).__init__).parameters
    values = {
        name: value
        for name, value in vae.config.items()
        if not name.startswith("_") and name not in _NOT_HASHED
        if name not in parameters or json.dumps(parameters[name].default, default=str) != json.dumps(value)
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def weights_sha256(vae: ModelMixin) -> str:
    """SHA-256 over the state dict, sorted by name: each tensor's name, its shape, and its values as float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().tobytes() if values.ndim == 0 else memoryview(values.numpy()).cast("B"))
    return digest.hexdigest()
