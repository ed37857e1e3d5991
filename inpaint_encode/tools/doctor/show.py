"""Findings as lines on a terminal, and what becomes of a command that has found problems."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inpaint_encode.errors import JobFailed
from inpaint_encode.stores.redaction import redacted

from .finding import Finding

__all__ = ["Shown"]

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "bold red"}


class Shown:
    """Prints each finding as it comes, and counts them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._counts: Counter[str] = Counter()

    def add(self, finding: Finding) -> None:
        """Print one, without what is secret in URIs and in the endpoint's."""
        self._counts[finding.level] += 1
        check = redacted(finding.check)
        found = Text(f"{check}: {redacted(finding.found)}", overflow="fold")
        found.stylize("bold", 0, len(check))
        if finding.advice:
            found.append(f"\n{finding.advice}", style="italic")
        line = Table.grid(padding=(0, 1))
        line.add_column(width=7)
        line.add_row(Text(finding.level, style=_COLOURS[finding.level]), found)
        self._console.print(line, highlight=False)

    def refuse_problems(self) -> None:
        """Return if nothing found is a problem.

        Raises:
            JobFailed: otherwise.
        """
        warnings = _many(self._counts["warning"], "warning")
        if self._counts["problem"]:
            raise JobFailed(f"{_many(self._counts['problem'], 'problem')}, {warnings}; each says what to do")
        self._console.print(f"no problem, {warnings}", highlight=False)


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
