"""Findings of checks, and how they are printed."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inpaint_encode.errors import JobFailed
from inpaint_encode.stores.redaction import redacted

__all__ = ["Finding", "FindingPrinter", "ok", "plural", "problem", "warning"]


class Finding(NamedTuple):
    """Result of one check; has only strings, so that Ray can send it."""

    level: Literal["ok", "warning", "problem"]
    """warning: a job would run, with limits. problem: a job would fail, or could lose or repeat rows."""
    check: str
    """What was checked: a topic such as ``memory``, a URI or a node."""
    found: str
    advice: str = ""
    """What to do; empty only for ok."""


ok, warning, problem = partial(Finding, "ok"), partial(Finding, "warning"), partial(Finding, "problem")

_COLORS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


class FindingPrinter:
    """Prints each finding when it is added, and counts problems and warnings."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counts: Counter[str] = Counter()

    def add(self, finding: Finding) -> None:
        """Print a finding, without the credentials in its URIs."""
        self._counts[finding.level] += 1
        check = redacted(finding.check)
        found = Text(f"{check}: {redacted(finding.found)}", overflow="fold")
        found.stylize("bold", 0, len(check))
        if finding.advice:
            found.append(f"\n{finding.advice}", style="italic")
        line = Table.grid(padding=(0, 1))
        line.add_column(width=7)
        line.add_row(Text(finding.level, style=_COLORS[finding.level]), found)
        self._console.print(line, highlight=False)

    def finish(self) -> None:
        """Print the number of warnings.

        Raises:
            JobFailed: there are problems.
        """
        warnings = plural(self._counts["warning"], "warning")
        if self._counts["problem"]:
            raise JobFailed(f"{plural(self._counts['problem'], 'problem')} and {warnings} found; see the advice above")
        self._console.print(f"no problems, {warnings}", highlight=False)


def plural(count: int, noun: str) -> str:
    """Return a number with its noun, such as ``1 node`` or ``2 nodes``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
