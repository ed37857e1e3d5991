"""Growing a mask: windows doubled by OR, as the job does it, beside the convolution of the node that it follows."""

from __future__ import annotations

import numpy as np
import torch

from inpaint_encode.core.threads import one_thread
from inpaint_encode.core.transform import grow_mask
from inpaint_encode.demo.pairs import draw_mask

from .figures import Figure, Measure, Ratio, cpu_ms, in_turn
from .peers.steps import dilate
from .record import Section

__all__ = ["SIDES", "SQUARES", "growth_section"]

SIDES = (512, 1024)
SQUARES = (6, 16, 64)
_CHEAP = 512 * 512 * 16 * 16
"""Multiplications of a convolution that a quick benchmark still waits for."""
_UNIT = "ms CPU/mask"


@one_thread()
def growth_section(*, full: bool, repeats: int = 5) -> Section:
    """Grow a drawn mask of each of `SIDES` by each of `SQUARES`, by OR and by convolution.

    Where the convolution is cheap the two are measured in turn and compared. Where it takes seconds, up to a minute on
    one core, it is run once if ``full``, and otherwise not at all.
    """
    figures: list[Figure] = []
    ratios: list[Ratio] = []
    for side in SIDES:
        mask = torch.from_numpy(np.array(draw_mask(np.random.default_rng(side), (side, side), "strokes"))) // 255
        for square in SQUARES:
            if side**2 * square**2 <= _CHEAP:
                ratios.append(_compared(mask, square, repeats))
                figures += [ratios[-1].denominator, ratios[-1].numerator]
            else:
                figures += _apart(mask, square, repeats, full)
    text = "One mask grown by a square, in one thread; ratios where the two took turns."
    return Section("Growth alone", text, tuple(figures), tuple(ratios))


def _compared(mask: torch.Tensor, square: int, repeats: int) -> Ratio:
    doubling, convolution = in_turn(_UNIT, _measures(mask, square), repeats).values()
    return Ratio(f"convolution over doubling, {_about(mask, square)}", convolution, doubling)


def _apart(mask: torch.Tensor, square: int, repeats: int, full: bool) -> list[Figure]:
    (doubling, by_or), (convolution, by_sum) = _measures(mask, square).items()
    figures = in_turn(_UNIT, {doubling: by_or}, repeats)
    if full:
        figures |= in_turn(_UNIT, {convolution: by_sum}, repeats=1, warm_ups=0)
    return list(figures.values())


def _measures(mask: torch.Tensor, square: int) -> dict[str, Measure]:
    values = mask.float()[None]
    return {
        f"doubling by OR, {_about(mask, square)}": lambda: cpu_ms(lambda: grow_mask(mask, square)),
        f"convolution, {_about(mask, square)}": lambda: cpu_ms(lambda: dilate(values, square)),
    }


def _about(mask: torch.Tensor, square: int) -> str:
    return f"{len(mask)} x {len(mask)}, side {square}"
