"""Rows in pictures for the page: some drawn at random, and those that are extreme in some way."""

from __future__ import annotations

import base64
import io
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from inpaint_encode.reader import Output

from .pictures import LatentColours, pictures_of, psnr
from .row_inspector import Look, Looker
from .sample import Facts, Place, read_place
from .statistics import Outlier

__all__ = ["KINDS", "Card", "Gallery", "Picture", "fill"]

SIDE = 320
"""Longest side in pixels of a picture on the page."""

KINDS = {
    "random": "drawn at random",
    "small": "smallest masks",
    "large": "largest masks",
    "unusual": "unusual latents",
    "worst": "decoded worst",
}
"""Why a row is shown, in the order of the page."""


class Picture(NamedTuple):
    """A picture in the page itself."""

    title: str
    width: int
    height: int
    """As it is shown at first; of a latent its own size is smaller."""
    data: str
    """A ``data:`` URI."""
    whole: tuple[int, int]
    """Width and height of what it is a picture of."""


@dataclass
class Card:
    """One row on the page."""

    key: str
    why: dict[str, str]
    """One of `KINDS` each, and what more there is to say of it."""
    row: Mapping[str, Any]
    """Its plain columns."""
    size: tuple[int, int]
    """Width and height of the crop."""
    pictures: list[Picture]
    psnr: float | None
    missing: list[str]

    @property
    def kind(self) -> str:
        """Under which heading it stands."""
        return next(kind for kind in KINDS if kind in self.why)

    @property
    def tags(self) -> list[str]:
        """Why it is shown, as far as its heading does not say it."""
        tags = {kind: f"{KINDS[kind]}: {more}" if more else KINDS[kind] for kind, more in self.why.items()}
        return [tag for kind, tag in tags.items() if kind != self.kind or self.why[kind]]


@dataclass
class Gallery:
    """What is shown, and what was looked at to choose it."""

    cards: list[Card] = field(default_factory=list)
    decoded: list[float] = field(default_factory=list)
    """PSNR of every row that was decoded and has a source and kept pixels."""
    why_not: str = ""
    """Why nothing is decoded, if nothing is."""


def fill(
    output: Output,
    facts: Facts,
    outliers: Sequence[Outlier],
    colours: LatentColours,
    looker: Looker,
    count: int,
    rng: random.Random,
    say: Callable[[str], None],
) -> Gallery:
    """Look at rows and choose which to show.

    Args:
        output: whose rows.
        facts: of the rows to choose from.
        outliers: the most unusual first.
        colours: of latents.
        looker: fetches and decodes.
        count: rows to draw at random; of each kind of extreme half as many are shown. Of ``count`` more, drawn at
            random, only those that are decoded worst are.
        rng: draws.
        say: is told, in a line, how far it is.
    """
    chosen = _chosen(facts, outliers, count, rng)
    gallery = Gallery(why_not=looker.why_not)
    for number, (place, why) in enumerate(chosen.items()):
        if number % 8 == 0:
            say(f"looking at rows: {number} of {len(chosen)}")
        look = looker.look(read_place(output, place))
        gallery.cards.append(_card(look, why, colours))
    _mark_worst(gallery, -(-count // 2))
    gallery.cards = sorted((card for card in gallery.cards if card.why), key=lambda card: list(KINDS).index(card.kind))
    return gallery


def _chosen(facts: Facts, outliers: Sequence[Outlier], count: int, rng: random.Random) -> dict[Place, dict[str, str]]:
    """Places, and why each is shown; those without a reason are decoded, and shown only if that goes badly."""
    half = -(-count // 2)
    by_coverage = np.argsort(facts.coverage, kind="stable")
    drawn = rng.sample(range(len(facts)), min(2 * count, len(facts)))
    chosen: dict[Place, dict[str, str]] = {facts.places[at]: {} for at in drawn}
    for at in drawn[:count]:
        chosen[facts.places[at]]["random"] = ""
    for kind, ats in (("small", by_coverage[:half]), ("large", by_coverage[::-1][:half])):
        for at in ats:
            chosen.setdefault(facts.places[at], {})[kind] = ""
    for outlier in outliers[:half]:
        chosen.setdefault(outlier.place, {})["unusual"] = outlier.what
    return chosen


def _mark_worst(gallery: Gallery, count: int) -> None:
    known = sorted((card for card in gallery.cards if card.psnr is not None), key=lambda card: card.psnr or 0.0)
    gallery.decoded = [card.psnr for card in known if card.psnr is not None]
    for rank, card in enumerate(known[:count], start=1):
        card.why["worst"] = f"number {rank} of {len(known)}, the lowest PSNR first"


def _card(look: Look, why: dict[str, str], colours: LatentColours) -> Card:
    pictures = [_embedded(title, picture) for title, picture in pictures_of(look.pixels, colours).items()]
    height, width = look.pixels.noise_mask.shape
    plain = {name: value for name, value in look.row.items() if not isinstance(value, np.ndarray)}
    return Card(look.row["key"], why, plain, (width, height), pictures, psnr(look.pixels), look.missing)


def _embedded(title: str, picture: Image.Image) -> Picture:
    """Photographs lose what nobody sees at that size; masks and latents nothing."""
    small = picture.copy()
    small.thumbnail((SIDE, SIDE), Image.Resampling.BOX)
    exact = title in ("mask", "grown mask", "latent")
    file = io.BytesIO()
    small.save(file, "WEBP", lossless=exact, quality=80, method=4)
    data = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(title, *small.size, data, picture.size)
