"""The result of verifying an output on a console."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .findings import CHECKS, VerifyResult, counted

__all__ = ["MAX_PROBLEMS", "show"]

MAX_PROBLEMS = 20
"""Problems that are listed; all of them are counted."""


def show(result: VerifyResult, console: Console) -> None:
    """Print the checks, the counts, the first problems, and the repairs."""
    counts = Counter(problem.check for problem in result.problems)
    checks = Table("check", "what should be true", "problems", box=None, pad_edge=False)
    for name, sentence in CHECKS.items():
        if name != "reencode" or result.reencoded:
            checks.add_row(name, sentence, f"[red]{counts[name]:,}" if counts[name] else "[green]0")
    console.print(checks)
    chunks, rejects = counted(result.chunks, "chunk"), result.rejects
    errors = ", ".join(f"{count:,} {escape(error)}" for error, count in rejects.most_common(3))
    console.print(
        f"{counted(result.pairs, 'pair')} planned in {chunks}: {result.encoded:,} encoded, "
        f"{rejects.total():,} rejected{f' ({errors})' if errors else ''}",
        highlight=False,
    )
    if result.incomplete:
        console.print(f"[yellow]{len(result.incomplete):,} of {chunks} not encoded yet[/]", highlight=False)
    if sample := result.reencoded:
        masks = f"{sample.other_masks:,} noise_masks differ" if sample.other_masks else "noise_masks are equal"
        changed = f"; {counted(sample.changed, 'source')} changed since, not compared" if sample.changed else ""
        differences = f"samples differ by at most {sample.largest:.3g}, {masks}{changed}"
        console.print(f"{counted(sample.rows, 'row')} encoded again: {differences}", highlight=False)
    if total := len(result.problems):
        caption = f"… and {total - MAX_PROBLEMS:,} more" if total > MAX_PROBLEMS else None
        table = Table("file", "check", "what is wrong", title=counted(total, "problem"), caption=caption)
        for problem in result.problems[:MAX_PROBLEMS]:
            file = problem.file.removeprefix(f"{result.output}/")
            table.add_row(escape(file), problem.check, escape(problem.sentence))
        console.print(table)
    for line in result.repairs or ():
        console.print(f"repair: {escape(line)}", highlight=False)
