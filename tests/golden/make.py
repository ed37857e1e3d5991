"""Golden vectors of the transform, from a reference that shares no code and no method with the product.

Run it to write ``transform.npz`` anew; the file changes only when the contract does. Every expected value
comes from a rule spelled out in numpy: windows are written as index ranges, crops are trimmed pixel by pixel.
Inputs come from a hash, so that no random generator's version matters.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("transform.npz")
RATIOS = (4, 8, 16, 32)
SIDES = range(1, 200)
HALF, ONE, TWO = np.float32(0.5), np.float32(1), np.float32(2)


def crop(side: int, ratio: int) -> tuple[int, int]:
    """Offset and length along one side: trim end and start in turn until the rest is a multiple."""
    start, end = 0, 0
    while (side - start - end) % ratio:
        if start < end:
            start += 1
        else:
            end += 1
    return start, side - start - end


def cropped(array: np.ndarray, ratio: int) -> np.ndarray:
    """Centered crop of the first two dimensions."""
    (top, height), (left, width) = crop(array.shape[0], ratio), crop(array.shape[1], ratio)
    return array[top : top + height, left : left + width]


def grow(mask: np.ndarray, k: int) -> np.ndarray:
    """Dilate a boolean ``[H, W]``: output ``i`` sees ``i - p .. i - p + k - 1``, zeros outside the border."""
    if k == 0:
        return mask
    p = math.ceil((k - 1) / 2)
    height, width = mask.shape
    rows = np.stack([mask[max(i - p, 0) : i - p + k].any(0) for i in range(height)])
    return np.stack([rows[:, max(j - p, 0) : j - p + k].any(1) for j in range(width)], 1)


def repainted(level: np.ndarray) -> np.ndarray:
    """Which mask values in 0..1 are repainted: those above one half."""
    return level > 0.5


def neutral(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gray where the boolean mask is set; elsewhere the pixel after -0.5 and +0.5, each in float32."""
    return np.where(mask[..., None], HALF, (pixels - HALF) + HALF)


def vae_range(pixels: np.ndarray) -> np.ndarray:
    """``2p - 1`` in float32, channels first."""
    return (TWO * pixels - ONE).transpose(2, 0, 1)


def unit(levels: np.ndarray) -> np.ndarray:
    """Turn 8-bit levels into float32 in 0..1."""
    return levels.astype(np.float32) / np.float32(255)


def hashed(name: str, *shape: int) -> np.ndarray:
    """Uint8 noise that is the same for ever."""
    return np.frombuffer(hashlib.shake_256(name.encode()).digest(math.prod(shape)), np.uint8).reshape(shape)


def dotted_mask() -> np.ndarray:
    """Boolean ``[119, 155]``, cropped differently by each ratio: dots inside, at the edges and cut away."""
    mask = np.zeros((119, 155), bool)
    for i, j in [(4, 30), (11, 13), (60, 70), (62, 71), (106, 140), (112, 90), (60, 150)]:
        mask[i, j] = True
    return mask


def soft_mask() -> np.ndarray:
    """8-bit ``[39, 57]``: levels on both sides of one half, one pixel in 80 repainted."""
    levels = hashed("mask", 39, 57)
    return np.where(hashed("where", 39, 57) < 8, levels, levels // 2)


def grow_cases() -> dict[str, np.ndarray]:
    """One mask, cropped to each ratio and grown by every k: ``grow_8[k]`` holds the rows' bits."""
    mask = dotted_mask()
    grown = {
        f"grow_{ratio}": np.stack([np.packbits(grow(cropped(mask, ratio), k), axis=-1) for k in range(65)])
        for ratio in RATIOS
    }
    return {"grow_mask": np.packbits(mask, axis=-1), **grown}


def value_cases() -> dict[str, np.ndarray]:
    """Crops of every side; every 8-bit level; one half and its float32 neighbors."""
    levels = unit(np.arange(256, dtype=np.uint8))
    masks = np.concatenate([levels, [HALF, np.nextafter(HALF, ONE), np.nextafter(HALF, -ONE)]])
    crops = [(ratio, side, *crop(side, ratio)) for ratio in RATIOS for side in SIDES if side >= ratio]
    return {
        "crops": np.array(crops, np.int16),
        "binarise_in": masks.astype(np.float32),
        "binarise_out": repainted(masks),
        "neutral_kept": neutral(levels[:, None], np.zeros(256, bool)),
        "neutral_repainted": neutral(levels[:, None], np.ones(256, bool)),
        "vae_range": vae_range(levels[:, None, None])[0, :, 0],
    }


def walk_cases() -> dict[str, np.ndarray]:
    """Steps 2 to 6 on 8-bit noise, for each ratio, grown by 6."""
    image, mask = hashed("image", 39, 57, 3) // 16 * 17, soft_mask()
    cases = {"walk_image": image, "walk_mask": mask}
    for ratio in RATIOS:
        binary = repainted(unit(cropped(mask, ratio)))
        cases[f"walk_{ratio}_binary"] = np.packbits(binary, axis=-1)
        cases[f"walk_{ratio}_neutral"] = neutral(unit(cropped(image, ratio)), binary)
        cases[f"walk_{ratio}_noise_mask"] = np.packbits(grow(binary, 6), axis=-1)
    return cases


def cases() -> dict[str, np.ndarray]:
    """Everything that the file holds, by name."""
    return {**grow_cases(), **value_cases(), **walk_cases()}


if __name__ == "__main__":
    np.savez_compressed(FILE, **cases())
