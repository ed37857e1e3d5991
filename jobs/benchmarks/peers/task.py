"""The task that all compared programs get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from jobs.benchmarks.data import Pair

__all__ = ["Encode", "LoadEncode", "Program", "Task"]

Encode = Callable[[Tensor], Tensor]
"""Masked float32 images ``[B, 3, H, W]`` in -1..1 to latents ``[B, C, h, w]``."""

LoadEncode = Callable[[], Encode]
"""Loads the VAE in the process that encodes; picklable, as Ray sends it to a worker. For example `FakeVae`, the
class."""


class Task(NamedTuple):
    """What to encode, with which VAE, into which folder."""

    pairs: Sequence[Pair]
    load_encode: LoadEncode
    output: Path
    """A new folder; a program writes the float16 posterior mean and the grown uint8 mask of every pair into it."""
    grow_mask_by: int = 6


@dataclass(frozen=True)
class Program:
    """A program that does a `Task` from start to end."""

    name: str
    run: Callable[[Task], None]
