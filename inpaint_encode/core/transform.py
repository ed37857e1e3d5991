"""The transform of an image and its mask, step by step, in plain torch.

Every function is pure and works on the CPU and on a GPU alike. ``H, W`` are the image's sides in pixels,
``h, w`` the mask's; leading dimensions are free unless stated. A mask is 1 where the image is repainted.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import CropBox, crop_box

__all__ = [
    "MAX_GROW",
    "CropBox",
    "binarise_mask",
    "crop_box",
    "grow_mask",
    "mask_of_latent",
    "neutralise",
    "resize_mask",
]

MAX_GROW = 64


def resize_mask(mask: Tensor, height: int, width: int) -> Tensor:
    """Bring ``mask`` float32 ``[B, h, w]`` to ``[B, height, width]``; equal sizes come back as they are.

    Bilinear with half-pixel centres and no antialiasing, always computed on the CPU in float32: a GPU's last
    bit can differ, and one bit is enough to flip a pixel when the mask is made binary.
    """
    if tuple(mask.shape[-2:]) == (height, width):
        return mask
    on_cpu = mask.detach().to("cpu", torch.float32).unsqueeze(1)
    resized = F.interpolate(on_cpu, (height, width), mode="bilinear", align_corners=False, antialias=False)
    return resized.squeeze(1).to(mask.device)


def binarise_mask(mask: Tensor) -> Tensor:
    """Round ``mask`` in 0..1 to 0 or 1, same shape and type; exactly 0.5 is kept, that is 0."""
    return mask.round()


def neutralise(pixels: Tensor, mask: Tensor) -> Tensor:
    """Make the repainted pixels exactly 0.5 grey.

    ``pixels`` float32 ``[..., H, W, C]`` in 0..1 and the binary, ungrown ``mask`` float32 ``[..., H, W]`` give
    the shape of ``pixels``.
    """
    keep = (1.0 - mask).unsqueeze(-1)
    return (pixels - 0.5) * keep + 0.5


def grow_mask(mask: Tensor, grow_mask_by: int) -> Tensor:
    """Dilate a binary mask ``[..., H, W]`` of any type by a square of side ``grow_mask_by``; same shape and type.

    ``grow_mask_by`` is the square's side in pixels, not a radius: output pixel ``i`` sees the inputs
    ``i - p .. i - p + k - 1`` with ``p = ceil((k - 1) / 2)``, zeros outside the border. An even side is therefore
    lopsided: 6 spreads one pixel over -2..+3. 0 and 1 change nothing. The work rises with the logarithm of the
    side: windows are doubled by OR until they are as wide as the square.

    Raises:
        ValueError: ``grow_mask_by`` is not within 0..64.
    """
    if not 0 <= grow_mask_by <= MAX_GROW:
        raise ValueError(f"grow_mask_by is {grow_mask_by}; it must be within 0..{MAX_GROW}")
    if grow_mask_by < 2:
        return mask.clone()
    before = grow_mask_by // 2  # ceil((k - 1) / 2)
    after = grow_mask_by - 1 - before
    padded = F.pad(mask.to(torch.uint8), (before, after, before, after))
    return _or_window(_or_window(padded, grow_mask_by, -1), grow_mask_by, -2).to(mask.dtype)


def _or_window(bits: Tensor, width: int, dim: int) -> Tensor:
    """OR of every run of ``width`` neighbours along ``dim``, which becomes ``width - 1`` shorter."""
    reach = 1
    while reach < width:
        step = min(reach, width - reach)
        length = bits.shape[dim] - step
        bits = bits.narrow(dim, 0, length) | bits.narrow(dim, step, length)
        reach += step
    return bits


def mask_of_latent(mask: Tensor, height: int, width: int, rule: Literal["comfyui", "diffusers"]) -> Tensor:
    """Bring ``mask`` ``[B, H, W]``, 0 or 1, to a latent's size: float32 ``[B, height, width]``, always on the CPU.

    ``comfyui`` is what its sampler makes of a grown ``noise_mask``: bilinear with half-pixel centres and neither
    antialiasing nor rounding, so that an even ratio gives the mean of each cell's central 2 x 2 pixels. ``diffusers``
    is what its pipelines make of a mask that is not grown: the nearest pixel by their reckoning, each cell's first.
    """
    on_cpu = mask.detach().to("cpu", torch.float32).unsqueeze(1)
    if rule == "comfyui":
        return F.interpolate(on_cpu, (height, width), mode="bilinear", align_corners=False).squeeze(1)
    return F.interpolate(on_cpu, (height, width), mode="nearest").squeeze(1)
