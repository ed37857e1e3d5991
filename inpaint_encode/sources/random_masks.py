"""Random masks for images without masks: brush strokes and boxes.

A mask depends on its seed, its pair's key, its index and the size of the image after a resize and before the crop. All
arithmetic is in integers. The random numbers come from a cipher (Philox) whose key is a hash. So every machine and
every version of numpy draws the same mask; tests compare the bits. S is the image's shorter side in pixels:

* brush: 1 to 4 strokes. Each has one width, S/25 to S/6, and 4 to 12 straight parts of length S/16 to S/4. Each part
  turns by up to 67 degrees. The center line stays inside the image.
* box: 1 to 4 boxes; each side is an eighth to a half of the image's side.
* mixed: brush or box, each for half of the masks.
"""

from __future__ import annotations

import errno
import hashlib
import math
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.settings import Source

RANDOM_MASK = "random:"
"""Start of the URIs of random masks."""

RANDOM_MASK_VERSION = "drawn-1"
"""Version of all random masks: it changes if one bit of any mask changes."""

_URI = re.compile(r"^random:(?P<style>[a-z]+)\?seed=(?P<seed>\d+)&index=(?P<index>\d+)$")
_DIRECTIONS = 64
_UNIT = 2**14
_MAX_TURN = 12


@dataclass(frozen=True)
class RandomMask:
    """A random mask that is not drawn yet."""

    style: str
    """``brush``, ``box`` or ``mixed``."""
    seed: int
    key: str
    """The key of the pair."""
    index: int

    @classmethod
    def from_uri(cls, uri: str, key: str) -> RandomMask:
        """Return the mask of a URI such as ``random:brush?seed=0&index=3``.

        Raises:
            FileNotFoundError: the URI names no random mask.
        """
        if found := _URI.match(uri):
            return cls(found["style"], int(found["seed"]), key, int(found["index"]))
        raise FileNotFoundError(errno.ENOENT, "the URI names no random mask")

    def draw(self, height: int, width: int) -> NDArray[np.uint8]:
        """Return the mask for an image of this size: ``[height, width]``, 255 where it is repainted, 0 elsewhere."""
        numbers = _RandomIntegers(f"{self.seed}\n{self.index}\n{self.key}")
        style = self.style if self.style != "mixed" else ("brush", "box")[numbers.between(0, 1)]
        steps = np.zeros((height, width + 1), np.int32)  # +1 where a run of covered pixels begins, -1 after its end
        for _ in range(numbers.between(1, 4)):
            (_add_stroke if style == "brush" else _add_box)(steps, numbers)
        return np.where(np.cumsum(steps, axis=1)[:, :width] > 0, np.uint8(255), np.uint8(0))


def with_random_masks(images: pa.Table, source: Source) -> pa.Table:
    """Repeat each image's row for each of its ``--random-masks``; set ``mask_uri, mask_index, mask_version``.

    The first mask has the image's key, the others the key with their number, so adding masks changes no key.
    """
    count = source.random_masks
    pairs = images.take(np.repeat(np.arange(images.num_rows), count)) if count > 1 else images
    index = pa.array(np.tile(np.arange(count, dtype=np.int32), images.num_rows))
    numbers = index.cast(pa.string())
    uri_start = f"{RANDOM_MASK}{source.mask_style}?seed={source.mask_seed}&index="
    columns = {name: pairs[name] for name in pairs.column_names} | {
        "mask_uri": pc.binary_join_element_wise(uri_start, numbers, ""),
        "mask_index": index,
        "mask_version": pa.repeat(RANDOM_MASK_VERSION, pairs.num_rows),
    }
    if count > 1:
        numbered = pc.binary_join_element_wise(pairs["key"], numbers, "/")
        columns["key"] = pc.if_else(pc.equal(index, 0), pairs["key"], numbered)
    return pa.table(columns)


def slice_version(version: str, source: Source) -> str:
    """Return the version of a file's slices: the file's, and the number of its ``--random-masks``."""
    return f"{version} random_masks={source.random_masks}" if source.random_masks else version


class _RandomIntegers:
    def __init__(self, text: str) -> None:
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest[:16], "big"))

    def between(self, low: int, high: int) -> int:
        """Return an integer from ``low`` to ``high``, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)


def _add_box(steps: NDArray[np.int32], numbers: _RandomIntegers) -> None:
    height, width = steps.shape[0], steps.shape[1] - 1
    tall, wide = (numbers.between(max(1, side // 8), max(1, side // 2)) for side in (height, width))
    top, left = numbers.between(0, height - tall), numbers.between(0, width - wide)
    steps[top : top + tall, left] += 1
    steps[top : top + tall, left + wide] -= 1


def _add_stroke(steps: NDArray[np.int32], numbers: _RandomIntegers) -> None:
    """Add discs that are close enough to form a stroke."""
    height, width = steps.shape[0], steps.shape[1] - 1
    shorter = min(height, width)
    radius = numbers.between(shorter // 50, max(1, shorter // 12))
    centers = _center_line(height, width, max(1, radius // 4), numbers)
    down = np.arange(-radius, radius + 1)
    half_widths = np.array([math.isqrt(radius * radius - y * y) for y in range(-radius, radius + 1)], np.int64)
    rows = (centers[:, :1] + down).ravel()
    reach = np.tile(half_widths, len(centers))
    inside = (rows >= 0) & (rows < height)
    middle = np.repeat(centers[:, 1], len(down))
    np.add.at(steps, (rows[inside], np.maximum(middle - reach, 0)[inside]), 1)
    np.add.at(steps, (rows[inside], np.minimum(middle + reach + 1, width)[inside]), -1)


def _center_line(height: int, width: int, spacing: int, numbers: _RandomIntegers) -> NDArray[np.int64]:
    """Return points ``[n, 2]``, row and column, at most ``spacing`` pixels apart along the stroke's straight parts."""
    shorter, last = min(height, width), np.array([height - 1, width - 1])
    at = np.array([numbers.between(0, height - 1), numbers.between(0, width - 1)])
    direction = numbers.between(0, _DIRECTIONS - 1)
    parts = [at[None]]
    for _ in range(numbers.between(4, 12)):
        direction = (direction + numbers.between(-_MAX_TURN, _MAX_TURN)) % _DIRECTIONS
        length = numbers.between(max(1, shorter // 16), max(1, shorter // 4))
        end = np.clip(at + length * _direction_vectors()[direction] // _UNIT, 0, last)
        count = int(np.abs(end - at).max()) // spacing + 1
        parts.append(at + (end - at) * np.arange(1, count + 1)[:, None] // count)
        at = end
    return np.concatenate(parts)


@lru_cache(maxsize=1)
def _direction_vectors() -> NDArray[np.int64]:
    """Return vectors ``[64, 2]`` of length `_UNIT` in all directions, as integers: sines differ between processors."""
    angles = [2 * math.pi * number / _DIRECTIONS for number in range(_DIRECTIONS)]
    return np.array([[round(_UNIT * math.sin(angle)), round(_UNIT * math.cos(angle))] for angle in angles], np.int64)
