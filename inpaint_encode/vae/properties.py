"""What a loaded VAE is: scale factor, channels, form of its latents, hashes of its weights and configuration."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import TYPE_CHECKING

import torch

from inpaint_encode.metadata import LatentForm, VaeMetadata
from inpaint_encode.settings import VaeSource

from .registry import family_of

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = [
    "config_sha256",
    "crop_multiple",
    "latent_channels",
    "latent_form",
    "patch_statistics",
    "vae_metadata",
    "vae_scale_factor",
    "weights_sha256",
]


def vae_scale_factor(vae: ModelMixin) -> int:
    """How many pixels of a side become one value of the stored latent."""
    family = family_of(vae)
    ratio = family.ratio(vae.config)
    return ratio * family.patch(vae.config) if latent_form(vae) == "packed" else ratio


def crop_multiple(vae: ModelMixin) -> int:
    """What an image's sides must be multiples of: the ratio, and of Flux.2 that of its packed latents in any form."""
    family = family_of(vae)
    return family.ratio(vae.config) * family.patch(vae.config)


def latent_channels(vae: ModelMixin) -> int:
    """Channels of the stored latent."""
    family = family_of(vae)
    channels = int(vae.config[family.channels])
    return channels * family.patch(vae.config) ** 2 if latent_form(vae) == "packed" else channels


def latent_form(vae: ModelMixin) -> LatentForm:
    """What `inpaint_encode.vae.posterior` gives of this model; of a Flux.2 as `load_vae` was told, else packed."""
    family = family_of(vae)
    if family.scaled:
        return "scaled"
    if family.patch(vae.config) > 1:
        return "unscaled" if vae.config.get("flux2_latents") == "plain" else "packed"
    return "unscaled"


def patch_statistics(vae: ModelMixin) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel of packed Flux.2 latents, in float32 as the weights have them.

    `load_vae` keeps them in the configuration, since a model that is cast to half precision rounds them.
    """
    if "latents_std" in vae.config:
        return vae.config.latents_mean, vae.config.latents_std
    variance = vae.bn.running_var.float() + vae.config.batch_norm_eps
    return vae.bn.running_mean.float().tolist(), variance.sqrt().tolist()


def vae_metadata(vae: ModelMixin, source: VaeSource) -> VaeMetadata:
    """Read the metadata from a loaded VAE's configuration and weights."""
    config = vae.config
    packs = family_of(vae).patch(config) > 1
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


_APART = {"scaling_factor", "shift_factor", "latents_mean", "latents_std", "sample_size", "force_upcast"}
"""Of a configuration: what is a fact of its own, and what no encoding here depends on."""


def config_sha256(vae: ModelMixin) -> str:
    """SHA-256 over the configuration as JSON: what differs from its class's defaults, in the order of the names.

    So neither versions and paths, whose names begin with ``_``, nor options that a newer diffusers adds change it.
    """
    parameters = inspect.signature(type(vae).__init__).parameters
    values = {
        name: value
        for name, value in vae.config.items()
        if not name.startswith("_") and name not in _APART
        if name not in parameters or json.dumps(parameters[name].default, default=str) != json.dumps(value)
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def weights_sha256(vae: ModelMixin) -> str:
    """SHA-256 over the state dict in the order of its names: each name, its shape, and its values as float32."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        values = tensor.detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(values.shape)}".encode())
        digest.update(values.numpy().tobytes() if values.ndim == 0 else memoryview(values.numpy()).cast("B"))
    return digest.hexdigest()
