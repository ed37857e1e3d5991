"""Rows that the page shows in pictures: random ones, and extremes by mask, latent or decoding quality."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from .latent_statistics import Outlier
from .pictures import LatentColors, draw_pictures, psnr
from .row_inspector import InspectedRow, RowInspector
from .row_sample import PlainColumns, RowLocation, RowSample, read_row

__all__ = ["KINDS", "Card", "Gallery", "Picture", "build_gallery"]

_SIDE = 320
"""Longest side of a picture on the page in pixels."""

KINDS = {
    "random": "random rows",
    "small": "smallest masks",
    "large": "largest masks",
    "unusual": "unusual latents",
    "worst": "lowest decoding quality",
}
"""Reasons for showing a row, in the order of the page."""


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

    key: str
    reasons: dict[str, str]
    """`KINDS`, each with a note or an empty string."""
    row: Mapping[str, Any]
    """Its plain columns."""
    size: tuple[int, int]
    """Width and height of the crop in pixels."""
    pictures: list[Picture]
    psnr: float | None
    """Of the decoded latent, in dB."""
    missing: list[str]

    @property
    def kind(self) -> str:
        """The kind whose heading it stands under."""
        return next(kind for kind in KINDS if kind in self.reasons)

    @property
    def tags(self) -> list[str]:
        """The reasons that its heading does not state."""
        reasons = self.reasons.items()
        return [
            f"{KINDS[kind]}: {note}" if note else KINDS[kind] for kind, note in reasons if note or kind != self.kind
        ]


@dataclass
class Gallery:
    """Cards in the order of the page."""

    cards: list[Card] = field(default_factory=list)
    psnrs: list[float] = field(default_factory=list)
    """PSNR in dB of all rows that were decoded and compared, ascending."""
    not_decoded: str = ""
    """Why no latent is decoded; empty if they are."""


def build_gallery(
    sample: RowSample,
    columns: PlainColumns,
    outliers: Sequence[Outlier],
    colors: LatentColors,
    inspector: RowInspector,
    count: int,
    on_status: Callable[[str], None],
) -> Gallery:
    """Choose rows and inspect them.

    Args:
        sample: reads and draws the rows.
        columns: of the rows to choose from.
        outliers: rows with unusual latents, the most unusual first.
        colors: of the latents.
        inspector: of this output.
        count: random rows to show. Half as many are shown of each kind of extreme. ``count`` more random rows are
            decoded, and shown if their decoding quality is among the lowest.
        on_status: called with a line of progress now and then.
    """
    half = -(-count // 2)
    chosen = _choose(sample, columns, outliers, count, half)
    gallery = Gallery(not_decoded=inspector.not_decoded)
    for number, (location, reasons) in enumerate(chosen.items()):
        if number % 8 == 0:
            on_status(f"inspecting rows: {number} of {len(chosen)}")
        gallery.cards.append(_card(inspector.inspect(read_row(sample.output, location)), reasons, colors))
    decoded = sorted((card.psnr, number) for number, card in enumerate(gallery.cards) if card.psnr is not None)
    gallery.psnrs = [decibels for decibels, _ in decoded]
    for rank, (_, number) in enumerate(decoded[:half], start=1):
        gallery.cards[number].reasons["worst"] = f"rank {rank} of {len(decoded)}, the lowest PSNR first"
    shown = [card for card in gallery.cards if card.reasons]
    gallery.cards = sorted(shown, key=lambda card: list(KINDS).index(card.kind))
    return gallery


def _choose(
    sample: RowSample, columns: PlainColumns, outliers: Sequence[Outlier], count: int, half: int
) -> dict[RowLocation, dict[str, str]]:
    """Return locations with the reasons to show them; those without a reason are decoded only."""
    locations = columns.locations
    drawn = sample.random.sample(range(len(locations)), min(2 * count, len(locations)))
    chosen: dict[RowLocation, dict[str, str]] = {locations[number]: {} for number in drawn}
    for number in drawn[:count]:
        chosen[locations[number]]["random"] = ""
    by_coverage = np.argsort(columns.coverage, kind="stable")
    for kind, numbers in (("small", by_coverage[:half]), ("large", by_coverage[::-1][:half])):
        for number in numbers:
            chosen.setdefault(locations[number], {})[kind] = ""
    for outlier in outliers[:half]:
        chosen.setdefault(outlier.location, {})["unusual"] = outlier.reason
    return chosen


def _card(inspected: InspectedRow, reasons: dict[str, str], colors: LatentColors) -> Card:
    pixels = inspected.pixels
    pictures = [_embed(title, picture) for title, picture in draw_pictures(pixels, colors).items()]
    height, width = pixels.noise_mask.shape
    plain = {name: value for name, value in inspected.row.items() if not isinstance(value, np.ndarray)}
    return Card(pixels.key, reasons, plain, (width, height), pictures, psnr(pixels), inspected.missing)


def _embed(title: str, picture: Image.Image) -> Picture:
    """Masks and latents are compressed without loss."""
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    file = io.BytesIO()
    small.save(file, "WEBP", lossless=title in ("mask", "grown mask", "latent"), quality=80, method=4)
    data = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(title, *small.size, data, title == "latent" or small.size == picture.size)
