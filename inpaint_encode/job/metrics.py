"""Prometheus metrics of a run, exported by Ray: the counts of ``_report.json`` while the job runs.

They count receipts, so a chunk that was started twice counts once.
"""

from __future__ import annotations

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge


class JobMetrics:
    """The metrics of one run, with the output's ``job`` as a tag; Ray prefixes their names with ``ray_``."""

    def __init__(self, job: str, left: int) -> None:
        self._rows = _counter("rows", "Pairs by outcome: encoded, or the name of their error.", "outcome", job)
        self._seconds = _counter("stage_seconds", "Seconds of all workers, by stage.", "stage", job)
        self._batches = _counter("batches", "Forward passes by size, rounded up to a power of two.", "size", job)
        self._events = _counter("events", "Other counters of the stages: retries, objects_fetched, ...", "event", job)
        self._gauge = Gauge(
            "inpaint_encode_pairs_left", "Planned pairs that are neither encoded nor rejected.", ("job",)
        )
        self._gauge.set_default_tags({"job": job})
        self._left = left

    def add(self, encoded: int, errors: Mapping[str, int], counters: Mapping[str, float]) -> None:
        """Add one chunk: its rows, its rejects by error name, and its counters."""
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
    if value > 0:  # Ray raises for others
        counter.inc(value, tag)
