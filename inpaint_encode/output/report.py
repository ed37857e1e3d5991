"""What a run did and what the output holds: counts that add up, seconds and rates, for `_report.json`."""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from inpaint_encode.core import mask_coverage
from inpaint_encode.errors import JobFailed
from inpaint_encode.sources import FoundPairs
from inpaint_encode.stores import storage

from .state import Committed

__all__ = ["Tally", "unpaired_examples", "write_report"]

LISTED = 1_000
"""Unpaired files that the report names; the counts are always whole."""

MARKS = 200
"""Most moments of a run that the report keeps, however long it takes."""


@dataclass
class Tally:
    """Counts of some chunks, their stages' counters, and the time since the tally was begun."""

    encoded: int = 0
    rejected: int = 0
    data_bytes: int = 0
    chunks: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    counters: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    started: float = field(default_factory=time.monotonic)
    marks: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the tally was begun and pairs decided by then, in order: what the rate was when."""
    _apart: float = 0.0
    """Seconds that two marks are apart at least."""

    @classmethod
    def of(cls, chunks: Iterable[Committed]) -> Tally:
        """Add up what chunks hold."""
        tally = cls()
        for chunk in chunks:
            tally.add(chunk)
        return tally

    def add(self, chunk: Committed, counters: Iterable[tuple[str, float]] = ()) -> None:
        """Count one more chunk."""
        self.encoded += chunk.encoded
        self.rejected += chunk.rejected
        self.data_bytes += chunk.data_bytes
        self.chunks += 1
        self.errors.update(chunk.errors)
        for name, value in counters:
            self.counters[name] += value
        self._mark(self.seconds)

    def _mark(self, now: float) -> None:
        """Note how far it is; where marks become too many, every second one goes, and new ones stand twice as apart."""
        if self.marks and now - self.marks[-1][0] < self._apart:
            return
        self.marks.append((round(now, 3), self.decided))
        if len(self.marks) > MARKS:
            self.marks = self.marks[1::2]
            self._apart = now / len(self.marks)

    @property
    def decided(self) -> int:
        """Pairs that are rows or rejects."""
        return self.encoded + self.rejected

    @property
    def seconds(self) -> float:
        """Since the tally was begun."""
        return time.monotonic() - self.started

    @property
    def over_time(self) -> list[tuple[float, int]]:
        """The marks, and where the tally is now, if that is not the last of them."""
        now = [(round(self.seconds, 3), self.decided)]
        return self.marks + (now if self.decided > (self.marks[-1][1] if self.marks else 0) else [])

    @property
    def rate(self) -> float:
        """Decided pairs a second."""
        return self.decided / self.seconds if self.seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Counts of pairs, files and bytes; rejected pairs by the name of their error."""
        return {
            "encoded": self.encoded,
            "rejected": self.rejected,
            "rejected_by_error": dict(sorted(self.errors.items())),
            "files": self.chunks,
            "data_bytes": self.data_bytes,
        }


def unpaired_examples(found: FoundPairs) -> dict[str, Any]:
    """Count what the source holds besides pairs, and name the first of it."""
    return {
        "unpaired_images": len(found.unpaired_images),
        "unpaired_masks": len(found.unpaired_masks),
        "ignored_files": found.ignored_files,
        "unreadable_names": found.unreadable_names[:LISTED],
        "unpaired_image_uris": found.unpaired_images[:LISTED].to_pylist(),
        "unpaired_mask_uris": found.unpaired_masks[:LISTED].to_pylist(),
    }


def write_report(
    uri: str, job: dict[str, Any], planned: int, found: FoundPairs, whole: Tally, run: Tally
) -> dict[str, Any]:
    """Write the report of a finished run, and return it.

    Raises:
        JobFailed: encoded and rejected pairs do not add up to the planned ones.
    """
    if whole.decided != planned:
        raise JobFailed(
            f"{planned:,} pairs were planned, but {whole.encoded:,} encoded and {whole.rejected:,} rejected are "
            f"{whole.decided:,}; run `inpaint-encode verify`, it says which chunks are not whole"
        )
    report = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "pairs": planned,
        **whole.as_dict(),
        **unpaired_examples(found),
        "this_run": {
            **run.as_dict(),
            "seconds": round(run.seconds, 3),
            "pairs_per_second": round(run.rate, 3),
            "masks": mask_coverage.masks_found(run.counters) | {"warning": mask_coverage.suspicion(run.counters)},
            "counters": {
                name: round(value, 3)
                for name, value in sorted(run.counters.items())
                if not name.startswith(mask_coverage.PREFIX)
            },
            "decided_over_time": run.over_time,
        },
        "job": job,
    }
    storage.write(uri, json.dumps(report, indent=2).encode())
    return report
