"""What is read first: figures, and what a reader should know before all else."""

from __future__ import annotations

from itertools import groupby

import numpy as np
from rich.filesize import decimal

from inpaint_encode.view.contents import Contents
from inpaint_encode.view.gallery import KINDS, Card

from .parts import Tile, files_of, time_of

__all__ = ["pictures", "tiles", "warnings"]


def tiles(contents: Contents) -> list[Tile]:
    """The figures that are read first."""
    counts, report = contents.counts, contents.output.report
    about = "" if counts.known else "about "
    rejected = sum(counts.rejected.values())
    size = sum(file.size for file in contents.output.files)
    found = [Tile(f"{about}{counts.rows:,}", "rows", "an image, its mask and its latent each")]
    share = f"{rejected / max(1, counts.rows + rejected):.2%} of all pairs"
    found.append(Tile(f"{about}{rejected:,}", "rejected pairs", share))
    found.append(Tile(decimal(size), "written", f"in {files_of(len(contents.output.files))}"))
    if contents.gallery.decoded:
        median = float(np.median(contents.gallery.decoded))
        more = f"median of {len(contents.gallery.decoded):,} rows that were decoded again"
        found.append(Tile(f"{median:.1f} dB", "PSNR outside of the masks", more))
    if report:
        this = report["this_run"]
        more = f"{this['encoded'] + this['rejected']:,} pairs in {time_of(this['seconds'])}, by the last run"
        found.append(Tile(f"{this['pairs_per_second']:,.1f}", "pairs a second", more))
    return found


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
            f"The last run that finished left {files_of(report['files'])}, and now there are "
            f"{len(contents.output.files):,}: another has begun since. Rate and seconds are those of the former."
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


def pictures(contents: Contents) -> list[tuple[str, list[Card]]]:
    """Headings, and the cards below each."""
    return [(KINDS[kind], list(cards)) for kind, cards in groupby(contents.gallery.cards, key=lambda card: card.kind)]
