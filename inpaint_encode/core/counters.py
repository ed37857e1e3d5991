"""Seconds by stage and counts of a chunk; the report adds up those of all chunks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from inpaint_encode.stores import storage

__all__ = ["Counters"]


class Counters:
    """Counters of one chunk by name; names of seconds end in ``_s``.

    Args:
        before: counters from the chunk's earlier stages.
    """

    def __init__(self, before: Iterable[tuple[str, float]] = ()) -> None:
        self._values: defaultdict[str, float] = defaultdict(float, before)
        self._retries = storage.retry_count()

    def add(self, name: str, value: float) -> None:
        """Add ``value`` to a counter."""
        self._values[name] += value

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall seconds of the block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(f"{stage}_s", time.perf_counter() - start)

    def items(self) -> list[tuple[str, float]]:
        """Return all counters; ``retries`` counts those of this process since the last call."""
        retries = storage.retry_count()
        self.add("retries", retries - self._retries)
        self._retries = retries
        return list(self._values.items())
