"""The transform of images and masks, step by step, in plain torch.

1. `resize_mask`: the mask takes the image's size.
2. `inpaint_encode.core.geometry.crop_box`: image and mask are cropped to multiples of the VAE's downscale factor.
3. `binarize_mask`: the mask becomes 0 or 1.
4. `mask_image`: the masked image, repainted pixels 0.5 gray.
5. `grow_mask`: the mask is grown into ``noise_mask``; the masked image is not affected.
6. `inpaint_encode.vae.encode.posterior`: the VAE encodes the masked image.

`resize_to_latent` makes the optional mask at the latent's size. `inpaint_encode.core.inpaint.encode_for_inpaint` runs
all steps for a few images in memory. Jobs run steps 1 to 3 in `inpaint_encode.core.decode.pair`, and the others in
`inpaint_encode.core.encoder`. `PairDecoder.mask` skips the resize if the sizes match. It rounds before it crops;
the result is the same.

All functions are pure and work on the CPU and on GPUs. ``H, W`` are the image's sides in pixels, ``h, w`` the mask's.
Leading dimensions are free unless stated. A mask is 1 where the image is repainted, and 0 elsewhere.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

MAX_GROW = 64
"""Largest ``grow_mask_by``."""


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Resize masks to the images' size: bilinear with half-pixel centers, without antialiasing.

    The resize always runs on the CPU in float32. A GPU may differ in the last bit, and one bit is enough to flip a
    pixel in `binarize_mask`.

    Args:
        mask: float32 ``[B, h, w]`` in 0..1.
        height: target height in pixels.
        width: target width in pixels.

    Returns:
        float32 ``[B, height, width]`` in 0..1, on the mask's device; ``mask`` itself if it has this size already.
    """
    if tuple(mask.shape[-2:]) == (height, width):
        return mask
    on_cpu = mask.detach().to("cpu", torch.float32).unsqueeze(1)
    resized = F.interpolate(on_cpu, (height, width), mode="bilinear", align_corners=False, antialias=False)
    return resized.squeeze(1).to(mask.device)


def binarize_mask(mask: Tensor) -> Tensor:
    """Round a mask to 0 or 1; exactly 0.5 becomes 0.

    Args:
        mask: floating point, any shape, in 0..1.

    Returns:
        A new tensor of the same shape and dtype.
    """
    return mask.round()


def mask_image(pixels: Tensor, mask: Tensor) -> Tensor:
    """Return the masked image: repainted pixels become exactly 0.5 gray, in the middle of the VAE's range.

    Args:
        pixels: float32 ``[..., H, W, C]`` in 0..1.
        mask: float32 ``[..., H, W]``, 0 or 1, not grown.

    Returns:
        A new float32 tensor ``[..., H, W, C]``.
    """
    keep = (1.0 - mask).unsqueeze(-1)
    return (pixels - 0.5) * keep + 0.5


def grow_mask(mask: Tensor, grow_mask_by: int) -> Tensor:
    """Dilate a binary mask by a square, as ComfyUI's ``VAEEncodeForInpaint`` does.

    Output pixel ``i`` is the maximum of the inputs ``i - p`` to ``i - p + k - 1``, where ``k = grow_mask_by`` and
    ``p = ceil((k - 1) / 2)``; pixels outside the mask count as 0. A square with an even side is not symmetric: with 6,
    one pixel spreads over -2 to +3. The cost rises with the logarithm of ``k``.

    Args:
        mask: ``[..., H, W]`` of any dtype, 0 or 1.
        grow_mask_by: side of the square in pixels, 0 to 64; not a radius. 0 and 1 return a copy.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: ``grow_mask_by`` is not in 0..64.
    """
    if not 0 <= grow_mask_by <= MAX_GROW:
        raise ValueError(f"grow_mask_by is {grow_mask_by}; it must be in 0..{MAX_GROW}")
    if grow_mask_by < 2:
        return mask.clone()
    before = grow_mask_by // 2  # ceil((k - 1) / 2)
    after = grow_mask_by - 1 - before
    padded = F.pad(mask.to(torch.uint8), (before, after, before, after))
    return _or_window(_or_window(padded, grow_mask_by, -1), grow_mask_by, -2).to(mask.dtype)


def _or_window(bits: Tensor, width: int, dim: int) -> Tensor:
    """Return the OR of every window of ``width`` values along ``dim``, which becomes ``width - 1`` shorter.

    The window doubles with every OR, so the cost is logarithmic.
    """
    reach = 1
    while reach < width:
        step = min(reach, width - reach)
        length = bits.shape[dim] - step
        bits = bits.narrow(dim, 0, length) | bits.narrow(dim, step, length)
        reach += step
    return bits


def resize_to_latent(mask: Tensor, height: int, width: int, rule: Literal["comfyui", "diffusers"]) -> Tensor:
    """Resize masks to the latent's size, by the rule of the program that reads them.

    Args:
        mask: ``[B, H, W]``, 0 or 1.
        height: the latent's height.
        width: the latent's width.
        rule: ``comfyui`` is what its sampler does with a grown ``noise_mask``: bilinear with half-pixel centers,
            without antialiasing or rounding. With an even downscale factor each cell is the mean of its central 2 x 2
            pixels. ``diffusers`` is what its pipelines do with a mask that is not grown: nearest neighbor, each cell's
            first pixel.

    Returns:
        float32 ``[B, height, width]`` in 0..1, always on the CPU.
    """
    on_cpu = mask.detach().to("cpu", torch.float32).unsqueeze(1)
    if rule == "comfyui":
        return F.interpolate(on_cpu, (height, width), mode="bilinear", align_corners=False).squeeze(1)
    return F.interpolate(on_cpu, (height, width), mode="nearest").squeeze(1)
