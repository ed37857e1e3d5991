"""The unit of the benchmark: what it costs to decode the two files of a pair with Pillow, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .data import Pair
from .figures import Measure, cpu_ms

__all__ = ["UNIT", "bare_decoding", "decode_bare"]

UNIT = "ms CPU/pair"


def bare_decoding(pairs: Sequence[Pair]) -> Measure:
    """Measure the decoding of all ``pairs``, files on disk, one after the other in this process: `UNIT`, called D."""

    def decode_all() -> None:
        for pair in pairs:
            decode_bare(pair)

    return lambda: cpu_ms(decode_all, len(pairs))


def decode_bare(pair: Pair) -> tuple[NDArray[Any], NDArray[Any]]:
    """Open and load both files; return RGB levels ``[H, W, 3]`` and the mask's levels ``[h, w]``, uint8."""
    return _levels(pair.image, "RGB"), _levels(pair.mask, "L")


def _levels(path: str, mode: str) -> NDArray[Any]:
    with Image.open(path) as image:
        image.load()
        return np.asarray(image if image.mode == mode else image.convert(mode))
