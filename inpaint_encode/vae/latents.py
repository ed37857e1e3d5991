"""Latents after the encoder: the values that rows store, the scaled space of a denoiser, and decoding to pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pixel_shuffle

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import LatentForm, RowMetadata, VaeMetadata

from .encode import Posterior, per_channel, posterior
from .registry import latent_patch_size, patch_statistics, vae_class_of

if TYPE_CHECKING:
    from diffusers import ModelMixin


class LatentValues(NamedTuple):
    """A batch of latents as rows store them."""

    values: Tensor
    """``[B, C, h, w]`` in ``samples_dtype``; moments have twice the channels."""
    finite: Tensor
    """bool ``[B]``: all values are finite before the cast to ``samples_dtype``."""
    fits_stored_dtype: Tensor
    """bool ``[B]``: all values are finite after the cast."""


def latent_values(
    posteriors: Sequence[Posterior], keys: Sequence[str], metadata: RowMetadata, vae: VaeMetadata
) -> list[LatentValues]:
    """Return what rows store of each posterior. With ``posterior="sample"``, all use the same draw for a key.

    Args:
        posteriors: of the same batch, float32 ``[B, C, h, w]``.
        keys: the rows' keys, which seed the draws.
        metadata: of the rows.
        vae: of the loaded VAE, with the ``latent_form`` of its encoder.
    """
    noise, first = None, posteriors[0].mean
    if metadata.posterior == "sample":  # drawn on the CPU, while a GPU works
        drawn = [standard_normal(metadata.posterior_seed, key, first.shape[1:]) for key in keys]
        noise = torch.from_numpy(np.stack(drawn))
        noise = noise.pin_memory().to(first.device, non_blocking=True) if first.is_cuda else noise
    results = []
    for mean, logvar in posteriors:
        values = mean
        if metadata.posterior != "mean":
            assert logvar is not None, "check_supported refuses such a VAE before the job"
            values = torch.cat([mean, logvar], 1) if noise is None else mean + torch.exp(0.5 * logvar) * noise
        if metadata.scaled:
            values = to_scaled(values, vae)
        stored = values.to({"float16": torch.float16, "float32": torch.float32}[metadata.samples_dtype])
        results.append(LatentValues(stored, *(one.isfinite().flatten(1).all(dim=1) for one in (values, stored))))
    return results


def check_supported(metadata: RowMetadata, vae: ModelMixin, vae_metadata: VaeMetadata) -> None:
    """Check that the VAE can produce the values that the rows store.

    Raises:
        UsageError: the VAE has no posterior to draw from, or its scaling is unknown.
    """
    side = 2 * vae_metadata.crop_multiple
    if metadata.posterior != "mean" and posterior(vae, torch.full((1, side, side, 3), 0.5)).logvar is None:
        raise UsageError(
            f"--posterior {metadata.posterior}: {vae_metadata.vae_class} has no posterior; use --posterior mean"
        )
    if metadata.scaled:
        check_scalable(vae_metadata)


def standard_normal(seed: int, key: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Draw from the standard normal distribution; ``seed`` and ``key`` alone decide the values, on any machine."""
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(digest[:16], "little")))
    return generator.standard_normal(shape, np.float32)


class Scaling(NamedTuple):
    """The scaling of a model with an AutoencoderKL, and the shapes that identify its VAE."""

    channels: int
    levels: int
    """Levels of the encoder."""
    scaling_factor: float
    shift_factor: float | None


SCALINGS: Mapping[str, Scaling] = MappingProxyType(
    {
        "sd1": Scaling(4, 4, 0.18215, None),
        "sdxl": Scaling(4, 4, 0.13025, None),
        "sd3": Scaling(16, 4, 1.5305, 0.0609),
        "flux1": Scaling(16, 4, 0.3611, 0.1159),
        "x4-upscaler": Scaling(4, 3, 0.08333, None),
    }
)
"""By value of ``--vae-family``; the upscaler's shapes are unique, so that it needs no option."""


def to_scaled(latents: Tensor, metadata: VaeMetadata) -> Tensor:
    """Scale latents as diffusers' pipelines do for the denoiser.

    ``(latents - latents_mean) / latents_std`` where the model has statistics, then
    ``(latents - shift_factor) * scaling_factor``, each where it has one. Latents that are already scaled
    (AutoencoderTiny's, Flux.2's packed ones) are returned unchanged.

    Args:
        latents: float ``[B, C, h, w]``, as `inpaint_encode.vae.encode.posterior` returns them.
        metadata: of the VAE that made them.

    Raises:
        UsageError: the scaling is unknown, see `check_scalable`.
    """
    check_scalable(metadata)
    if metadata.latent_form != "unscaled":
        return latents
    if metadata.latents_mean is not None and metadata.latents_std is not None:
        mean, std = (per_channel(values, latents) for values in (metadata.latents_mean, metadata.latents_std))
        latents = (latents - mean) / std
    if metadata.shift_factor is not None:
        latents = latents - metadata.shift_factor
    return latents if metadata.scaling_factor is None else latents * metadata.scaling_factor


