"""The whole transform on tensors, for a few images in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from inpaint_encode.vae.encode import posterior
from inpaint_encode.vae.properties import crop_multiple

from .transform import binarise_mask, crop_box, grow_mask, neutralise, resize_mask

if TYPE_CHECKING:
    from diffusers import ModelMixin

__all__ = ["InpaintLatents", "encode_for_inpaint"]


class InpaintLatents(NamedTuple):
    """What ComfyUI calls a LATENT made for inpainting."""

    samples: Tensor
    """float32 ``[B, C, h, w]``: the posterior's mean in the VAE's own `latent_form`, neither scaled nor shifted."""
    noise_mask: Tensor
    """float32 ``[B, 1, H, W]``: 1 where the sampler may repaint, at the pixel size of the crop."""


def encode_for_inpaint(pixels: Tensor, mask: Tensor, vae: ModelMixin, grow_mask_by: int = 6) -> InpaintLatents:
    """Encode images for inpainting: resize and crop the mask and the image, grey out, grow, encode.

    Args:
        pixels: float32 ``[B, H, W, 3]`` in 0..1; channels after the third are dropped.
        mask: float32 ``[B, h, w]`` or ``[1, h, w]`` in 0..1, 1 = repaint; one mask serves every image, and its
            size may differ from the images'.
        vae: a diffusers VAE of any class in `inpaint_encode.vae.FAMILIES`; it runs on the device and in the type that
            it is in.
        grow_mask_by: side in pixels of the square that dilates ``noise_mask``, 0..64.

    Raises:
        ValueError: the batches do not match, a side is smaller than the VAE's multiple, or the growth is out of range.
    """
    count, height, width = pixels.shape[:3]
    if mask.shape[0] not in (1, count):
        raise ValueError(f"{mask.shape[0]} masks for {count} images; give one mask for each image, or one for all")
    crop = crop_box(height, width, crop_multiple(vae))
    rows, columns = crop.slices
    binary = binarise_mask(resize_mask(mask, height, width)[:, rows, columns])
    samples = posterior(vae, neutralise(pixels[:, rows, columns, :3], binary)).mean
    noise_mask = grow_mask(binary, grow_mask_by).unsqueeze(1).expand(count, -1, -1, -1)
    return InpaintLatents(samples, noise_mask)
