"""Everything that the report page shows, read from an output of any size."""

from __future__ import annotations

import base64
import io
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from inpaint_encode.reader import Output
from inpaint_encode.schema import REJECTS
from inpaint_encode.settings import ReportOptions
from inpaint_encode.stores import storage

from .latent_statistics import ChannelStatistics, Outlier, channel_statistics, find_outliers, row_statistics
from .pictures import LatentColors, draw_pictures, psnr
from .row_inspector import RowInspector
from .row_sample import MAX_FILES, THREADS, PlainColumns, RowLocation, RowSample, read_row
from .summary import OutputCounts, count_output, list_paths, read_table

MAX_EXAMPLES = 5
"""Rejected pairs of each reason that the page names."""

KINDS = {
    "random": "random rows",
    "small": "smallest masks",
    "large": "largest masks",
    "unusual": "unusual latents",
    "worst": "lowest decoding quality",
}
"""Reasons for showing a row, in the order of the page."""

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
class RejectedPairs:
    """Contents of the files of rejects that were read."""

    files: int
    """Files that were read."""
    of_files: int
    counts: Counter[str]
    """Pairs by reason, in the files that were read."""
    examples: list[dict[str, Any]]
    """Rows of `schema.REJECTS`, the most frequent reason first, at most `MAX_EXAMPLES` of each."""


class Picture(NamedTuple):
    """A picture that is embedded in the page."""

    title: str
    width: int
    height: int
    data: str
    """A ``data:`` URI."""
    pixelated: bool
    """Whether to enlarge it with visible pixels."""


@dataclass
class Card:
    """One row on the page."""

    row: Mapping[str, Any]
    """Its plain columns."""
    reasons: dict[str, str]
    """`KINDS`, each with a note or an empty string."""
    size: tuple[int, ...]
    """Height and width of the crop in pixels."""
    pictures: list[Picture]
    psnr: float | None
    """Of the decoded latent, in dB."""
    missing: Sequence[str]

    @property
    def kind(self) -> str:
        """The kind whose heading it stands under."""
        return next(kind for kind in KINDS if kind in self.reasons)

    @property
    def tags(self) -> list[str]:
        """The reasons that its heading does not state."""
        reasons = self.reasons.items()
        return [KINDS[kind] + (f": {note}" if note else "") for kind, note in reasons if note or kind != self.kind]


@dataclass
class Gallery:
    """Cards in the order of the page."""

    cards: list[Card] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)
    """PSNR in dB of all rows that were decoded and compared, ascending."""
    not_decoded: str = ""
    """Why no latent is decoded; empty if they are."""


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


def collect_page_data(where: str, options: ReportOptions, on_status: Callable[[str], None]) -> PageData:
    """Read what the page shows.

    Args:
        where: folder or prefix that a job wrote.
        options: of the command.
        on_status: called with a line before each step.

    Raises:
        UsageError: there is no output, or it has no data file.
        JobFailed: a drawn file is damaged.
        PermissionError, OSError: from the store.
    """
    on_status("listing the output")
    output = Output.open(where)
    counts = count_output(output)
    sample = RowSample(output, options.seed)
    on_status(f"reading {len(sample.files):,} of {len(output.files):,} files")
    columns = sample.read_plain_columns()
    drawn = sample.draw(options.sample)
    read = sample.map_rows(
        drawn, ["key", "samples"], lambda location, row: row_statistics(location, row, output.metadata)
    )
    finite = [row for row in read if row is not None]
    channels, outliers = channel_statistics(finite) if finite else None, find_outliers(finite)
    latents = Latents(len(read), len(drawn), len(read) - len(finite), channels, outliers)
    rejects = read_rejects(output.uri, sample.random)
    gallery = Gallery()
    if finite and options.gallery:
        colors = LatentColors.fit(row.sample for row in finite)
        with RowInspector(output, options.decoder, options.reading, on_status, _MAX_PIXELS) as inspector:
            gallery = _build_gallery(sample, columns, outliers, colors, inspector, options.gallery, on_status)
    if counts.finished and counts.encoded is not None:
        totals = counts.encoded, counts.rejected_by_error, True
    else:
        totals = _estimate_totals(counts, sample, rejects)
    return PageData(output, datetime.now(UTC), counts, *totals, sample, columns, latents, gallery, rejects)


