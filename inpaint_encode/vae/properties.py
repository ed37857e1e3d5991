"""Properties of a loaded VAE: scale factor, channels, form of its latents, hashes of its weights and configuration."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import TYPE_CHECKING

import torch

from inpaint_encode.metadata import LatentForm, VaeMetadata

from .registry import vae_class_of

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from inpaint_encode.settings import VaeSource


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
        vae_source="/".join(part for part in (source.vae, source.subfolder) if part)
        + (f"@{source.revision}" if source.revision else ""),
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
