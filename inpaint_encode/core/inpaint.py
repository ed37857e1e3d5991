"""The whole transform as one function, for a few images in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from inpaint_encode.vae.encode import posterior
from inpaint_encode.vae.registry import crop_multiple

from .geometry import crop_box
from .transform import binarize_mask, grow_mask, mask_image, resize_mask

if TYPE_CHECKING:
    from diffusers import ModelMixin

_PIXELS = "pixels must be float [B, H, W, 3] in 0..1"
_MASK = "mask must be float [B, h, w] or [1, h, w] in 0..1, 1 = repaint"


class InpaintLatents(NamedTuple):
    """Latents for inpainting, as ComfyUI's ``VAEEncodeForInpaint`` returns them."""

    samples: Tensor
    """Latent of the masked image: float32 ``[B, C, h, w]``, the posterior's mean, neither scaled nor shifted."""
    noise_mask: Tensor
    """Grown mask: float32 ``[B, 1, H, W]``, 1 where the sampler repaints, in pixels of the crop."""


def encode_for_inpaint(pixels: Tensor, mask: Tensor, vae: ModelMixin, grow_mask_by: int = 6) -> InpaintLatents:
    """Encode images and masks for inpainting, as a job does, without Ray and without files.

    The mask is resized to the images. Both are cropped around the center to the VAE's multiple. The mask is rounded to
    0 or 1. Repainted pixels become 0.5 gray, and the VAE encodes the result. The returned mask is grown.

    Args:
        pixels: float ``[B, H, W, 3]`` in 0..1, RGB, on any device. A fourth channel is dropped as alpha.
        mask: float ``[B, h, w]`` in 0..1, 1 where the image is repainted; ``[1, h, w]`` is used for all images.
            ``h, w`` may differ from ``H, W``.
        vae: a loaded VAE of a class in `inpaint_encode.vae.registry.VAE_CLASSES`, such as `load_vae` returns.
            It encodes on its own device and in its own dtype.
        grow_mask_by: side in pixels of the square that grows ``noise_mask``, 0 to 64; 0 and 1 do not grow it.

    Returns:
        ``samples``, float32 ``[B, C, H / factor, W / factor]`` of the crop, and ``noise_mask``, float32
        ``[B, 1, H, W]`` of the crop. ``samples`` are not scaled; diffusers' pipelines want them scaled.

    Raises:
        TypeError: ``pixels`` or ``mask`` is not a floating-point tensor, or ``vae`` is not a loaded VAE.
        ValueError: a shape or a value of ``pixels`` or ``mask`` is wrong, an image is smaller than the VAE's multiple,
            or ``grow_mask_by`` is not in 0..64.

    Example:
        >>> import numpy as np
        >>> import torch
        >>> from PIL import Image
        >>> from inpaint_encode import encode_for_inpaint, load_vae
        >>> vae = load_vae("path/to/vae")
        >>> image, mask = Image.open("image.png").convert("RGB"), Image.open("mask.png").convert("L")
        >>> pixels = torch.from_numpy(np.array(image))[None].float() / 255  # [1, H, W, 3]
        >>> repaint = torch.from_numpy(np.array(mask))[None].float() / 255  # [1, h, w]
        >>> samples, noise_mask = encode_for_inpaint(pixels, repaint, vae, grow_mask_by=6)
    """
    _check_pixels(pixels)
    _check_mask(mask, images=len(pixels))
    if not hasattr(vae, "config"):
        raise TypeError(f"vae must be a loaded diffusers VAE, such as load_vae returns; got {type(vae).__name__}")
    count, height, width = pixels.shape[:3]
    rows, columns = crop_box(height, width, crop_multiple(vae)).slices
    mask = mask.to(pixels.device, torch.float32)
    binary = binarize_mask(resize_mask(mask, height, width)[:, rows, columns])
    noise_mask = grow_mask(binary, grow_mask_by).unsqueeze(1).expand(count, -1, -1, -1)
    samples = posterior(vae, mask_image(pixels[:, rows, columns, :3].to(torch.float32), binary)).mean
    return InpaintLatents(samples, noise_mask)


def _check_pixels(pixels: Tensor) -> None:
    _check_type(pixels, _PIXELS)
    shape = list(pixels.shape)
    if pixels.ndim == 3 and shape[-1] in (3, 4):
        raise ValueError(f"{_PIXELS}; got one image {shape}: use pixels[None]")
    if pixels.ndim != 4:
        raise ValueError(f"{_PIXELS}; got {pixels.ndim} dimensions: {shape}")
    if shape[-1] not in (3, 4):
        if shape[1] in (3, 4):
            raise ValueError(f"{_PIXELS}; got channels first {shape}: use pixels.movedim(1, -1)")
        grey = ": repeat gray with pixels.expand(-1, -1, -1, 3)" if shape[-1] == 1 else ""
        raise ValueError(f"{_PIXELS}; got {shape[-1]} channels in {shape}{grey}")
    _check_values(pixels, _PIXELS)


def _check_mask(mask: Tensor, images: int) -> None:
    _check_type(mask, _MASK)
    shape = list(mask.shape)
    if mask.ndim == 2:
        raise ValueError(f"{_MASK}; got {shape} without a batch dimension: use mask[None]")
    if mask.ndim == 4 and 1 in (shape[1], shape[3]):
        axis = 1 if shape[1] == 1 else 3
        raise ValueError(f"{_MASK}; got a channel axis in {shape}: use mask.squeeze({axis})")
    if mask.ndim != 3:
        raise ValueError(f"{_MASK}; got {mask.ndim} dimensions: {shape}")
    if shape[0] not in (1, images):
        raise ValueError(f"{_MASK}; got {shape[0]} masks for {images} images: give one for each image, or one for all")
    _check_values(mask, _MASK)


def _check_type(values: Tensor, expected: str) -> None:
    if not isinstance(values, Tensor):
        raise TypeError(f"{expected}; got {type(values).__name__}, not a torch.Tensor")
    if not values.is_floating_point():
        name = str(values.dtype).removeprefix("torch.")
        fix = {"uint8": "divide by 255", "bool": "use .float()"}.get(name, "convert to float in 0..1")
        raise TypeError(f"{expected}; got {name}: {fix}")


def _check_values(values: Tensor, expected: str) -> None:
    if values.numel() == 0:
        raise ValueError(f"{expected}; got an empty tensor {list(values.shape)}")
    low, high = (float(value) for value in values.detach().aminmax())
    if low != low or high != high:
        raise ValueError(f"{expected}; got NaN")
    if low < 0 or high > 1:
        fix = ""
        if low >= 0 and high <= 255:
            fix = ": divide by 255"
        elif low >= -1 and high <= 1:
            fix = ": use (x + 1) / 2"
        raise ValueError(f"{expected}; got values from {low:g} to {high:g}{fix}")
