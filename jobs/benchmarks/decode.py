"""D, the unit of the benchmark: the cost of decoding the two files of a pair with Pillow, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .data import Pair
from .figures import Measure, cpu_ms

__all__ = ["UNIT", "decode_pair", "measure_decoding"]

UNIT = "ms CPU/pair"


def measure_decoding(pairs: Sequence[Pair]) -> Measure:
    """Return a measure of decoding ``pairs``, files on disk, one after the other in this process, in `UNIT`."""
    return lambda: cpu_ms(lambda: [decode_pair(pair) for pair in pairs], len(pairs))


def decode_pair(pair: Pair) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the RGB image ``[H, W, 3]`` and the gray mask ``[h, w]``, both uint8."""
    return _decode(pair.image, "RGB"), _decode(pair.mask, "L")


def _decode(path: str, mode: str) -> NDArray[Any]:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image if image.mode == mode else image.convert(mode))
