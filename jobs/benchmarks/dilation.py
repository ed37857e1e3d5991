"""Mask dilation: the job's doubling by OR, compared with the convolution of the node that it follows."""

from __future__ import annotations

import numpy as np
import torch

from inpaint_encode.core.transform import grow_mask
from inpaint_encode.demo.pairs import draw_mask

from .figures import Figure, Measure, Ratio, cpu_ms, in_turn
from .peers.steps import dilate
from .record import Section
from .threads import one_thread

__all__ = ["dilation_section"]

SIDES = (512, 1024)
SQUARES = (6, 16, 64)
_CHEAP = 512 * 512 * 16 * 16
"""Multiplications of the largest convolution in a quick benchmark."""
_UNIT = "ms CPU/mask"


@one_thread()
def dilation_section(*, full: bool, repeats: int = 5) -> Section:
    """Dilate a mask of each of `SIDES` by a square of each of `SQUARES`, by OR and by convolution.

    Where the convolution is cheap, the two take turns and are compared. An expensive convolution takes up to a minute
    on one core: it runs once if ``full``, and otherwise not at all.
    """
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for side in SIDES:
        mask = torch.from_numpy(np.array(draw_mask(np.random.default_rng(side), (side, side), "strokes"))) // 255
        for square in SQUARES:
            size = f"{side} x {side}, square {square}"
            by_or, by_convolution = _measures(mask, square)
            or_name, convolution_name = f"doubling by OR, {size}", f"convolution, {size}"
            if side**2 * square**2 <= _CHEAP:
                both = in_turn(_UNIT, {or_name: by_or, convolution_name: by_convolution}, repeats)
                figures += both.values()
                name = f"convolution over doubling, {size}"
                ratios.append(Ratio(name, both[convolution_name], both[or_name]))
            else:
                figures += in_turn(_UNIT, {or_name: by_or}, repeats).values()
                if full:
                    figures += in_turn(_UNIT, {convolution_name: by_convolution}, repeats=1, warm_ups=0).values()
    text = "One mask dilated by a square, in one thread. Ratios where the two took turns."
    return Section("Mask dilation alone", text, tuple(figures), tuple(ratios))


def _measures(mask: torch.Tensor, square: int) -> tuple[Measure, Measure]:
    values = mask.float()[None]
    return lambda: cpu_ms(lambda: grow_mask(mask, square)), lambda: cpu_ms(lambda: dilate(values, square))
