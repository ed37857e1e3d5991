"""Everything that the page shows, gathered from an output: a few files of it, whatever it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from inpaint_encode.reader import Output
from inpaint_encode.settings import ReportOptions

from .gallery import Gallery, fill
from .rejects import Rejects, read_rejects
from .row_inspector import Looker
from .sample import Facts, Limits, Sample
from .statistics import LatentSums, Outlier

__all__ = ["Contents", "Counts", "Reading", "gather"]

_OUTLIERS = 10
"""Unusual rows that are named."""

_MOST_PIXELS = 2**21
"""A row of more is not decoded for the page: without a GPU that takes a minute and gigabytes."""


@dataclass(frozen=True)
class Counts:
    """How much the output holds."""

    rows: int
    rejected: Mapping[str, int]
    """By reason."""
    known: bool
    """Whether these are counts; else they are estimated by the files that were read."""


@dataclass(frozen=True)
class Reading:
    """What was read, for whoever judges the figures by it."""

    files: int
    of_files: int
    rows: int
    """In these files."""
    facts: int
    """Whose plain columns were read."""
    latents: int
    groups: int
    """Row groups that these are of."""
    seed: int


@dataclass(frozen=True)
class Contents:
    """What the page is made of."""

    output: Output
    looked_at: datetime
    counts: Counts
    reading: Reading
    facts: Facts
    sums: LatentSums
    outliers: list[Outlier]
    gallery: Gallery
    rejects: Rejects

    @property
    def is_behind(self) -> bool:
        """Whether the report of the last finished run does not tell of these files: another run has begun since."""
        return bool(self.output.report) and not self.output.is_reported


def gather(where: str, options: ReportOptions, say: Callable[[str], None], limits: Limits | None = None) -> Contents:
    """Read what the page shows.

    Args:
        where: folder or prefix that a job wrote.
        options: what to look at.
        say: is told, in a line, what is being done.
        limits: what is read at most.

    Raises:
        UsageError: there is no such output, or it has no rows.
        JobFailed: one of the files that were drawn is damaged.
        PermissionError, OSError: by what the store said.
    """
    say("listing the output")
    output = Output.open(where)
    sample = Sample(output, options.seed, limits)
    say(f"reading {len(sample.files):,} of {sample.of_files:,} files")
    facts = sample.facts()
    drawn = sample.draw_latents(options.sample)
    sums = LatentSums()
    for part in sample.latents(drawn, lambda group, rows: LatentSums.of(group, rows, output.metadata)):
        sums.add(part)
    rejects = read_rejects(output.uri, sample.rng())
    outliers = sums.outliers(_OUTLIERS)
    gallery = _gallery(output, facts, sums, outliers, options, sample, say)
    latents = sums.rows + sums.not_finite
    reading = Reading(len(sample.files), sample.of_files, sample.rows, len(facts), latents, len(drawn), options.seed)
    counts = _counts(output, sample, rejects)
    now = datetime.now(UTC)
    return Contents(output, now, counts, reading, facts, sums, outliers, gallery, rejects)


def _gallery(
    output: Output,
    facts: Facts,
    sums: LatentSums,
    outliers: list[Outlier],
    options: ReportOptions,
    sample: Sample,
    say: Callable[[str], None],
) -> Gallery:
    if not sums.rows or not options.gallery:
        return Gallery()
    looker = Looker.of(output, options.decoder, say, _MOST_PIXELS)
    return fill(output, facts, outliers, sums.colours(), looker, options.gallery, sample.rng(), say)


def _counts(output: Output, sample: Sample, rejects: Rejects) -> Counts:
    """As the report has them, if it tells of these files; else of the files that were read, and as many again."""
    report = output.report
    if output.is_reported:
        return Counts(report["encoded"], report["rejected_by_error"], known=True)
    of_rejects = rejects.of_files / max(1, rejects.files)
    by_reason = {error: round(count * of_rejects) for error, count in rejects.counts.items()}
    whole = sample.is_whole and rejects.files == rejects.of_files
    return Counts(round(sample.rows * sample.of_files / len(sample.files)), by_reason, known=whole)
