"""What is read first: figures, and what a reader should know before all else."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from rich.filesize import decimal

from inpaint_encode.tools.inspect.contents import Contents
from inpaint_encode.tools.inspect.gallery import KINDS, Card

from .parts import Tile, files_of, time_of

__all__ = ["Group", "pictures", "tiles", "warnings"]


class Group(NamedTuple):
    """Rows that are shown for one reason."""

    heading: str
    cards: list[Card]
    elsewhere: list[Card]
    """Those of an earlier group."""


def tiles(contents: Contents) -> list[Tile]:
    """The figures that are read first."""
    counts, report = contents.counts, contents.output.report
    about = "" if counts.known else "about "
    rejected = sum(counts.rejected.values())
    found = [Tile(f"{about}{counts.rows:,}", "rows", "an image, its mask and its latent each")]
    share = f"{rejected / max(1, counts.rows + rejected):.2%} of all pairs"
    found.append(Tile(f"{about}{rejected:,}", "rejected pairs", share))
    found.append(Tile(decimal(_size(contents)), "data", f"in {files_of(len(contents.output.files))}"))
    if contents.gallery.decoded:
        median = float(np.median(contents.gallery.decoded))
        more = f"PSNR of kept pixels, median of {len(contents.gallery.decoded):,} rows; higher is nearer to the source"
        found.append(Tile(f"{median:.1f} dB", "decoded pictures", more))
    if report and (pairs := report["this_run"]["encoded"] + report["this_run"]["rejected"]):
        this = report["this_run"]
        more = f"{pairs:,} pairs in {time_of(this['seconds'])}, by the last run"
        found.append(Tile(f"{this['pairs_per_second']:,.1f}", "pairs a second", more))
    return found


def _size(contents: Contents) -> int:
    return sum(file.size for file in contents.output.files)


def warnings(contents: Contents) -> list[str]:
    """What a reader should know before all else."""
    report = contents.output.report
    found = []
    if not report:
        found.append(
            "No run has finished here yet: the job is still at work, or was stopped before its end. This page shows "
            "the files that are there; they are whole. The rate and the seconds of each stage are known at the end."
        )
    elif contents.is_behind:
        found.append(
            f"The last run that finished left {files_of(report['files'])} of {decimal(report['data_bytes'])}, and now "
            f"there are {len(contents.output.files):,} of {decimal(_size(contents))}: another has begun since. "
            "Rate and seconds are those of the former."
        )
    if not contents.counts.known:
        found.append(
            f"Counts are estimated by the {files_of(contents.reading.files)} that were opened: as many in every other."
        )
    if report and (suspicion := report["this_run"]["masks"]["warning"]):
        found.append(f"{suspicion[0].upper()}{suspicion[1:]}.")
    if contents.sums.not_finite:
        found.append(f"{contents.sums.not_finite:,} of the latents that were read have values that are not finite.")
    return found


def pictures(contents: Contents) -> list[Group]:
    """The cards below their headings; a row that has several reasons is shown below the first of them."""
    cards = contents.gallery.cards
    groups = [
        Group(
            heading,
            [card for card in cards if card.kind == kind],
            [card for card in cards if card.kind != kind and kind in card.why],
        )
        for kind, heading in KINDS.items()
    ]
    return [group for group in groups if group.cards or group.elsewhere]