def to_unscaled(latents: Tensor, metadata: VaeMetadata) -> Tensor:
    """Undo `to_scaled`; both take and return float ``[B, C, h, w]``.

    Raises:
        UsageError: the scaling is unknown, see `check_scalable`.
    """
    check_scalable(metadata)
    if metadata.latent_form != "unscaled":
        return latents
    if metadata.scaling_factor is not None:
        latents = latents / metadata.scaling_factor
    if metadata.shift_factor is not None:
        latents = latents + metadata.shift_factor
    if metadata.latents_mean is None or metadata.latents_std is None:
        return latents
    mean, std = (per_channel(values, latents) for values in (metadata.latents_mean, metadata.latents_std))
    return latents * std + mean


def apply_vae_family(metadata: VaeMetadata, vae_family: str) -> VaeMetadata:
    """Return the metadata with the scaling of the named model, for a single file that does not state its scaling.

    Args:
        metadata: of the VAE.
        vae_family: a key of `SCALINGS`; "" returns the metadata unchanged.

    Raises:
        UsageError: that model's VAE has other shapes, or the metadata has another scaling.
    """
    if not vae_family:
        return metadata
    model = SCALINGS.get(vae_family)
    shape = metadata.vae_class, metadata.latent_channels, metadata.vae_scale_factor
    if model is None or ("AutoencoderKL", model.channels, 2 ** (model.levels - 1)) != shape:
        raise UsageError(
            f"vae_family {vae_family!r} does not fit {metadata.vae_source}, an {metadata.vae_class} with "
            f"{metadata.latent_channels} latent channels and downscale factor {metadata.vae_scale_factor}; known "
            f"families are {', '.join(SCALINGS)}"
        )
    if metadata.scaling_factor not in (None, model.scaling_factor):
        raise UsageError(
            f"vae_family {vae_family!r} does not fit {metadata.vae_source}, whose scaling_factor is "
            f"{metadata.scaling_factor}"
        )
    return replace(metadata, scaling_factor=model.scaling_factor, shift_factor=model.shift_factor)


def check_scalable(
    metadata: VaeMetadata,
    subject: str = "--scaled",
    remedy: str = "give the model with --vae-family, or give its diffusers folder",
) -> None:
    """Check that `to_scaled` can scale a VAE's latents.

    Args:
        metadata: of the VAE.
        subject: what needs the scaling; begins the error's sentence.
        remedy: what to do if the scaling is unknown; ends the error's sentence.

    Raises:
        UsageError: the scaling is unknown, or the model's statistics are for packed latents and these are plain.
    """
    if metadata.latent_form != "unscaled":
        return
    if metadata.latents_std is not None and len(metadata.latents_std) != metadata.latent_channels:
        raise UsageError(
            f"{subject} needs packed Flux.2 latents, but the output stores plain ones; "
            "encode with --flux2-latents packed"
        )
    if metadata.scaling_factor is None and metadata.latents_std is None:
        raise UsageError(
            f"{subject} needs the scaling of {metadata.vae_source}, which is unknown: its configuration has none, or "
            f"it is a single file whose tensor names and shapes fit several models; {remedy}"
        )


def decode_latents(vae: ModelMixin, latents: Tensor, metadata: VaeMetadata, form: LatentForm) -> Tensor:
    """Decode latents to float32 ``[B, H, W, 3]`` on the CPU, clipped to 0..1.

    Args:
        vae: a model of a class in `inpaint_encode.vae.registry.VAE_CLASSES`; it runs on its device and in its type.
        latents: float ``[B, C, h, w]``, means or draws; of moments, the first half of the channels.
        metadata: of the loaded VAE.
        form: ``latent_form`` of the rows; with ``--scaled`` it differs from the VAE's own.

    Raises:
        UsageError: the latents are scaled by an unknown factor.
    """
    vae_class, parameter = vae_class_of(vae), next(vae.parameters())
    with torch.inference_mode(), torch.autocast(parameter.device.type, enabled=False):
        latents = latents.to(parameter.device, torch.float32)
        if form == "packed":
            mean, std = (per_channel(statistic, latents) for statistic in patch_statistics(vae))
            latents = pixel_shuffle(latents * std + mean, latent_patch_size(vae))
        elif form == "scaled" and metadata.latent_form == "unscaled":
            latents = to_unscaled(latents, metadata)
        latents = latents.to(parameter.dtype)
        images = vae.decode(latents.unsqueeze(2) if vae_class.video else latents).sample
        rgb = (images[:, :, 0] if vae_class.video else images)[:, :3].float()
        pixels: Tensor = ((rgb + 1) / 2).clamp(0, 1).movedim(1, -1).cpu()
    return pixels
