"""One thread for what has to repeat, and for figures of CPU time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread meanwhile.

    With more, sums come in another order each time, and threads that wait for each other cost a multiple of the CPU
    time where the work is small or the machine is shared.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
