"""What ran: how fast, what its workers were busy with, and by which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from inpaint_encode.settings import Decoding, RowSettings, Source
from inpaint_encode.tools.inspect.charts import rate_chart
from inpaint_encode.tools.inspect.contents import Contents

from .parts import Cell, Section, Table, count_cell, pairs_table, time_of

__all__ = ["pace", "settings"]

_STEPS = 60
"""Steps of time in which the rate is drawn, at most."""

_STAGES = {
    "fetch": "files come from the store",
    "decode": "files become pixels and are cropped",
    "copy": "pixels go to the device",
    "encode": "the VAE is at work",
    "copy_back": "latents come back",
    "write": "rows are written as Parquet",
    "wait": "a device has nothing to do",
}


def pace(contents: Contents) -> Section:
    """How fast the last run was, and what its workers were busy with."""
    if not contents.output.report:
        return Section(["That is known when a run has finished."])
    this = contents.output.report["this_run"]
    pairs = this["encoded"] + this["rejected"]
    if not pairs:
        return Section(["The last run found everything done."])
    section = Section([f"The last run decided {pairs:,} pairs in {time_of(this['seconds'])}, Ray's start included."])
    if marks := this.get("decided_over_time"):
        section.says[0] += f" Its first chunk was done after {time_of(marks[0][0])}."
        if marks[-1][0] > marks[0][0]:
            section.charts.append(("Rate over time", *_rate_chart(marks)))
    section.tables.append(_stages_table(this))
    if waited := _waited(this["counters"]):
        section.says.append(waited)
    counted = {name: value for name, value in this["counters"].items() if not name.endswith("_s")}
    lines = [[Cell(name.replace("_", " ")), count_cell(value)] for name, value in counted.items()]
    section.more.append(Table("Whatever else was counted", ["what", "count"], lines))
    return section


def _rate_chart(marks: Sequence[Sequence[float]]) -> tuple[Markup, str]:
    """In equal steps: two chunks may be done in the same millisecond, which is no rate."""
    seconds, decided = (np.array(values, float) for values in zip(*marks, strict=True))
    steps = np.linspace(seconds[0], seconds[-1], min(_STEPS, len(seconds) - 1) + 1)
    mean = (decided[-1] - decided[0]) / (seconds[-1] - seconds[0])
    says = f"Pairs a second since the first chunk was done, {mean:,.1f} in the mean"
    return rate_chart(steps, np.interp(steps, seconds, decided), says), f"{says}."


def _stages_table(this: Mapping[str, Any]) -> Table:
    seconds = {name.removesuffix("_s"): value for name, value in this["counters"].items() if name.endswith("_s")}
    known = [name for name in _STAGES if name in seconds]
    most = max([*seconds.values(), 1e-9])
    lines = [
        [
            Cell(name.replace("_", " ")),
            Cell(_STAGES.get(name, "")),
            Cell(f"{seconds[name]:,.1f}", seconds[name], seconds[name] / most),
            Cell(f"{seconds[name] / max(this['seconds'], 1e-3):.2f}", seconds[name]),
        ]
        for name in [*known, *(name for name in seconds if name not in known)]
    ]
    return Table("Stages", ["stage", "what happens", "seconds of all workers", "workers at it"], lines)


def _waited(counters: Mapping[str, float]) -> str:
    busy = sum(counters.get(f"{stage}_s", 0.0) for stage in ("copy", "encode", "copy_back"))
    waits = counters.get("wait_s", 0.0)
    if not busy + waits:
        return ""
    return (
        f"From when they were ready to their last image, devices waited about {waits / (busy + waits):.0%} of the time "
        "for pixels: near 0% it is the VAE that limits the job, near 100% it is fetching and decoding. Workers at a "
        "stage are its seconds by those of the run: 1.00 is one worker all the time."
    )


def settings(contents: Contents) -> Section:
    """What the rows were made by."""
    output = contents.output
    metadata = output.metadata
    section = Section()
    section.tables.append(pairs_table("VAE", {name: getattr(metadata.vae, name) for name in _VAE}))
    defaults = RowSettings().recorded() | Decoding().recorded()
    values = {name: getattr(metadata, name) for name in defaults}
    chosen = {name: value for name, value in values.items() if value != defaults[name]}
    usual = {name: value for name, value in values.items() if name not in chosen}
    if chosen:
        section.tables.append(pairs_table("Settings that are not the default", chosen))
    else:
        section.says.append("All settings of rows are the defaults.")
    section.tables.append(pairs_table("Source and job", _source(contents)))
    section.tables.append(pairs_table("Versions", metadata.versions))
    section.more.append(pairs_table("Settings that are the default", usual))
    return section


def _source(contents: Contents) -> dict[str, Any]:
    """Where the pairs came from, as far as that is not by default, and when."""
    job, report = contents.output.job, contents.output.report
    usual = {name: field.default for name, field in Source.model_fields.items()}
    usual |= {"random_masks": False, "carried": {}}
    given = {name: value for name, value in job.get("source", {}).items() if value != usual.get(name)}
    asked = {name: value for name, value in job.get("access", {}).items() if value}
    about = {"job": job.get("job"), "begun": job.get("created"), "finished": report.get("finished")}
    return given | asked | {name: value for name, value in about.items() if value}


_VAE = (
    *("vae_class", "vae_source", "vae_family", "latent_channels", "vae_scale_factor", "crop_multiple", "latent_form"),
    *("scaling_factor", "shift_factor", "weights_sha256", "config_sha256"),
)