def _estimate_totals(
    counts: OutputCounts, sample: RowSample, rejects: RejectedPairs
) -> tuple[int, Mapping[str, int], bool]:
    """Scale up what was read; return rows, rejected pairs by reason, and whether all was read."""
    scale = rejects.of_files / max(1, rejects.files)
    by_reason = {error: round(count * scale) for error, count in rejects.counts.items()}
    estimate = round(sample.rows * len(sample.output.files) / len(sample.files))
    known = counts.encoded is not None or sample.is_whole
    rows = estimate if counts.encoded is None else counts.encoded
    return rows, by_reason, known and rejects.files == rejects.of_files


def read_rejects(output: str, rng: random.Random) -> RejectedPairs:
    """Read up to 100 files below ``_rejected``, which ``rng`` draws.

    Raises:
        JobFailed: a file is damaged.
        PermissionError, OSError: from the store.
    """
    prefix = storage.join(output, "_rejected")
    paths = sorted(list_paths(prefix, ".parquet"))
    drawn = rng.sample(paths, min(MAX_FILES, len(paths)))
    with ThreadPoolExecutor(THREADS) as pool:
        tables = list(pool.map(lambda path: read_table(storage.join(prefix, path), REJECTS), drawn))
    counts: Counter[str] = Counter()
    examples = []
    for reject in (reject for table in tables for reject in table.to_pylist()):
        counts[reject["error"]] += 1
        if counts[reject["error"]] <= MAX_EXAMPLES:
            examples.append(reject)
    examples.sort(key=lambda one: (-counts[one["error"]], one["error"], one["key"]))
    return RejectedPairs(len(drawn), len(paths), counts, examples)


def _build_gallery(
    sample: RowSample,
    columns: PlainColumns,
    outliers: Sequence[Outlier],
    colors: LatentColors,
    inspector: RowInspector,
    count: int,
    on_status: Callable[[str], None],
) -> Gallery:
    """Choose ``count`` random rows and half as many of each kind of extreme, and inspect them.

    ``count`` more random rows are decoded, and shown if their decoding quality is among the lowest.
    """
    locations, half = columns.locations, -(-count // 2)
    drawn = sample.random.sample(locations, min(2 * count, len(locations)))
    by_coverage = [locations[number] for number in np.argsort(columns.coverage, kind="stable")]
    kinds = {"random": drawn[:count], "small": by_coverage[:half], "large": by_coverage[::-1][:half]}
    chosen: dict[RowLocation, dict[str, str]] = {location: {} for location in drawn}
    for kind, some in kinds.items():
        for location in some:
            chosen.setdefault(location, {})[kind] = ""
    for outlier in outliers[:half]:
        chosen.setdefault(outlier.location, {})["unusual"] = outlier.reason
    gallery = Gallery(not_decoded=inspector.not_decoded)
    for number, (location, reasons) in enumerate(chosen.items()):
        if number % 8 == 0:
            on_status(f"inspecting rows: {number} of {len(chosen)}")
        inspected = inspector.inspect(read_row(sample.output, location))
        plain = {name: value for name, value in inspected.row.items() if not isinstance(value, np.ndarray)}
        pictures = [_embed(title, picture) for title, picture in draw_pictures(inspected, colors).items()]
        size = inspected.noise_mask.shape
        gallery.cards.append(Card(plain, reasons, size, pictures, psnr(inspected), inspected.missing))
    decoded = sorted((card.psnr, number) for number, card in enumerate(gallery.cards) if card.psnr is not None)
    gallery.psnrs = [decibels for decibels, _ in decoded]
    for rank, (_, number) in enumerate(decoded[:half], start=1):
        gallery.cards[number].reasons["worst"] = f"rank {rank} of {len(decoded)}, the lowest PSNR first"
    shown = [card for card in gallery.cards if card.reasons]
    gallery.cards = sorted(shown, key=lambda card: list(KINDS).index(card.kind))
    return gallery


def _embed(title: str, picture: Image.Image) -> Picture:
    """Compress a picture of at most 320 x 320 pixels; masks and latents without loss."""
    small = picture.copy()
    small.thumbnail((320, 320), Image.Resampling.BOX)
    file = io.BytesIO()
    small.save(file, "WEBP", lossless=title in ("mask", "grown mask", "latent"), quality=80, method=4)
    data = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(title, *small.size, data, title == "latent" or small.size == picture.size)
