"""Seconds by stage and counts of a chunk; the report adds up those of all chunks."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Counters(defaultdict[str, float]):
    """Counters by name; names of seconds end in ``_s``. Create with ``Counters(float)``."""

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall seconds of the block to ``stage``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[f"{stage}_s"] += time.perf_counter() - start
