"""What Prometheus is told of a run, by Ray's own endpoint: the driver's counts, as they are in `_report.json` too.

Every count comes from a receipt, so that a chunk which was begun twice is counted once.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

__all__ = ["JobMetrics"]


class JobMetrics:
    """The metrics of one run; each has the output's ``job`` as a tag, and Ray puts ``ray_`` before its name."""

    def __init__(self, job: str, left: int) -> None:
        self._rows = _counter("rows", "Pairs decided: encoded, or the error they are rejected for.", "outcome", job)
        self._seconds = _counter("stage_seconds", "Seconds of all workers in a stage.", "stage", job)
        self._batches = _counter("batches", "Forward passes, by a power of two: so many images at most.", "size", job)
        self._events = _counter("events", "Whatever else stages count: retries, objects_fetched...", "event", job)
        self._gauge = Gauge("inpaint_encode_pairs_left", "Planned pairs that are not decided yet.", ("job",))
        self._gauge.set_default_tags({"job": job})
        self._left = left

    def add(self, encoded: int, errors: Mapping[str, int], counters: Mapping[str, float]) -> None:
        """Count one chunk: its rows, its rejects by error, and the counters that its stages kept."""
        for outcome, count in {"encoded": encoded, **errors}.items():
            _add(self._rows, count, outcome=outcome)
            self._left -= count
        self._gauge.set(self._left)
        for name, value in counters.items():
            if name.endswith("_s"):
                _add(self._seconds, value, stage=name.removesuffix("_s"))
            elif name.startswith("batches_of_"):
                _add(self._batches, value, size=name.removeprefix("batches_of_"))
            else:
                _add(self._events, value, event=name)


def _counter(name: str, description: str, tag: str, job: str) -> Counter:
    counter = Counter(f"inpaint_encode_{name}", description, ("job", tag))
    counter.set_default_tags({"job": job})
    return counter


def _add(counter: Counter, value: float, **tag: str) -> None:
    if value > 0:  # Ray refuses the rest
        counter.inc(value, tag)
