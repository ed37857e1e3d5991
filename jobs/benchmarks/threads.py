"""Compute in one thread: for results that repeat and for figures of CPU time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside the ``with`` block.

    With several threads, sums are added in another order each time. Threads that wait for each other also use several
    times the CPU time where the work is small or the machine is shared.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
