"""Rows in the conventions of other tools: inputs of diffusers' inpainting models, and ComfyUI's LATENT.

Pure functions of one row, whose arrays are torch tensors, and of the output's metadata. They return new dicts of
float32 tensors and do not change the row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from inpaint_encode.core.transform import resize_to_latent
from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.vae.latents import apply_vae_family, check_scalable, to_scaled, to_unscaled
from inpaint_encode.vae.registry import vae_class_of

Layout = Literal["channels", "flux_fill"]
"""How a denoiser takes latents and mask. ``channels``: concatenated as channels (Stable Diffusion 1, 2, XL and 3).
``flux_fill``: as a sequence of 2x2 patches (Flux.1 Fill)."""


def for_diffusers(
    row: Mapping[str, Any],
    metadata: RowMetadata,
    *,
    layout: Layout = "channels",
    with_latents: bool = True,
    generator: torch.Generator | None = None,
    vae_family: str = "",
) -> dict[str, Tensor]:
    """Return the tensors that diffusers' inpainting pipelines pass to their denoiser; `inpaint_input` combines them.

    Args:
        row: ``samples``, ``noise_mask`` and, if the output has them, ``original_samples`` and ``latent_mask``.
        metadata: the output's metadata, see `LatentDataset.metadata`.
        layout: layout of the denoiser's input.
        with_latents: return ``latents``, which need ``original_samples``.
        generator: draws ``latents`` and then ``masked_image_latents`` from stored moments. Default: their means.
        vae_family: sd1, sdxl, sd3 or flux1, if the VAE was a single file whose scaling is unknown.

    Returns:
        ``latents``: the scaled latent of the original image, to which a trainer adds noise.
        ``masked_image_latents``: the scaled latent of the masked image.
        ``mask``: 0 or 1.
        Shapes for ``channels``: ``[C, h, w]``, ``[C, h, w]`` and ``[1, h, w]``, the mask by `latent_mask`.
        Shapes for ``flux_fill``: ``[h/2 * w/2, 4C]``, the same, and ``[h/2 * w/2, 4 * vae_scale_factor**2]``, the
        mask being all pixels of ``noise_mask``; see `pack_latent`.

    Raises:
        UsageError: as `check_for_diffusers`; or the latent has an odd side and the layout is ``flux_fill``.
    """
    vae = check_for_diffusers(metadata, layout, with_latents, generator, vae_family)
    columns = {"latents": "original_samples"} if with_latents else {}
    columns["masked_image_latents"] = "samples"
    stored = {name: latent_of(row[column], metadata, generator) for name, column in columns.items()}
    tensors = {name: to_scaled(latent[None], vae)[0] for name, latent in stored.items()}
    if layout == "channels":
        return {**tensors, "mask": latent_mask(row, metadata, "diffusers")}
    pixels = pixel_unshuffle(row["noise_mask"].float(), vae.vae_scale_factor)
    return {name: pack_latent(values) for name, values in {**tensors, "mask": pixels}.items()}


def check_for_diffusers(
    metadata: RowMetadata, layout: str, with_latents: bool, generator: torch.Generator | None, vae_family: str
) -> VaeMetadata:
    """Check, before a row is read, that `for_diffusers` works for an output; return its VAE with a known scaling.

    Raises:
        UsageError: ``with_latents``, and the output has no ``original_samples``; ``generator``, and it has no moments;
            the scaling is unknown; or ``flux_fill``, and the latents are not of Flux.1's kind.
    """
    if layout not in get_args(Layout):
        raise UsageError(f"for_diffusers: layout is {layout!r}; it must be one of {', '.join(get_args(Layout))}")
    if with_latents and not metadata.also_original:
        raise UsageError(
            "for_diffusers: the output has no original_samples, which latents need; encode with --also-original, or "
            "pass with_latents=False to get mask and masked_image_latents only"
        )
    if generator is not None and metadata.posterior != "moments":
        raise UsageError(
            f"for_diffusers: generator needs moments, but the output stores posterior {metadata.posterior}; encode "
            "with --posterior moments, or leave out generator"
        )
    vae = apply_vae_family(metadata.vae, vae_family)
    check_scalable(vae, "for_diffusers", "give the model, as in vae_family='sdxl'")
    if layout == "flux_fill" and vae.latent_form == "packed":
        raise UsageError(f"for_diffusers: latents of {vae.vae_class} are already packed and do not fit Flux.1 Fill")
    return vae


def for_comfyui(row: Mapping[str, Any], metadata: RowMetadata, *, original: bool = False) -> dict[str, Tensor]:
    """Return ComfyUI's LATENT: ``samples`` ``[1, C, h, w]``, not scaled, and ``noise_mask`` ``[1, 1, H, W]``.

    Latents that were stored with ``--scaled`` are unscaled; stored moments give their mean. Packed latents of Flux.2
    and latents of AutoencoderTiny are returned as stored.

    Args:
        row: ``samples`` or ``original_samples``, and ``noise_mask``.
        metadata: the output's metadata, see `LatentDataset.metadata`.
        original: return ``original_samples`` as ``samples``, for sampling with a denoise below 1.

    Raises:
        UsageError: ``original``, and the output has no ``original_samples``.
    """
    if original and not metadata.also_original:
        raise UsageError("for_comfyui: the output has no original_samples; encode with --also-original")
    samples = unscaled(row["original_samples" if original else "samples"], metadata)
    return {"samples": samples[None], "noise_mask": row["noise_mask"].float()[None]}


def unscaled(stored: Tensor, metadata: RowMetadata) -> Tensor:
    """Return a stored latent as the VAE returned it, float32 ``[C, h, w]``: reverts ``--scaled``."""
    latent, vae = latent_of(stored, metadata), metadata.vae
    if vae.latent_form != "scaled" or vae_class_of(vae.vae_class).latents_are_scaled:
        return latent
    return to_unscaled(latent[None].double(), replace(vae, latent_form="unscaled"))[0].float()


def latent_of(stored: Tensor, metadata: RowMetadata, generator: torch.Generator | None = None) -> Tensor:
    """Return a stored latent as float32 ``[C, h, w]``: of moments the mean, or with ``generator`` a sample."""
    values = stored.to(torch.float32, copy=True)
    if metadata.posterior != "moments":
        return values
    mean, logvar = values.chunk(2)
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
    return mean + torch.exp(0.5 * logvar) * noise


def latent_mask(row: Mapping[str, Any], metadata: RowMetadata, convention: Literal["comfyui", "diffusers"]) -> Tensor:
    """Return a mask in the latent's size, float32 ``[1, h, w]``; see `inpaint_encode.core.transform.resize_to_latent`.

    It is the stored ``latent_mask`` if that has this convention, else it is computed from ``noise_mask``. Hence
    ``diffusers`` gives the mask before growing if ``--latent-mask diffusers`` stored it, and the grown mask otherwise.
    """
    if metadata.latent_mask == convention:
        stored: Tensor = row["latent_mask"]
        return stored.to(torch.float32, copy=True)
    height, width = row["samples"].shape[-2:]
    return resize_to_latent(row["noise_mask"], height, width, convention)


def pack_latent(latent: Tensor) -> Tensor:
    """Return ``[..., C, h, w]`` as Flux.1's sequence of 2x2 patches, ``[..., h/2 * w/2, 4C]``.

    Raises:
        UsageError: a side is odd.
    """
    height, width = latent.shape[-2:]
    if height % 2 or width % 2:
        raise UsageError(
            f"a latent of {width} x {height} cannot be split into patches of 2 x 2; encode at multiples of 16 pixels, "
            "with --resolution or --buckets"
        )
    return pixel_unshuffle(latent, 2).flatten(-2).transpose(-1, -2).contiguous()


def inpaint_input(noisy_latents: Tensor, row: Mapping[str, Tensor], *, layout: Layout = "channels") -> Tensor:
    """Return the denoiser's input for one step: noisy latents, mask and latents of the masked image.

    Args:
        noisy_latents: ``latents`` with the scheduler's noise, or noise only, in this layout; for ``flux_fill`` see
            `pack_latent`.
        row: a row of `for_diffusers` in this layout, or a stacked batch of rows.
        layout: layout of the denoiser's input.

    Returns:
        For ``channels``: noisy latents, mask, masked_image_latents, ``[..., 2C + 1, h, w]``; 9 channels for Stable
        Diffusion. For ``flux_fill``: noisy latents, masked_image_latents, mask,
        ``[..., h/2 * w/2, 8C + 4 * vae_scale_factor**2]``; 384 for Flux.1.
    """
    if layout == "channels":
        return torch.cat([noisy_latents, row["mask"], row["masked_image_latents"]], dim=-3)
    return torch.cat([noisy_latents, row["masked_image_latents"], row["mask"]], dim=-1)
