"""Growing a mask: windows doubled by OR, as the job does it, beside the convolution of the node that it follows."""

from __future__ import annotations

import numpy as np
import torch

from inpaint_encode.demo.pairs import draw_mask
from inpaint_encode.transform import grow_mask

from .figures import Figure, cpu_ms, in_turn
from .peers.steps import dilate

__all__ = ["SIDES", "SQUARES", "growth_figures"]

SIDES = (512, 1024)
SQUARES = (6, 16, 64)
_CHEAP = 512 * 512 * 16 * 16
"""Multiplications of a convolution that a quick benchmark still waits for."""
_UNIT = "ms CPU/mask"


def growth_figures(*, full: bool, repeats: int = 5) -> list[Figure]:
    """Grow a drawn mask of each of `SIDES` by each of `SQUARES`; a convolution that takes seconds is run once.

    Where it is cheap the two are measured in turn, as two figures that follow each other. The dearest takes a minute
    on one core, so that it is left out unless ``full``.
    """
    figures: list[Figure] = []
    for side in SIDES:
        mask = torch.from_numpy(np.array(draw_mask(np.random.default_rng(side), (side, side), "strokes"))) // 255
        for square in SQUARES:
            figures += _compared(mask, square, full=full, repeats=repeats)
    return figures


def _compared(mask: torch.Tensor, square: int, *, full: bool, repeats: int) -> list[Figure]:
    values = mask.float()[None]
    about = f"{len(mask)} x {len(mask)}, side {square}"
    doubling = {f"doubling by OR, {about}": lambda: cpu_ms(lambda: grow_mask(mask, square))}
    convolution = {f"convolution, {about}": lambda: cpu_ms(lambda: dilate(values, square))}
    if mask.numel() * square**2 <= _CHEAP:
        return list(in_turn(_UNIT, doubling | convolution, repeats).values())
    figures = list(in_turn(_UNIT, doubling, repeats).values())
    if full:
        figures += in_turn(_UNIT, convolution, repeats=1, warm_ups=0).values()
    return figures
