"""Masks that are drawn, for images that have none: brush strokes and boxes.

A mask follows from its seed, its pair's key, its index and the size it is drawn at: the image's, after a resize and
before the crop. Everything is counted in whole numbers, and they come from a cipher (Philox) keyed by a hash, so that
every machine and every version of numpy draws the same; tests hold the bits. S is the image's shorter side in pixels:

* brush: 1 to 4 strokes of one width each, S/25 to S/6, of 4 to 12 straight parts that are S/16 to S/4 long, each turned
  by up to 67 degrees from the one before; a stroke stays with its centre line inside of the image;
* box: 1 to 4 boxes, each side an eighth to a half of the image's;
* mixed: one of the two, as often as the other.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["DRAWING_VERSION", "Drawing"]

DRAWING_VERSION = "drawn-1"
"""Version of all drawn masks: rises if one bit of any of them changes."""

_DIRECTIONS = 64
_UNIT = 2**14
_MOST_TURN = 12


@dataclass(frozen=True)
class Drawing:
    """A mask that is not drawn yet."""

    style: str
    """``brush``, ``box`` or ``mixed``."""
    seed: int
    key: str
    index: int

    def levels(self, height: int, width: int) -> NDArray[np.uint8]:
        """Draw for an image of this size; ``[height, width]``, 255 where it is repainted and else 0."""
        dice = _Dice(f"{self.seed}\n{self.index}\n{self.key}")
        style = self.style if self.style != "mixed" else ("brush", "box")[dice.between(0, 1)]
        covered = np.zeros((height, width + 1), np.int32)
        for _ in range(dice.between(1, 4)):
            (_add_stroke if style == "brush" else _add_box)(covered, dice)
        return np.where(np.cumsum(covered, axis=1)[:, :width] > 0, np.uint8(255), np.uint8(0))


class _Dice:
    def __init__(self, text: str) -> None:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "big"))

    def between(self, low: int, high: int) -> int:
        """Both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)


def _add_box(covered: NDArray[np.int32], dice: _Dice) -> None:
    """Add 1 where a row of the box begins and -1 after its end."""
    height, width = covered.shape[0], covered.shape[1] - 1
    tall, wide = (dice.between(max(1, side // 8), max(1, side // 2)) for side in (height, width))
    top, left = dice.between(0, height - tall), dice.between(0, width - wide)
    covered[top : top + tall, left] += 1
    covered[top : top + tall, left + wide] -= 1


def _add_stroke(covered: NDArray[np.int32], dice: _Dice) -> None:
    """Add the rows of discs, so close to each other that they are a stroke."""
    height, width = covered.shape[0], covered.shape[1] - 1
    shorter = min(height, width)
    radius = dice.between(shorter // 50, max(1, shorter // 12))
    centres = _centres(height, width, max(1, radius // 4), dice)
    down = np.arange(-radius, radius + 1)
    rows = (centres[:, :1] + down).ravel()
    reach = np.tile(_half_widths(radius), len(centres))
    inside = (rows >= 0) & (rows < height)
    middle = np.repeat(centres[:, 1], len(down))
    np.add.at(covered, (rows[inside], np.maximum(middle - reach, 0)[inside]), 1)
    np.add.at(covered, (rows[inside], np.minimum(middle + reach + 1, width)[inside]), -1)


def _centres(height: int, width: int, step: int, dice: _Dice) -> NDArray[np.int64]:
    """Points ``[n, 2]``, row and column, ``step`` pixels apart or less along the stroke's straight parts."""
    shorter, last = min(height, width), np.array([height - 1, width - 1])
    at = np.array([dice.between(0, height - 1), dice.between(0, width - 1)])
    direction = dice.between(0, _DIRECTIONS - 1)
    parts = [at[None]]
    for _ in range(dice.between(4, 12)):
        direction = (direction + dice.between(-_MOST_TURN, _MOST_TURN)) % _DIRECTIONS
        length = dice.between(max(1, shorter // 16), max(1, shorter // 4))
        end = np.clip(at + length * _directions()[direction] // _UNIT, 0, last)
        count = int(np.abs(end - at).max()) // step + 1
        parts.append(at + (end - at) * np.arange(1, count + 1)[:, None] // count)
        at = end
    return np.concatenate(parts)


@lru_cache(maxsize=1)
def _directions() -> NDArray[np.int64]:
    """Steps ``[64, 2]`` of one length all around, in whole numbers, so that no processor's sine matters."""
    angles = [2 * math.pi * number / _DIRECTIONS for number in range(_DIRECTIONS)]
    return np.array([[round(_UNIT * math.sin(angle)), round(_UNIT * math.cos(angle))] for angle in angles], np.int64)


def _half_widths(radius: int) -> NDArray[np.int64]:
    """How far a disc reaches to either side in each of its ``2 * radius + 1`` rows."""
    return np.array([math.isqrt(radius * radius - down * down) for down in range(-radius, radius + 1)], np.int64)
