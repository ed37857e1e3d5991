"""The report of a run: counts that add up, seconds and rates, written as ``_report.json``."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from inpaint_encode.core import mask_coverage
from inpaint_encode.errors import JobFailed
from inpaint_encode.sources.pairs import LeftOut
from inpaint_encode.stores import storage
from inpaint_encode.stores.redaction import redacted_json

from .state import ChunkResult

MAX_SAMPLES = 200
"""Points of ``decided_over_time``, however long a run takes."""


@dataclass
class RunStats:
    """Counts and counters of some chunks, and the time since this object was created."""

    encoded: int = 0
    rejected: int = 0
    data_bytes: int = 0
    chunks: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    counters: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    started: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, int]] = field(default_factory=list)
    """Seconds since the start and pairs decided by then, in order: the rate over time."""
    _interval: float = 0.0
    """Minimum seconds between two samples."""

    @classmethod
    def of(cls, chunks: Iterable[ChunkResult]) -> RunStats:
        """Add up the results of chunks."""
        stats = cls()
        for chunk in chunks:
            stats.add(chunk)
        return stats

    def add(self, chunk: ChunkResult, counters: Iterable[tuple[str, float]] = ()) -> None:
        """Add one chunk's result and counters."""
        self.encoded += chunk.encoded
        self.rejected += chunk.rejected
        self.data_bytes += chunk.data_bytes
        self.chunks += 1
        self.errors.update(chunk.errors)
        for name, value in counters:
            self.counters[name] += value
        self._sample(self.seconds)

    def _sample(self, now: float) -> None:
        """Add a sample; if there are too many, drop every second one and double the interval."""
        if self.samples and now - self.samples[-1][0] < self._interval:
            return
        self.samples.append((round(now, 3), self.decided))
        if len(self.samples) > MAX_SAMPLES:
            self.samples = self.samples[1::2]
            self._interval = now / len(self.samples)

    @property
    def decided(self) -> int:
        """Pairs that are encoded or rejected."""
        return self.encoded + self.rejected

    @property
    def seconds(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    @property
    def over_time(self) -> list[tuple[float, int]]:
        """The samples, and the present count if the last sample is older."""
        now = [(round(self.seconds, 3), self.decided)]
        return self.samples + (now if self.decided > (self.samples[-1][1] if self.samples else 0) else [])

    def as_dict(self) -> dict[str, Any]:
        """Return the counts of pairs, files and bytes, and the rejected pairs by error name."""
        return {
            "encoded": self.encoded,
            "rejected": self.rejected,
            "rejected_by_error": dict(sorted(self.errors.items())),
            "files": self.chunks,
            "data_bytes": self.data_bytes,
        }


def left_out_record(left_out: LeftOut) -> dict[str, Any]:
    """Return the counts and the first names of files that belong to no pair."""
    return {
        "unpaired_images": left_out.unpaired_images,
        "unpaired_masks": left_out.unpaired_masks,
        "ignored_files": left_out.ignored_files,
        "unreadable_names": left_out.unreadable_names,
        "unpaired_image_uris": left_out.unpaired_image_uris,
        "unpaired_mask_uris": left_out.unpaired_mask_uris,
    }


def write_report(
    uri: str,
    job: dict[str, Any],
    planned: Mapping[str, int],
    left_out: LeftOut,
    whole: RunStats,
    run: RunStats,
    *,
    limit: int = 0,
    partial: bool = False,
) -> dict[str, Any]:
    """Write the report of a finished run and return it.

    Args:
        uri: of the report.
        job: the contents of ``_job.json``.
        planned: ``pairs`` of the plan; ``repeated_lines`` and ``changed_pairs`` of the source, which are not in it.
        left_out: the source's files that belong to no pair.
        whole: of all chunks of the output.
        run: of the chunks of this run.
        limit: ``--limit``, 0 without one.
        partial: whether planned pairs may be undecided: because of a limit, or because other runs encode them.

    Raises:
        JobFailed: encoded and rejected pairs do not add up to the planned ones, and it is not ``partial``.
    """
    pairs = planned["pairs"]
    if whole.decided != pairs and not partial:
        raise JobFailed(
            f"{pairs:,} pairs were planned, but {whole.encoded:,} encoded and {whole.rejected:,} rejected add "
            f"up to {whole.decided:,}; run `inpaint-encode verify` to find the incomplete chunks"
        )
    seconds = run.seconds
    counters = {
        name: round(value, 3)
        for name, value in sorted(run.counters.items())
        if not name.startswith(mask_coverage.PREFIX)
    }
    warning = mask_coverage.coverage_warning(run.counters)
    report = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        **planned,
        **whole.as_dict(),
        **({"limit": limit} if limit else {}),
        **({"pairs_left": pairs - whole.decided} if partial else {}),
        **left_out_record(left_out),
        "this_run": {
            **run.as_dict(),
            "seconds": round(seconds, 3),
            "pairs_per_second": round(run.decided / seconds if seconds else 0.0, 3),
            "masks": mask_coverage.coverage_summary(run.counters) | {"warning": warning},
            "counters": counters,
            "decided_over_time": run.over_time,
        },
        "job": job,
    }
    storage.write(uri, redacted_json(report).encode())
    return report
