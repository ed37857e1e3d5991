"""Sections on the job: speed of the last run, and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inpaint_encode.settings import Source
from inpaint_encode.tools.inspect.charts import Chart, rate_chart
from inpaint_encode.tools.inspect.page_data import PageData
from inpaint_encode.tools.inspect.summary import SETTING_DEFAULTS, VAE_FIELDS

from .parts import Cell, Section, Table, duration, number_cell, values_table

__all__ = ["settings_section", "speed_section"]

_MAX_STEPS = 60
"""Bars of the chart of rates."""

_STAGES = {
    "fetch": "read files from the store",
    "decode": "decode and crop images and masks",
    "copy": "copy pixels to the device",
    "encode": "run the VAE",
    "copy_back": "copy latents from the device",
    "write": "write rows as Parquet",
    "wait": "device idle",
}


def speed_section(data: PageData) -> Section:
    """Return the speed of the last finished run and the time that its workers spent in each stage."""
    if not data.output.report:
        return Section(["Speed is known after a run has finished."])
    this = data.output.report["this_run"]
    counters: dict[str, float] = this["counters"]
    pairs = this["encoded"] + this["rejected"]
    if not pairs:
        return Section(["The last run found all pairs done."])
    section = Section([f"The last run took {duration(this['seconds'])} for {pairs:,} pairs, including Ray's start."])
    if marks := this.get("decided_over_time"):
        section.sentences[0] += f" Its first chunk was done after {duration(marks[0][0])}."
        if marks[-1][0] > marks[0][0]:
            section.charts.append(_rate_chart(marks))
    section.tables.append(_stages_table(this))
    busy = sum(counters.get(f"{stage}_s", 0.0) for stage in ("copy", "encode", "copy_back"))
    if waited := counters.get("wait_s", 0.0) + busy:
        section.sentences.append(
            f"Devices waited for pixels about {counters.get('wait_s', 0.0) / waited:.0%} of their time. Near 0% the "
            "VAE limits the job; near 100% fetching and decoding do."
        )
    section.sentences.append("Workers per stage: seconds of all workers divided by the run's seconds.")
    lines = [
        [Cell(name.replace("_", " ")), number_cell(count)]
        for name, count in counters.items()
        if not name.endswith("_s")
    ]
    section.collapsed.append(Table("Other counters", ["counter", "count"], lines))
    return section


def _rate_chart(marks: Sequence[Sequence[float]]) -> Chart:
    """Interpolate at equal steps: two chunks may be done in the same millisecond, which gives no rate."""
    seconds, pairs = (np.array(values, float) for values in zip(*marks, strict=True))
    steps = np.linspace(seconds[0], seconds[-1], min(_MAX_STEPS, len(seconds) - 1) + 1)
    mean = (pairs[-1] - pairs[0]) / (seconds[-1] - seconds[0])
    note = f"Pairs per second after the first chunk, mean {mean:,.1f}."
    return rate_chart("Rate over time", note, steps, np.interp(steps, seconds, pairs))


def _stages_table(this: Mapping[str, Any]) -> Table:
    seconds = {name.removesuffix("_s"): value for name, value in this["counters"].items() if name.endswith("_s")}
    most = max([*seconds.values(), 1e-9])
    names = [*(name for name in _STAGES if name in seconds), *(name for name in seconds if name not in _STAGES)]
    rows = [
        [
            Cell(name.replace("_", " ")),
            Cell(_STAGES.get(name, "")),
            Cell(f"{seconds[name]:,.1f}", seconds[name], seconds[name] / most),
            Cell(f"{seconds[name] / max(this['seconds'], 1e-3):.2f}", seconds[name]),
        ]
        for name in names
    ]
    return Table("Stages", ["stage", "work", "seconds of all workers", "workers"], rows)


def settings_section(data: PageData) -> Section:
    """Return what the rows were made with: the VAE, settings, source, job and versions."""
    metadata = data.output.metadata
    values = {name: getattr(metadata, name) for name in SETTING_DEFAULTS}
    chosen = {name: value for name, value in values.items() if value != SETTING_DEFAULTS[name]}
    section = Section([] if chosen else ["All settings of rows have their defaults."])
    section.tables.append(values_table("VAE", {name: getattr(metadata.vae, name) for name in VAE_FIELDS}))
    if chosen:
        section.tables.append(values_table("Changed settings", chosen))
    section.tables.append(values_table("Source and job", _source(data)))
    section.tables.append(values_table("Versions", metadata.versions))
    defaults = {name: value for name, value in values.items() if name not in chosen}
    section.collapsed.append(values_table("Settings with their defaults", defaults))
    return section


def _source(data: PageData) -> dict[str, Any]:
    """Return the options of the source and of access that are not the default, and when the job ran."""
    job, report = data.output.job, data.output.report
    defaults = {name: field.default for name, field in Source.model_fields.items()}
    defaults |= {"random_masks": False, "carried": {}}
    source = {name: value for name, value in job.get("source", {}).items() if value != defaults.get(name)}
    about = {"job": job.get("job"), "begun": job.get("created"), "finished": report.get("finished")}
    return source | {name: value for name, value in (job.get("access", {}) | about).items() if value}
