"""The steps of the transform as usually written: Pillow, float32 from the start, dilation by convolution."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import s3fs
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from jobs.benchmarks.data import Pair
from jobs.benchmarks.fake_vae import SCALE_FACTOR

__all__ = ["Prepared", "dilate", "group_by_shape", "prepare", "read_file", "save_npz"]


class Prepared(NamedTuple):
    """A pair that is ready for the VAE."""

    pixels: Tensor
    """Masked float32 image ``[3, H, W]`` in -1..1, cropped to multiples of eight, 0 where the mask is 1."""
    mask: Tensor
    """float32 ``[H, W]``, 0 or 1, not grown."""


def prepare(pair: Pair) -> Prepared:
    """Read both files of a pair from a disk or S3, decode, crop and mask them, in one thread."""
    image, mask = _decode(pair.image, "RGB"), _decode(pair.mask, "L")
    if mask.shape != image.shape[:2]:
        resized = F.interpolate(
            torch.from_numpy(mask)[None, None], image.shape[:2], mode="bilinear", align_corners=False
        )
        mask = resized[0, 0].numpy()
    rows, columns = (_centre(side) for side in image.shape[:2])
    image, mask = image[rows, columns], mask[rows, columns].round()
    masked = (image - 0.5) * (1 - mask)[..., None] + 0.5
    pixels = np.ascontiguousarray((2 * masked - 1).transpose(2, 0, 1))
    return Prepared(torch.from_numpy(pixels), torch.from_numpy(np.ascontiguousarray(mask)))


def dilate(masks: Tensor, side: int) -> Tensor:
    """Dilate float32 0/1 masks ``[B, H, W]`` by a square of ``side`` pixels, by convolution with ones; uint8."""
    if side < 2:
        return masks.to(torch.uint8)
    height, width = masks.shape[-2:]
    ones = torch.ones(1, 1, side, side)
    grown = F.conv2d(masks[:, None], ones, padding=side // 2)[:, 0, :height, :width]
    return (grown > 0.5).to(torch.uint8)


def group_by_shape(arrays: Iterable[Any]) -> list[list[int]]:
    """Return the indices of the arrays or tensors of each shape."""
    groups: defaultdict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, array in enumerate(arrays):
        groups[tuple(array.shape)].append(index)
    return list(groups.values())


def save_npz(folder: Path, key: str, latents: Tensor, grown: Tensor) -> None:
    """Write one image's latents ``[C, h, w]`` as float16 and its mask ``[1, H, W]`` into ``folder/key.npz``."""
    path = folder / f"{key}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, samples=latents.to(torch.float16).numpy(), noise_mask=grown[None].numpy())


def read_file(uri: str) -> io.BytesIO:
    """Read a whole file from a disk, or from S3 with s3fs, which has one client per process."""
    if "://" not in uri:
        return io.BytesIO(Path(uri).read_bytes())

    return io.BytesIO(s3fs.S3FileSystem().cat_file(uri))


def _decode(uri: str, mode: str) -> NDArray[np.float32]:
    with Image.open(read_file(uri)) as image:
        return np.asarray(image.convert(mode), np.float32) / np.float32(255)


def _centre(side: int) -> slice:
    start = side % SCALE_FACTOR // 2
    return slice(start, start + side // SCALE_FACTOR * SCALE_FACTOR)
