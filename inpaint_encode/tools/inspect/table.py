"""An output's `_report.json` as a person reads it: counts, why pairs were rejected, where the last run's time went."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.stores import storage

__all__ = ["read_report", "show"]

_COUNTS = ("pairs", "encoded", "rejected", "files", "data_bytes", "unpaired_images", "unpaired_masks", "ignored_files")


def read_report(output: str) -> dict[str, Any]:
    """Read the report that the last finished run left at ``output``, a folder or prefix that a job wrote.

    Empty where no run has finished yet.

    Raises:
        UsageError: no output can be there.
        JobFailed: the file is damaged.
    """
    try:
        uri = storage.join(storage.normalize_uri(output), "_report.json")
    except ValueError as error:
        raise UsageError(str(error)) from None
    try:
        report: dict[str, Any] = json.loads(storage.read(uri).data)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise JobFailed(f"{uri} is damaged: {error}; the same encode command writes it anew") from error
    return report


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the whole output's counts and rejects, and the seconds and other counters of its last run."""
    this = report["this_run"]
    counters: dict[str, float] = this["counters"]
    seconds = {name.removesuffix("_s"): value for name, value in counters.items() if name.endswith("_s")}
    others = {name: value for name, value in counters.items() if not name.endswith("_s")}
    console.print(_table("output", {name: report[name] for name in _COUNTS}))
    if report["rejected_by_error"]:
        console.print(_table("rejected for", _largest_first(report["rejected_by_error"])))
    ran = f"{this['encoded'] + this['rejected']:,} pairs in {this['seconds']:,.1f} s, {this['pairs_per_second']:,.1f}/s"
    console.print(f"the run that ended {escape(report['finished'])}: {ran}", highlight=False)
    if warning := this["masks"]["warning"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    if counters:
        console.print(_table("seconds of all workers", _largest_first(seconds), digits=1))
        console.print(_table("counted", others))


def _largest_first(counts: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _table(title: str, values: Mapping[str, float], digits: int = 0) -> Table:
    table = Table(title, "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in values.items():
        table.add_row(escape(name), f"{value:,.{digits}f}")
    return table
