"""Renders the page: one HTML file without external scripts, pictures or fonts."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from rich.filesize import decimal

from inpaint_encode.stores.redaction import redacted
from inpaint_encode.tools.inspect.gallery import KINDS, Card
from inpaint_encode.tools.inspect.page_data import PageData
from inpaint_encode.tools.inspect.pictures import WHITE_AT

from . import output_sections, run_sections
from .parts import count_files, duration

__all__ = ["render"]


class Tile(NamedTuple):
    """A key figure at the top of the page."""

    figure: str
    label: str
    note: str


class CardGroup(NamedTuple):
    """Cards under one heading."""

    heading: str
    cards: list[Card]
    above: list[Card]
    """Cards of an earlier group that belong here too."""


def render(data: PageData) -> str:
    """Return the page as HTML; logins and query strings, which may be signatures, are removed from URIs."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_redact,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["date"] = _date
    cards = data.gallery.cards
    groups = [
        CardGroup(
            heading,
            [card for card in cards if card.kind == kind],
            [card for card in cards if card.kind != kind and kind in card.reasons],
        )
        for kind, heading in KINDS.items()
    ]
    page: str = environment.get_template("page.html.j2").render(
        data=data,
        white_at=WHITE_AT,
        metadata=data.output.metadata,
        report=data.output.report,
        tiles=_tiles(data),
        warnings=_warnings(data),
        groups=[group for group in groups if group.cards or group.above],
        sections={
            "Masks and sizes": output_sections.masks_section(data),
            "Latents": output_sections.latents_section(data),
            "Rejected pairs": output_sections.rejects_section(data),
            "Speed": run_sections.speed_section(data),
            "Settings": run_sections.settings_section(data),
        },
    )
    return page


def _redact(value: Any) -> Any:
    is_markup = hasattr(value, "__html__")  # the output of a macro, whose values were redacted before
    return redacted(value) if isinstance(value, str) and not is_markup else value


def _date(when: datetime | str) -> str:
    moment = datetime.fromisoformat(when) if isinstance(when, str) else when
    return f"{moment.day} {moment:%B %Y, %H:%M} UTC"


def _tiles(data: PageData) -> list[Tile]:
    about, rejected = "" if data.exact else "about ", sum(data.rejected.values())
    share = f"{rejected / max(1, data.rows + rejected):.2%} of all pairs"
    tiles = [
        Tile(f"{about}{data.rows:,}", "rows", "each with a latent and a mask"),
        Tile(f"{about}{rejected:,}", "rejected pairs", share),
        Tile(decimal(data.counts.bytes), "data", f"in {count_files(data.counts.files)}"),
    ]
    if psnrs := data.gallery.psnrs:
        note = f"PSNR outside the mask, median of {len(psnrs):,} rows; higher is closer to the source"
        tiles.append(Tile(f"{np.median(psnrs):.1f} dB", "decoding quality", note))
    this = data.output.report.get("this_run", {})
    if pairs := this.get("encoded", 0) + this.get("rejected", 0):
        note = f"last run: {pairs:,} pairs in {duration(this['seconds'])}"
        tiles.append(Tile(f"{this['pairs_per_second']:,.1f}", "pairs per second", note))
    return tiles


def _warnings(data: PageData) -> list[str]:
    report, counts, warnings = data.output.report, data.counts, []
    if not counts.finished:
        warnings.append(f"This output is {counts.state}. The page shows the data files that exist now; they are whole.")
    if report and not counts.finished:
        warnings.append(
            f"The last finished run left {count_files(report['files'])} ({decimal(report['data_bytes'])}); now there "
            f"are {counts.files:,} ({decimal(counts.bytes)}). Another run has begun since. Speed and stages are those "
            "of the finished run."
        )
    if not data.exact:
        opened = count_files(len(data.sample.files))
        warnings.append(f"Row and reject counts are estimates: they are scaled up from {opened} of {counts.files:,}.")
    if report and (suspicion := report["this_run"]["masks"]["warning"]):
        warnings.append(f"{suspicion[0].upper()}{suspicion[1:]}.")
    if data.latents.not_finite:
        warnings.append(f"{data.latents.not_finite:,} of the latents that were read have NaN or infinite values.")
    return warnings
