"""The command ``report``: prints the last run's report as tables, and writes the page of an output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inpaint_encode.settings import ReportOptions
from inpaint_encode.stores import storage

from .page import render
from .page_data import collect_page_data
from .summary import counter_meaning, normalize_output_uri

_COUNTS = ("pairs", "encoded", "rejected", "files", "data_bytes", "unpaired_images", "unpaired_masks", "ignored_files")


def write_page(output: str, options: ReportOptions, on_status: Callable[[str], None]) -> str:
    """Read a sample of an output and write the page.

    Args:
        output: folder or prefix that a job wrote.
        options: of the command.
        on_status: called with a line before each step.

    Returns:
        The page's URI and size, to print.

    Raises:
        UsageError: there is no output, it has no data file, or the page cannot be written there.
        JobFailed: a file is damaged.
        PermissionError, OSError: from the store.
    """
    uri = normalize_output_uri(options.html, "--html")
    page = render(collect_page_data(output, options, on_status)).encode()
    storage.write(uri, page)
    return f"{uri}: {len(page):,} bytes"


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Print counts and rejected pairs of the whole output, and the stages and counters of its last run."""
    this = report["this_run"]
    counters: dict[str, float] = this["counters"]
    seconds = {name.removesuffix("_s"): value for name, value in counters.items() if name.endswith("_s")}
    others = {name: value for name, value in counters.items() if not name.endswith("_s")}

    def print_table(
        title: str,
        values: Mapping[str, float],
        digits: int = 0,
        *,
        largest_first: bool = False,
        meaning: Callable[[str], str] | None = None,
    ) -> None:
        table = Table(title, *["", ""][: 2 if meaning else 1], box=None, pad_edge=False)
        table.columns[1].justify = "right"
        for name, value in sorted(values.items(), key=lambda item: -item[1] if largest_first else 0):
            table.add_row(escape(name), f"{value:,.{digits}f}", *([meaning(name)] if meaning else []))
        console.print(table)

    print_table("output", {name: report[name] for name in _COUNTS})
    if report["rejected_by_error"]:
        print_table("rejected pairs by reason", report["rejected_by_error"], largest_first=True)
    ran = f"{this['encoded'] + this['rejected']:,} pairs in {this['seconds']:,.1f} s, {this['pairs_per_second']:,.1f}/s"
    console.print(f"the run that finished {escape(report['finished'])}: {ran}", highlight=False)
    if warning := this["masks"]["warning"]:
        console.print(f"[yellow]warning:[/] {escape(warning)}", highlight=False)
    if counters:
        print_table("seconds of all workers", seconds, digits=1, largest_first=True)
        print_table("counters", others, meaning=counter_meaning)
