"""The steps of the transform as they are usually written: Pillow, float32 from the start, a convolution that grows."""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import s3fs
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs.benchmarks.data import Pair
from jobs.benchmarks.fake_vae import RATIO

__all__ = ["Prepared", "dilate", "prepare", "save_npz"]


class Prepared(NamedTuple):
    """A pair that is ready for the VAE."""

    pixels: Tensor
    """float32 ``[3, H, W]`` in -1..1, cropped to multiples of eight, 0 where the mask is 1."""
    mask: Tensor
    """float32 ``[H, W]``, 0 or 1, not grown."""


def prepare(pair: Pair) -> Prepared:
    """Read both files of a pair from a disk or a bucket, decode, crop and grey them, in one thread."""
    image, mask = _decode(pair.image, "RGB"), _decode(pair.mask, "L")
    if mask.shape != image.shape[:2]:
        mask = _resized(mask, image.shape[:2])
    rows, columns = (_centre(side) for side in image.shape[:2])
    image, mask = image[rows, columns], mask[rows, columns].round()
    grey = (image - 0.5) * (1 - mask)[..., None] + 0.5
    pixels = np.ascontiguousarray((2 * grey - 1).transpose(2, 0, 1))
    return Prepared(torch.from_numpy(pixels), torch.from_numpy(np.ascontiguousarray(mask)))


def dilate(masks: Tensor, side: int) -> Tensor:
    """Grow float32 0/1 masks ``[B, H, W]`` by a square of ``side`` pixels, by convolution with ones; uint8."""
    if side < 2:
        return masks.to(torch.uint8)
    height, width = masks.shape[-2:]
    ones = torch.ones(1, 1, side, side, device=masks.device)
    grown = F.conv2d(masks[:, None], ones, padding=side // 2)[:, 0, :height, :width]
    return (grown > 0.5).to(torch.uint8)


def save_npz(folder: Path, key: str, latents: Tensor, grown: Tensor) -> None:
    """Write one image's latents ``[C, h, w]`` as float16 and its mask ``[1, H, W]`` into ``folder/key.npz``."""
    path = folder / f"{key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, samples=latents.to(torch.float16).cpu().numpy(), noise_mask=grown[None].cpu().numpy())


def _decode(uri: str, mode: str) -> NDArray[np.float32]:
    # s3fs caches its instances, so all calls share one client.
    data = s3fs.S3FileSystem().cat_file(uri) if uri.startswith("s3://") else Path(uri).read_bytes()
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert(mode), np.float32) / np.float32(255)


def _resized(mask: NDArray[np.float32], size: tuple[int, ...]) -> NDArray[np.float32]:
    resized = F.interpolate(torch.from_numpy(mask)[None, None], size, mode="bilinear", align_corners=False)
    values: NDArray[np.float32] = resized[0, 0].numpy()
    return values


def _centre(side: int) -> slice:
    start = side % RATIO // 2
    return slice(start, start + side // RATIO * RATIO)
