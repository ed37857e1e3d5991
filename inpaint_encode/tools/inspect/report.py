"""The command ``report``: prints the last run's report as tables, and writes the page of an output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inpaint_encode.settings import ReportOptions
from inpaint_encode.stores import storage

from .page import render
from .page_data import collect_page_data
from .summary import writable_uri

__all__ = ["WrittenPage", "print_report", "write_page"]

_COUNTS = ("pairs", "encoded", "rejected", "files", "data_bytes", "unpaired_images", "unpaired_masks", "ignored_files")


class WrittenPage(NamedTuple):
    """A page that was written."""

    uri: str
    size: int
    """In bytes."""


def write_page(output: str, options: ReportOptions, on_status: Callable[[str], None]) -> WrittenPage:
    """Read a sample of an output and write the page.

    Args:
        output: folder or prefix that a job wrote.
        options: of the command.
        on_status: called with a line before each step.

    Raises:
        UsageError: there is no output, it has no data file, or the page cannot be written there.
        JobFailed: a file is damaged.
        PermissionError, OSError: from the store.
    """
    uri = writable_uri(options.html, "--html")
    page = render(collect_page_data(output, options, on_status)).encode()
    storage.write(uri, page)
    return WrittenPage(uri, len(page))


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print counts and rejected pairs of the whole output, and the stages and counters of its last run."""
    this = report["this_run"]
    counters: dict[str, float] = this["counters"]
    seconds = {name.removesuffix("_s"): value for name, value in counters.items() if name.endswith("_s")}
    others = {name: value for name, value in counters.items() if not name.endswith("_s")}
    console.print(_table("output", {name: report[name] for name in _COUNTS}))
    if report["rejected_by_error"]:
        console.print(_table("rejected for", _largest_first(report["rejected_by_error"])))
    ran = f"{this['encoded'] + this['rejected']:,} pairs in {this['seconds']:,.1f} s, {this['pairs_per_second']:,.1f}/s"
    console.print(f"the run that finished {escape(report['finished'])}: {ran}", highlight=False)
    if warning := this["masks"]["warning"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    if counters:
        console.print(_table("seconds of all workers", _largest_first(seconds), digits=1))
        console.print(_table("counters", others))


def _largest_first(counts: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _table(title: str, values: Mapping[str, float], digits: int = 0) -> Table:
    table = Table(title, "", box=None, pad_edge=False)
    table.columns[1].justify = "right"
    for name, value in values.items():
        table.add_row(escape(name), f"{value:,.{digits}f}")
    return table
