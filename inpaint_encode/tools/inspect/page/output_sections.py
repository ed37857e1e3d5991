"""Sections on the output's contents: masks and sizes, latents, rejected pairs."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.tools.inspect.charts import Chart, channels_chart, histogram
from inpaint_encode.tools.inspect.latent_statistics import MIN_ROWS, UNUSUAL, ChannelStatistics
from inpaint_encode.tools.inspect.page_data import PageData
from inpaint_encode.tools.inspect.rejects import REASONS
from inpaint_encode.tools.inspect.row_sample import PlainColumns

from .parts import Cell, Section, Table, count_files, number_cell

__all__ = ["latents_section", "masks_section", "rejects_section"]

_MAX_SIZES = 12
"""Sizes of images that have their own line."""

_MAX_UNPAIRED = 5
"""Unpaired images and unpaired masks that are named."""


def masks_section(data: PageData) -> Section:
    """Return the coverage of masks and the sizes of images."""
    columns = data.columns
    if not len(columns):
        return Section(["There are no rows."])
    types = Counter(columns.precision).most_common()
    computed = " and ".join(f"{count:,} in {name}" if len(types) > 1 else f"all in {name}" for name, count in types)
    tiled = f"{columns.tiled:,} in tiles" if columns.tiled else "none in tiles"
    sentences = [_basis(data, len(columns), "rows", ""), f"Rows were encoded {computed}, {tiled}."]
    low, median, high = np.quantile(columns.coverage, [0.05, 0.5, 0.95])
    note = f"Median coverage is {median:.0%}; 90% of masks cover {low:.0%} to {high:.0%}."
    bins = np.histogram(columns.coverage, 25, (0, 1))
    charts = [histogram("Coverage of the grown mask", note, *bins, "share of the image", percent=True)]
    megapixels = columns.height.astype(float) * columns.width / 1e6
    sizes = Counter(zip(columns.width.tolist(), columns.height.tolist(), strict=True))
    if len(sizes) > 1:
        note = f"From {megapixels.min():.2f} to {megapixels.max():.2f} megapixels, median {np.median(megapixels):.2f}."
        charts.append(histogram("Image size", note, *np.histogram(megapixels, 30), "megapixels after the crop"))
    return Section(sentences, charts, [_sizes_table(columns, sizes)])


def _sizes_table(columns: PlainColumns, sizes: Counter[tuple[int, int]]) -> Table:
    lines = [(f"{width} x {height}", width * height, rows) for (width, height), rows in sizes.most_common(_MAX_SIZES)]
    if rest := len(columns) - sum(rows for *_, rows in lines):
        lines.append((f"{len(sizes) - _MAX_SIZES:,} other sizes", 0, rest))
    most = max(rows for *_, rows in lines)
    rows = [
        [Cell(name, pixels), number_cell(count), Cell(f"{count / len(columns):.1%}", count, count / most)]
        for name, pixels, count in lines
    ]
    return Table("Width x height after the crop", ["pixels", "rows", "share"], rows)


def latents_section(data: PageData) -> Section:
    """Return the statistics of latents by channel, and unusual rows."""
    latents = data.latents
    channels = latents.channels
    if channels is None:
        return Section(["No latents were read."])
    sentences = [_basis(data, latents.rows, "latents", f" in {latents.groups:,} row groups")]
    sentences.append(_scaling(data.output.metadata))
    tables = [_channels_table(channels)]
    if latents.outliers:
        lines = [[Cell(one.key), number_cell(one.score, 1), Cell(one.reason)] for one in latents.outliers]
        tables.append(Table("Rows with unusual latents", ["key", "deviations", "reason"], lines))
        sentences.append(
            f"A row is unusual if the mean or spread of a channel is more than {UNUSUAL:g} robust standard deviations "
            "from the median of all rows. Look at these rows; they are not necessarily wrong."
        )
    elif latents.rows - latents.not_finite < MIN_ROWS:
        sentences.append(f"Unusual rows are not searched among fewer than {MIN_ROWS} rows.")
    else:
        sentences.append(f"In no row is a channel's mean or spread more than {UNUSUAL:g} robust deviations off.")
    return Section(sentences, [_channels_chart(channels)], tables)


def _channels_chart(channels: ChannelStatistics) -> Chart:
    means = f"Channel means are between {channels.mean.min():.2f} and {channels.mean.max():.2f}."
    reach = f"Histograms in the table span {channels.edges[0]:.2f} to {channels.edges[-1]:.2f}."
    note = f"Points are means, bars span the 1% to 99% quantiles. {means} {reach}"
    return channels_chart("Values by channel", note, channels)


def _scaling(metadata: RowMetadata) -> str:
    """Return what a reader must do with the stored values before a diffusion model can use them."""
    vae = metadata.vae
    moments = metadata.posterior == "moments"
    start = "The statistics are of the means; the same number of log-variances is stored too. " if moments else ""
    if vae.latent_form == "packed":
        return f"{start}Latents are packed and normalized for Flux.2: each 2 x 2 patch is moved into the channels."
    if vae.latent_form == "scaled":
        return "Latents are stored scaled, as diffusion models use them."
    if vae.latents_std:
        return f"{start}Latents are stored unscaled; models in diffusers expect them normalized by channel."
    if vae.scaling_factor is None:
        return f"{start}Latents are stored unscaled; the scaling factor of their model is unknown."
    value = f"(value - {vae.shift_factor:g})" if vae.shift_factor else "value"
    return f"{start}Latents are stored unscaled; models in diffusers expect {value} x {vae.scaling_factor:g}."


def _channels_table(channels: ChannelStatistics) -> Table:
    figures = zip(
        *(channels.mean, channels.std, channels.minimum, channels.low, channels.high, channels.maximum), strict=True
    )
    rows = [
        [
            Cell(str(number), number),
            *(number_cell(float(one), 3) for one in line),
            Cell(sort=float(line[1]), counts=counts),
        ]
        for number, (line, counts) in enumerate(zip(figures, channels.counts.tolist(), strict=True))
    ]
    return Table("Channels", ["channel", "mean", "std", "min", "1%", "99%", "max", "histogram"], rows)


def rejects_section(data: PageData) -> Section:
    """Return the reasons of rejected pairs with examples, and the unpaired files of the source."""
    found, report = data.rejects, data.output.report
    section = Section()
    if not data.rejected:
        section.sentences.append("No pair was rejected.")
    else:
        counts = sorted(data.rejected.items(), key=lambda item: -item[1])
        lines = [[Cell(error), number_cell(count), Cell(REASONS.get(error, ""))] for error, count in counts]
        section.tables += [Table("Reasons", ["reason", "pairs", "meaning"], lines), _examples_table(data)]
        sentence = "The files below _rejected list all rejected pairs."
        if found.files < found.of_files:
            sentence += f" Examples are from {found.files:,} of these {found.of_files:,} files, drawn at random."
        section.sentences.append(sentence)
    if report:
        unpaired = [f"{report[name]:,}" for name in ("unpaired_images", "unpaired_masks", "ignored_files")]
        section.sentences.append(
            "Unpaired: images without mask {}, masks without image {}, other files {}.".format(*unpaired)
        )
        names = [name for kind in ("image", "mask") for name in report[f"unpaired_{kind}_uris"][:_MAX_UNPAIRED]]
        if names:
            section.collapsed.append(Table("First unpaired files", ["file"], [[Cell(name)] for name in names]))
    return section


def _examples_table(data: PageData) -> Table:
    found = data.rejects
    examples = [one for some in found.examples.values() for one in some]
    rows = [
        [Cell(one["error"]), Cell(one["key"]), Cell(_message(one)), Cell(one["image_uri"]), Cell(one["mask_uri"])]
        for one in sorted(examples, key=lambda one: (-found.counts[one["error"]], one["error"], one["key"]))
    ]
    return Table("Rejected pairs", ["reason", "key", "message", "image", "mask"], rows)


def _message(reject: dict[str, Any]) -> str:
    """Remove the URI at the start of the message, which has its own column."""
    message: str = reject["message"]
    return message.removeprefix(f"{reject['image_uri']}: ").removeprefix(f"{reject['mask_uri']}: ")


def _basis(data: PageData, read: int, unit: str, groups: str) -> str:
    """Say which rows the figures of a section are computed from."""
    if read == data.rows and data.exact:
        return f"Figures cover all {read:,} {unit}."
    files = f"{len(data.sample.files):,} of {count_files(data.counts.files)}"
    return (
        f"Figures cover {read:,} {unit}{groups} in {files}, drawn at random with seed {data.sample.seed}. Rows of a "
        "row group are neighbors by key."
    )
