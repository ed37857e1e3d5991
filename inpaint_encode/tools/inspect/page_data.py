"""Everything that the report page shows, read from an output of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from inpaint_encode.reader import Output
from inpaint_encode.settings import ReportOptions

from .gallery import Gallery, build_gallery
from .latent_statistics import ChannelStatistics, Outlier, channel_statistics, find_outliers, row_statistics
from .pictures import LatentColors
from .rejects import RejectedPairs, read_rejects
from .row_inspector import RowInspector
from .row_sample import PlainColumns, ReadLimits, RowSample
from .summary import OutputCounts, count_output

__all__ = ["Latents", "PageData", "collect_page_data"]

_MAX_OUTLIERS = 10
"""Unusual rows that the page names."""

_MAX_PIXELS = 2**21
"""Larger rows are not decoded for the page: without a GPU each takes a minute and gigabytes."""


@dataclass(frozen=True)
class Latents:
    """Statistics of the latents that were read."""

    rows: int
    groups: int
    """Row groups that contain these rows."""
    not_finite: int
    """Rows with NaN or infinite values; the statistics exclude them."""
    channels: ChannelStatistics | None
    """None if no finite latent was read."""
    outliers: list[Outlier]


@dataclass(frozen=True)
class PageData:
    """Everything that the page shows."""

    output: Output
    created: datetime
    counts: OutputCounts
    rows: int
    rejected: Mapping[str, int]
    """Rejected pairs by reason."""
    exact: bool
    """Whether ``rows`` and ``rejected`` are counts; otherwise they are estimates from the files that were read."""
    sample: RowSample
    columns: PlainColumns
    latents: Latents
    gallery: Gallery
    rejects: RejectedPairs


def collect_page_data(
    where: str, options: ReportOptions, on_status: Callable[[str], None], limits: ReadLimits | None = None
) -> PageData:
    """Read what the page shows.

    Args:
        where: folder or prefix that a job wrote.
        options: of the command.
        on_status: called with a line before each step.
        limits: the most that is read.

    Raises:
        UsageError: there is no output, or it has no data file.
        JobFailed: a drawn file is damaged.
        PermissionError, OSError: from the store.
    """
    on_status("listing the output")
    output = Output.open(where)
    counts = count_output(output)
    sample = RowSample(output, options.seed, limits)
    on_status(f"reading {len(sample.files):,} of {len(output.files):,} files")
    columns = sample.read_plain_columns()
    drawn = sample.draw(options.sample)
    read = sample.map_rows(
        drawn, ["key", "samples"], lambda location, row: row_statistics(location, row, output.metadata)
    )
    finite = [row for row in read if row is not None]
    channels = channel_statistics(finite) if finite else None
    outliers = find_outliers(finite, _MAX_OUTLIERS)
    latents = Latents(len(read), len(drawn), len(read) - len(finite), channels, outliers)
    rejects = read_rejects(output.uri, sample.random)
    gallery = Gallery()
    if finite and options.gallery:
        colors = LatentColors.fit(row.sample for row in finite)
        inspector = RowInspector.open(output, options.decoder, on_status, _MAX_PIXELS)
        gallery = build_gallery(sample, columns, outliers, colors, inspector, options.gallery, on_status)
    totals = _totals(counts, sample, rejects)
    return PageData(output, datetime.now(UTC), counts, *totals, sample, columns, latents, gallery, rejects)


def _totals(counts: OutputCounts, sample: RowSample, rejects: RejectedPairs) -> tuple[int, Mapping[str, int], bool]:
    """Return rows, rejected pairs by reason, and whether both are exact; scale up what was read if they are unknown."""
    if counts.finished and counts.encoded is not None:
        return counts.encoded, counts.rejected_by_error, True
    known = counts.encoded is not None or sample.is_whole
    scale = rejects.of_files / max(1, rejects.files)
    by_reason = {error: round(count * scale) for error, count in rejects.counts.items()}
    estimate = round(sample.rows * len(sample.output.files) / len(sample.files))
    rows = estimate if counts.encoded is None else counts.encoded
    return rows, by_reason, known and rejects.files == rejects.of_files
