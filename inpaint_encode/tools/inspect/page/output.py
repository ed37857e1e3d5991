"""What the output holds: sizes and masks, latents, and what was rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from markupsafe import Markup

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.tools.inspect.charts import channels_chart, histogram, sparkline
from inpaint_encode.tools.inspect.contents import Contents
from inpaint_encode.tools.inspect.rejects import REASONS
from inpaint_encode.tools.inspect.sample import Facts
from inpaint_encode.tools.inspect.statistics import FEWEST, UNUSUAL, Channels

from .parts import Cell, Section, Table, count_cell, files_of, share_cell

__all__ = ["latents", "masks", "rejects"]

_SIZES = 12
"""Sizes of images that have a line of their own."""

_UNPAIRED = 5
"""Files without a partner that are named."""


def masks(contents: Contents) -> Section:
    """How much of the images is repainted, and how large they are."""
    facts = contents.facts
    if not len(facts):
        return Section(["There are no rows."])
    section = Section([_of_facts(contents)])
    section.charts.append(("Share of the image that the grown mask covers", *_coverage_chart(contents)))
    section.tables.append(_sizes_table(contents))
    megapixels = facts.height.astype(float) * facts.width / 1e6
    if len({*zip(facts.height.tolist(), facts.width.tolist(), strict=True)}) > 1:
        counts, edges = np.histogram(megapixels, 30)
        says = f"Histogram of sizes: from {megapixels.min():.2f} to {megapixels.max():.2f} megapixels"
        chart = histogram(counts, edges, "megapixels after the crop", says, percent=False)
        section.charts.append(("Size of the image", chart, f"{says}, median {np.median(megapixels):.2f}."))
    section.says.append(_about_computing(facts))
    return section


def _about_computing(facts: Facts) -> str:
    counts = Counter(facts.precision).most_common()
    types = " and ".join(f"{count:,} in {name}" if len(counts) > 1 else f"all in {name}" for name, count in counts)
    tiled = f"{facts.tiled:,} in tiles" if facts.tiled else "none in tiles"
    return f"The VAE computed {types}, {tiled}."


def _coverage_chart(contents: Contents) -> tuple[Markup, str]:
    coverage = contents.facts.coverage
    counts, edges = np.histogram(coverage, 25, (0, 1))
    low, median, high = np.quantile(coverage, [0.05, 0.5, 0.95])
    says = f"Grown masks cover {median:.0%} in the median; nine in ten cover {low:.0%} to {high:.0%}"
    return histogram(counts, edges, "share of the grown mask", f"Histogram of masks. {says}", percent=True), f"{says}."


def _sizes_table(contents: Contents) -> Table:
    facts = contents.facts
    found = Counter(zip(facts.width.tolist(), facts.height.tolist(), strict=True))
    named = {f"{width} x {height}": (width * height, rows) for (width, height), rows in found.most_common(_SIZES)}
    if rest := len(facts) - sum(rows for _, rows in named.values()):
        named[f"{len(found) - _SIZES:,} other sizes"] = (0, rest)
    most = max(rows for _, rows in named.values()) / len(facts)
    lines = [
        [Cell(name, pixels), count_cell(rows), share_cell(rows / len(facts), most)]
        for name, (pixels, rows) in named.items()
    ]
    return Table("Width x height after the crop", ["pixels", "rows", "share"], lines)


def latents(contents: Contents) -> Section:
    """What the stored numbers are like, and which rows are unlike the others."""
    if not contents.sums.rows:
        return Section(["No latents were read."])
    channels = contents.sums.channels()
    section = Section([_of_latents(contents), _about_form(contents.output.metadata)])
    says = f"Means of channels lie between {channels.mean.min():.2f} and {channels.mean.max():.2f}"
    chart = channels_chart(channels, f"Each channel's mean and range. {says}")
    reach = f"The histograms in the table reach from {channels.edges[0]:.2f} to {channels.edges[-1]:.2f}"
    note = f"Points are means, bars hold all but one in fifty values. {says}. {reach}."
    section.charts.append(("Values by channel", chart, note))
    section.tables.append(_channels_table(channels))
    if contents.outliers:
        lines = [[Cell(one.key), Cell(f"{one.score:.1f}", one.score), Cell(one.what)] for one in contents.outliers]
        section.tables.append(Table("Rows with unusual latents", ["key", "deviations", "why"], lines))
    section.says.append(_about_outliers(contents))
    return section


def _about_form(metadata: RowMetadata) -> str:
    """What a reader must do with the numbers before a diffusion model takes them."""
    of_moments = "These are the means; as many log-variances are stored behind them. "
    start = of_moments if metadata.posterior == "moments" else ""
    if metadata.vae.latent_form == "packed":
        return f"{start}They are packed and normalised as Flux.2 takes them: 2 x 2 values stand in as many channels."
    if metadata.vae.latent_form == "scaled":
        return "They are scaled as diffusion models take them."
    if metadata.vae.latents_std:
        return f"{start}They are as the VAE gives them; diffusers' models take them normalised by channel first."
    if metadata.vae.scaling_factor is None:
        return f"{start}They are as the VAE gives them; by what a model has to scale them first is not known."
    shift = metadata.vae.shift_factor
    formula = f"({f'value - {shift:g}' if shift else 'value'}) x {metadata.vae.scaling_factor:g}".replace(
        "(value)", "value"
    )
    return f"{start}They are as the VAE gives them; diffusers' models take them scaled: {formula}."


def _about_outliers(contents: Contents) -> str:
    if contents.sums.rows < FEWEST:
        return "Of so few rows it cannot be said which are unusual."
    if not contents.outliers:
        return f"No row has a channel whose mean or spread is over {UNUSUAL:g} robust standard deviations off."
    return (
        f"A row is called unusual if a channel's mean or spread in it is over {UNUSUAL:g} robust standard deviations "
        "from the median of all rows. That is a reason to look at it, and need not be a fault."
    )


def _channels_table(channels: Channels) -> Table:
    names = ("mean", "deviation", "least", "low", "high", "most")
    lines = []
    for at in range(len(channels.mean)):
        figures = [float(getattr(channels, name)[at]) for name in names]
        shape = Cell(sparkline(channels.counts[at]), figures[1])
        lines.append([Cell(str(at), at), *(Cell(f"{figure:.3f}", figure) for figure in figures), shape])
    columns = ["channel", "mean", "std", "min", "1%", "99%", "max", "histogram"]
    return Table("Channels", columns, lines)


def rejects(contents: Contents) -> Section:
    """Why pairs are no rows, with some of them, and what the source holds besides pairs."""
    counts, found = contents.counts, contents.rejects
    section = Section()
    if not counts.rejected:
        section.says.append("No pair was rejected.")
    else:
        lines = [
            [Cell(error), count_cell(count), Cell(REASONS.get(error, ""))]
            for error, count in sorted(counts.rejected.items(), key=lambda item: -item[1])
        ]
        section.tables.append(Table("Reasons", ["reason", "pairs", "what it means"], lines))
        section.says.append(
            "All rejected pairs are in the files below _rejected; the examples are of "
            + (
                "these."
                if found.files == found.of_files
                else f"{found.files:,} of these {found.of_files:,}, at random."
            )
        )
        section.tables.append(_examples_table(contents))
    if report := contents.output.report:
        section.says.append(_besides(report))
        names = [*report["unpaired_image_uris"][:_UNPAIRED], *report["unpaired_mask_uris"][:_UNPAIRED]]
        if names:
            section.more.append(Table("Files without a partner, the first", ["file"], [[Cell(name)] for name in names]))
    return section


def _examples_table(contents: Contents) -> Table:
    examples = [one for some in contents.rejects.examples.values() for one in some]
    lines = [
        [Cell(one["error"]), Cell(one["key"]), Cell(_message(one)), Cell(one["image_uri"]), Cell(one["mask_uri"])]
        for one in sorted(examples, key=lambda one: (-contents.rejects.counts[one["error"]], one["error"], one["key"]))
    ]
    return Table("Rejected pairs", ["reason", "key", "message", "image", "mask"], lines)


def _message(reject: Mapping[str, Any]) -> str:
    """Without the URI that it begins with, which has a column of its own."""
    message: str = reject["message"]
    return message.removeprefix(f"{reject['image_uri']}: ").removeprefix(f"{reject['mask_uri']}: ")


def _besides(report: Mapping[str, Any]) -> str:
    images, masks, others = (report[name] for name in ("unpaired_images", "unpaired_masks", "ignored_files"))
    return f"Not paired: images without a mask: {images:,}, masks without an image: {masks:,}, other files: {others:,}."


def _of_facts(contents: Contents) -> str:
    reading = contents.reading
    if reading.facts == contents.counts.rows and contents.counts.known:
        return f"All figures here are of all {reading.facts:,} rows."
    return f"All figures here are of {reading.facts:,} rows{_drawn(contents)}"


def _of_latents(contents: Contents) -> str:
    reading = contents.reading
    if reading.latents == contents.counts.rows and contents.counts.known:
        return f"All figures here are of the latents of all {reading.latents:,} rows."
    groups = f" in {reading.groups:,} row groups"
    return f"All figures here are of the latents of {reading.latents:,} rows{groups}{_drawn(contents)}"


def _drawn(contents: Contents) -> str:
    reading = contents.reading
    return (
        f" in {reading.files:,} of {files_of(reading.of_files)}, all drawn at random with seed {reading.seed}; rows of "
        "a group are neighbours by key."
    )
