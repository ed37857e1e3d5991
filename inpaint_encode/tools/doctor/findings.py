"""Findings of the checks: ok, a warning or a problem, with what to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import partial
from typing import Literal, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inpaint_encode.errors import JobFailed
from inpaint_encode.stores.redaction import for_terminal
from inpaint_encode.tools import pluralize


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


def print_findings(findings: Iterable[Finding], console: Console) -> None:
    """Print findings as they arrive, without the credentials in their URIs, and then the number of warnings.

    Raises:
        JobFailed: there are problems.
    """
    counts: Counter[str] = Counter()
    for finding in findings:
        counts[finding.level] += 1
        check = for_terminal(finding.check)
        found = Text(f"{check}: {for_terminal(finding.found)}", overflow="fold")
        found.stylize("bold", 0, len(check))
        if finding.advice:
            found.append(f"\n{for_terminal(finding.advice)}", style="italic")
        line = Table.grid(padding=(0, 1))
        line.add_column(width=7)
        line.add_row(Text(finding.level, style=_COLORS[finding.level]), found)
        console.print(line, highlight=False)
    warnings = pluralize(counts["warning"], "warning")
    if counts["problem"]:
        raise JobFailed(f"{pluralize(counts['problem'], 'problem')} and {warnings} found; see the advice above")
    console.print(f"no problems, {warnings}", highlight=False)
