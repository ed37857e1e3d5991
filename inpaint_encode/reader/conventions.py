"""A row as the tools take it that denoise: tensors for diffusers' inpainting models, a LATENT for ComfyUI.

Pure functions on one row as `inpaint_encode.reader.as_rows` gives it, its arrays turned into tensors, and on what the
output's files say of how their rows were made. They give new dictionaries of float32 tensors; the row stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pixel_unshuffle

from inpaint_encode.core.transform import mask_of_latent
from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.vae.registry import known_family
from inpaint_encode.vae.scaling import check_scalable, to_scaled, to_unscaled, with_family

__all__ = [
    "Layout",
    "check_for_diffusers",
    "for_comfyui",
    "for_diffusers",
    "inpaint_input",
    "latent_mask",
    "of_posterior",
    "packed",
    "unscaled",
]

Layout = Literal["channels", "flux_fill"]
"""How a denoiser takes latents and mask: side by side as channels, as those of Stable Diffusion 1, 2, XL and 3 do, or
as a sequence of 2x2 patches, as Flux.1 Fill does."""


def for_diffusers(
    row: Mapping[str, Any],
    metadata: RowMetadata,
    *,
    layout: Layout = "channels",
    with_latents: bool = True,
    generator: torch.Generator | None = None,
    vae_family: str = "",
) -> dict[str, Tensor]:
    """What diffusers' inpainting pipelines hand their denoiser, of one row; `inpaint_input` puts it together.

    ``latents`` of the image, not greyed, to which a trainer adds noise, and ``masked_image_latents`` of the greyed one,
    scaled; ``mask``, 0 or 1. As ``channels`` ``[C, h, w]``, ``[C, h, w]`` and, by `latent_mask`, ``[1, h, w]``. For
    ``flux_fill`` all are `packed`, and the mask is ``noise_mask``, its ``ratio**2`` pixels a latent value as channels.

    Args:
        row: its ``samples``, ``noise_mask`` and, where it has them, ``original_samples`` and ``latent_mask``.
        metadata: of the output, see `Output.metadata`.
        layout: of the denoiser.
        with_latents: False leaves ``latents`` out, which only ``original_samples`` can give.
        generator: of moments, draws ``latents`` and then ``masked_image_latents``; by default they are the means.
        vae_family: sd1, sdxl, sd3 or flux1, where the scaling of a single file's VAE is not known.

    Raises:
        UsageError: what `check_for_diffusers` refuses; or a latent with odd sides is to be packed.
    """
    check_for_diffusers(metadata, layout=layout, with_latents=with_latents, generator=generator, vae_family=vae_family)
    facts = with_family(metadata.vae, vae_family)
    columns = {"latents": "original_samples"} if with_latents else {}
    columns["masked_image_latents"] = "samples"
    stored = {name: of_posterior(row[column], metadata, generator) for name, column in columns.items()}
    tensors = {name: to_scaled(values[None], facts)[0] for name, values in stored.items()}
    if layout == "channels":
        return {**tensors, "mask": latent_mask(row, metadata, "diffusers")}
    cells = pixel_unshuffle(row["noise_mask"].float(), facts.vae_scale_factor)
    return {name: packed(values) for name, values in {**tensors, "mask": cells}.items()}


def check_for_diffusers(
    metadata: RowMetadata,
    *,
    layout: Layout = "channels",
    with_latents: bool = True,
    generator: torch.Generator | None = None,
    vae_family: str = "",
) -> None:
    """Refuse what `for_diffusers` cannot do for any row of an output, before one is read.

    Raises:
        UsageError: there are no ``original_samples`` to make ``latents`` of, no moments to draw from with
            ``generator``, nothing that tells by what to scale, or the latents are not Flux.1's for ``flux_fill``.
    """
    if layout not in get_args(Layout):
        raise UsageError(f"for_diffusers: layout is one of {', '.join(get_args(Layout))}, and not {layout}")
    if with_latents and not metadata.also_original:
        raise UsageError(
            "for_diffusers: these rows have no original_samples, of which latents are made; encode with "
            "--also-original, or ask for the mask and masked_image_latents alone by with_latents=False"
        )
    if generator is not None and metadata.posterior != "moments":
        raise UsageError(
            f"for_diffusers: a generator draws from moments, and these rows store a {metadata.posterior}; encode "
            "with --posterior moments, or leave the generator out"
        )
    facts = with_family(metadata.vae, vae_family)
    check_scalable(facts, "for_diffusers", "name the model by vae_family, as in vae_family='sdxl'")
    if layout == "flux_fill" and facts.latent_form == "packed":
        raise UsageError(f"for_diffusers: latents of {facts.vae_class} are packed already, and none of Flux.1 Fill's")


def for_comfyui(row: Mapping[str, Any], metadata: RowMetadata, *, original: bool = False) -> dict[str, Tensor]:
    """A LATENT of ComfyUI, of one row: ``samples`` ``[1, C, h, w]`` and ``noise_mask`` ``[1, 1, H, W]``.

    ``samples`` are not scaled: those of rows that were made by ``--scaled`` are scaled back. Of moments they are the
    means. Packed latents of Flux.2 and those of AutoencoderTiny are as they are stored.

    Args:
        row: its ``samples`` or ``original_samples``, and ``noise_mask``.
        metadata: of the output, see `Output.metadata`.
        original: give ``original_samples`` as ``samples``: what is sampled from at a denoise below 1.

    Raises:
        UsageError: there are no ``original_samples``.
    """
    if original and not metadata.also_original:
        raise UsageError("for_comfyui: these rows have no original_samples; encode with --also-original")
    samples = unscaled(row["original_samples" if original else "samples"], metadata)
    return {"samples": samples[None], "noise_mask": row["noise_mask"].float()[None]}


def unscaled(stored: Tensor, metadata: RowMetadata) -> Tensor:
    """One latent, float32 ``[C, h, w]``, as the VAE gave it: only what ``--scaled`` has scaled is computed."""
    samples = of_posterior(stored, metadata)
    facts = metadata.vae
    if facts.latent_form != "scaled" or known_family(facts.vae_class, "the VAE").scaled:
        return samples
    return to_unscaled(samples[None].double(), replace(facts, latent_form="unscaled"))[0].float()


def of_posterior(stored: Tensor, metadata: RowMetadata, generator: torch.Generator | None = None) -> Tensor:
    """One latent, float32 ``[C, h, w]``, of what a row stores; of moments the mean, or a draw with ``generator``."""
    values = stored.to(torch.float32, copy=True)
    if metadata.posterior != "moments":
        return values
    mean, logvar = values.chunk(2)
    if generator is None:
        return mean
    noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
    return mean + torch.exp(0.5 * logvar) * noise


def latent_mask(row: Mapping[str, Any], metadata: RowMetadata, convention: Literal["comfyui", "diffusers"]) -> Tensor:
    """A mask at the latent's size, float32 ``[1, h, w]``, by a rule of `inpaint_encode.core.transform.mask_of_latent`.

    It is the stored one, if the output has it by this rule, and else it is made of ``noise_mask``. So by diffusers'
    rule it is of the mask before it grew where ``--latent-mask diffusers`` stored it, and else of the grown one.
    """
    if metadata.latent_mask == convention:
        stored: Tensor = row["latent_mask"]
        return stored.to(torch.float32, copy=True)
    height, width = row["samples"].shape[-2:]
    return mask_of_latent(row["noise_mask"], height, width, convention)


def packed(values: Tensor) -> Tensor:
    """``[..., C, h, w]`` as Flux.1's sequence of 2x2 patches, ``[..., h/2 * w/2, 4C]``.

    Raises:
        UsageError: a side is odd.
    """
    height, width = values.shape[-2:]
    if height % 2 or width % 2:
        raise UsageError(
            f"a latent of {height} x {width} has no whole patches of 2 x 2; encode at multiples of 16 pixels, by "
            "--resolution or --buckets"
        )
    return pixel_unshuffle(values, 2).flatten(-2).transpose(-1, -2).contiguous()


def inpaint_input(noisy_latents: Tensor, row: Mapping[str, Tensor], *, layout: Layout = "channels") -> Tensor:
    """What the denoiser takes at a step: the noisy latents, and what it is told of the image.

    As ``channels`` noisy latents, mask, masked_image_latents, ``[..., 2C + 1, h, w]``: nine for Stable Diffusion.
    For ``flux_fill`` noisy latents, masked_image_latents, mask, ``[..., h/2 * w/2, 8C + 4 * ratio**2]``: Flux.1's 384.

    Args:
        noisy_latents: in this layout, ``latents`` with the scheduler's noise, or noise alone.
        row: by `for_diffusers` in this layout; or a batch of them, stacked.
        layout: of the denoiser.
    """
    if layout == "channels":
        return torch.cat([noisy_latents, row["mask"], row["masked_image_latents"]], dim=-3)
    return torch.cat([noisy_latents, row["masked_image_latents"], row["mask"]], dim=-1)
