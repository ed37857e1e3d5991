"""Sections of the page: masks and sizes, latents, rejected pairs, speed, settings, as sentences, charts and tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import Source
from inpaint_encode.tools.inspect.charts import Chart, channels_chart, histogram, rate_chart
from inpaint_encode.tools.inspect.latent_statistics import MIN_ROWS, UNUSUAL
from inpaint_encode.tools.inspect.page_data import PageData
from inpaint_encode.tools.inspect.summary import SETTING_DEFAULTS, VAE_FIELDS, counter_meaning, describe_value

_MAX_SIZES = 12
"""Sizes of images that have their own line."""

_STAGES = {
    "fetch": "read files from the store",
    "decode": "decode and crop images and masks",
    "copy": "copy pixels to the device",
    "encode": "run the VAE",
    "copy_back": "copy latents from the device",
    "write": "write rows as Parquet",
    "wait": "device idle",
}

_FILE_REASONS = {
    "not_an_image": "its first bytes match no supported format; the suffix is ignored",
    "truncated": "the file ends before its last pixel",
    "corrupt": "its header or data are damaged",
    "unsupported": "its levels are 32-bit or floating-point, without a known range",
    "too_large": "its header states more pixels than --max-pixels",
    "crashed": "it killed the process that read and decoded it, or exceeded that process's limit of memory or time",
}

REASONS: Mapping[str, str] = {
    "list.duplicate_key": "another pair of the list has the same key and other contents; the message names both rows",
    "fetch.not_found": "the object was deleted after the listing, or the list of pairs names a missing object",
    "fetch.denied": "the store denies access to this object",
    "fetch.changed": "the file that contains it has changed since it was planned; --refresh plans it again",
    "fetch.too_large": "it is larger than --max-bytes",
    "fetch.unavailable": "the store did not return the whole object within 25 s of retries",
    "fetch.failed": "the store returned another error, which the message quotes",
    **{f"{kind}.{name}": f"{kind}: {text}" for kind in ("image", "mask") for name, text in _FILE_REASONS.items()},
    "mask.unsupported": f"mask: {_FILE_REASONS['unsupported']}; or one of its 16-bit colors is transparent",
    "mask.missing": "the row of the Parquet file has no mask",
    "mask.no_alpha": "--mask-channel is alpha, and the mask has no alpha channel",
    "mask.ambiguous": "the mask has an alpha channel, and --mask-channel does not say whether it is the mask",
    "orientation.mismatch": "EXIF rotates only the image or only the mask, and one is portrait, the other landscape",
    "size.too_small": "a side is shorter than the VAE's multiple, or the image would have to be enlarged",
    "size.too_large": "after enlarging it would exceed --max-pixels",
    "encode.failed": "the VAE fails on this image even in a batch of one",
    "encode.not_finite": "its latent has NaN or infinite values, in float32 too",
    "encode.too_large": "its latent has values beyond float16; --samples-dtype float32 stores them",
    "encode.out_of_memory": "it does not fit in device memory, even in a batch of one or in tiles (if allowed)",
}
"""What each reason means; the README explains the same reasons."""


class Table(NamedTuple):
    """A sortable table."""

    name: str
    columns: Mapping[str, str]
    """Headings and formats: of numbers, "histogram" for lists of counts, empty for texts."""
    rows: list[list[Any]]
    bars: str = ""
    """Heading of the column whose numbers have a bar below."""


@dataclass
class Section:
    """A section of the page."""

    sentences: list[str] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    collapsed: list[Table] = field(default_factory=list)
    """Tables that are closed at first."""


def build_sections(data: PageData) -> dict[str, Section]:
    """Return the sections by their titles, in the order of the page."""
    return {
        "Masks and sizes": _masks_section(data),
        "Latents": _latents_section(data),
        "Rejected pairs": _rejects_section(data),
        "Speed": _speed_section(data.output.report),
        "Settings": _settings_section(data),
    }


def _masks_section(data: PageData) -> Section:
    columns, count = data.columns, len(data.columns.locations)
    if not count:
        return Section(["There are no rows."])
    types = Counter(columns.precision).most_common()
    computed = f"All these rows were encoded in {types[0][0]}"
    if len(types) > 1:
        computed = f"These rows were encoded in {' and '.join(f'{name} ({rows:,})' for name, rows in types)}"
    tiled = f"{columns.tiled:,} of them in tiles" if columns.tiled else "without tiling"
    sentences = [_basis(data, count, "rows"), f"{computed}, {tiled}."]
    low, median, high = np.quantile(columns.coverage, [0.05, 0.5, 0.95])
    note = f"Median coverage is {median:.0%}; 90% of masks cover {low:.0%} to {high:.0%}."
    bins = np.histogram(columns.coverage, 25, (0, 1))
    charts = [histogram("Coverage of the grown mask", note, *bins, "share of the image", percent=True)]
    sizes = Counter(zip(columns.width.tolist(), columns.height.tolist(), strict=True))
    if len(sizes) > 1:
        pixels = columns.height.astype(float) * columns.width / 1e6
        note = f"From {pixels.min():.2f} to {pixels.max():.2f} megapixels, median {np.median(pixels):.2f}."
        charts.append(histogram("Image size", note, *np.histogram(pixels, 30), "megapixels after the crop"))
    lines = [(f"{width} x {height}", rows) for (width, height), rows in sizes.most_common(_MAX_SIZES)]
    if rest := count - sum(rows for _, rows in lines):
        lines.append((f"{len(sizes) - _MAX_SIZES:,} other sizes", rest))
    headings = {"pixels": "", "rows": "{:,}", "share": "{:.1%}"}
    shares = [[size, rows, rows / count] for size, rows in lines]
    return Section(sentences, charts, [Table("Width x height after the crop", headings, shares, bars="share")])


def _latents_section(data: PageData) -> Section:
    latents = data.latents
    channels = latents.channels
    if channels is None:
        return Section(["No latents were read."])
    headings = {"channel": "{}", **dict.fromkeys(("mean", "std", "min", "1%", "99%", "max"), "{:,.3f}")}
    lines = zip(range(len(channels.mean)), *channels[:-1], strict=True)  # without the edges
    tables = [Table("Channels", headings | {"histogram": "histogram"}, [list(line) for line in lines])]
    sentences = [_basis(data, latents.rows, "latents", f" in {latents.groups:,} row groups")]
    sentences.append(_scaling(data.output.metadata))
    if latents.outliers:
        rows = [[one.key, one.score, one.reason] for one in latents.outliers]
        tables.append(Table("Rows with unusual latents", {"key": "", "deviations": "{:,.1f}", "reason": ""}, rows))
        sentences.append(
            f"A row is unusual if the mean or spread of a channel is more than {UNUSUAL:g} robust standard deviations "
            "from the median of all rows. Look at these rows; they are not necessarily wrong."
        )
    elif latents.rows - latents.not_finite < MIN_ROWS:
        sentences.append(f"The search for unusual rows needs at least {MIN_ROWS} rows.")
    else:
        sentences.append(f"No unusual rows found (threshold: {UNUSUAL:g} robust standard deviations).")
    return Section(sentences, [channels_chart(channels)], tables)


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


def _rejects_section(data: PageData) -> Section:
    found, report = data.rejects, data.output.report
    section = Section()
    if not data.rejected:
        section.sentences.append("No pair was rejected.")
    else:
        counts = sorted(data.rejected.items(), key=lambda item: -item[1])
        lines = [[error, count, REASONS.get(error, "")] for error, count in counts]
        section.tables.append(Table("Reasons", {"reason": "", "pairs": "{:,}", "meaning": ""}, lines))
        examples = []
        for one in found.examples:
            image, mask = one["image_uri"], one["mask_uri"]
            message = one["message"].removeprefix(f"{image}: ").removeprefix(f"{mask}: ")  # they have their own columns
            examples.append([one["error"], one["key"], message, image, mask])
        headings = dict.fromkeys(("reason", "key", "message", "image", "mask"), "")
        section.tables.append(Table("Rejected pairs", headings, examples))
        sentence = "The files below _rejected list all rejected pairs."
        if found.files < found.of_files:
            sentence += f" Examples are from {found.files:,} of {found.of_files:,} files, drawn at random."
        section.sentences.append(sentence)
    if report:
        section.sentences.append(
            f"Unpaired: images without mask {report['unpaired_images']:,}, masks without image "
            f"{report['unpaired_masks']:,}, other files {report['ignored_files']:,}."
        )
        names = [*report["unpaired_image_uris"][:5], *report["unpaired_mask_uris"][:5]]
        if names:
            section.collapsed.append(Table("First unpaired files", {"file": ""}, [[name] for name in names]))
    return section


def _speed_section(report: Mapping[str, Any]) -> Section:
    if not report:
        return Section(["Speed is known after a run has finished."])
    this, counters = report["this_run"], report["this_run"]["counters"]
    pairs = this["encoded"] + this["rejected"]
    if not pairs:
        return Section(["The last run found all pairs done."])
    section = Section([f"The last run took {duration(this['seconds'])} for {pairs:,} pairs, including Ray's start."])
    if marks := this.get("decided_over_time"):
        section.sentences[0] += f" Its first chunk was done after {duration(marks[0][0])}."
        if marks[-1][0] > marks[0][0]:
            section.charts.append(rate_chart(marks))
    seconds = {name.removesuffix("_s"): value for name, value in counters.items() if name.endswith("_s")}
    order = [*(name for name in _STAGES if name in seconds), *(name for name in seconds if name not in _STAGES)]
    stages = [
        [name.replace("_", " "), _STAGES.get(name, ""), seconds[name], seconds[name] / max(this["seconds"], 1e-3)]
        for name in order
    ]
    headings = {"stage": "", "work": "", "seconds of all workers": "{:,.1f}", "workers": "{:.2f}"}
    section.tables.append(Table("Stages", headings, stages, bars="seconds of all workers"))
    waited = seconds.get("wait", 0.0)
    if whole := waited + sum(seconds.get(stage, 0.0) for stage in ("copy", "encode", "copy_back")):
        section.sentences.append(
            f"Devices waited for pixels about {waited / whole:.0%} of their time. Near 0% the VAE limits the job; near "
            "100% fetching and decoding do."
        )
    section.sentences.append("Workers per stage: seconds of all workers divided by the run's seconds.")
    others = [
        [name.replace("_", " "), count, counter_meaning(name)]
        for name, count in counters.items()
        if not name.endswith("_s")
    ]
    headings = {"counter": "", "count": "{:,.0f}", "meaning": ""}
    section.collapsed.append(Table("Other counters", headings, others))
    return section


def _settings_section(data: PageData) -> Section:
    """Return what the rows were made with: the VAE, settings, source, job and versions."""
    metadata, job = data.output.metadata, data.output.job
    values = {name: getattr(metadata, name) for name in SETTING_DEFAULTS}
    chosen = {name: value for name, value in values.items() if value != SETTING_DEFAULTS[name]}
    unset = {name: option.default for name, option in Source.model_fields.items()}
    unset |= {"random_masks": False, "extra_columns": {}}  # as in _job.json
    source = {name: value for name, value in job.get("source", {}).items() if value != unset.get(name)}
    about = {"job": job.get("job"), "begun": job.get("created"), "finished": data.output.report.get("finished")}
    source |= {name: value for name, value in (job.get("access", {}) | about).items() if value}
    section = Section([] if chosen else ["All settings of rows have their defaults."])
    section.tables.append(_values_table("VAE", {name: getattr(metadata.vae, name) for name in VAE_FIELDS}))
    if chosen:
        section.tables.append(_values_table("Changed settings", chosen))
    section.tables += [_values_table("Source and job", source), _values_table("Versions", metadata.versions)]
    defaults = {name: value for name, value in values.items() if name not in chosen}
    section.collapsed.append(_values_table("Settings with their defaults", defaults))
    return section


def _values_table(name: str, values: Mapping[str, Any]) -> Table:
    return Table(name, {"name": "", "value": ""}, [[one, describe_value(value)] for one, value in values.items()])


def _basis(data: PageData, read: int, unit: str, groups: str = "") -> str:
    """Say which rows the figures of a section are computed from."""
    if read == data.rows and data.exact:
        return f"Figures cover all {read:,} {unit}."
    files = f"{len(data.sample.files):,} of {count_files(data.counts.files)}"
    return (
        f"Figures cover {read:,} {unit}{groups} in {files}, drawn at random with seed {data.sample.seed}. Rows of a "
        "row group are neighbors by key."
    )


def count_files(count: int) -> str:
    """Return "1 file" or "2 files"."""
    return "1 file" if count == 1 else f"{count:,} files"


def duration(seconds: float) -> str:
    """Return seconds in the largest unit with a value of at least 2."""
    for unit, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:,.1f} {name}"
    return f"{seconds:,.1f} s"
