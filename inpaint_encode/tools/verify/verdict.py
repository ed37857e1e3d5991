"""What verifying an output has shown, and how a person is told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inpaint_encode.errors import NotWhole

from .checks import Found, Problem

if TYPE_CHECKING:
    from .resample import Resampled

__all__ = ["CHECKS", "DATA_CHECKS", "SHOWN", "Verdict", "show"]

SHOWN = 20
"""Problems that are shown one by one; the number is always whole."""

DATA_CHECKS = {
    "file": "every data file is there and can be read whole",
    "decision": "its footer names its chunk, and no generation that the plan does not have",
    "settings": "its footer agrees with _job.json",
    "columns": "its columns have the names and types that all files have",
    "keys": "its rows and rejects are the planned pairs, each once",
    "samples": "all latent values are finite",
    "shapes": "samples, masks and the crop follow from the source's size",
    "noise_mask": "noise_mask is 0 or 1",
    "latent_mask": "latent_mask follows from noise_mask, or is 0 or 1",
    "coverage": "mask_coverage is the mask's mean",
    "sample": "rows encoded again are the same",
}
"""Checks whose failure means that a chunk's data file is not to be used."""

CHECKS = {
    "plan": "the plan is complete, and has every pair once",
    **DATA_CHECKS,
    "rejects": "_rejected/ has what the data files reject",
    "receipts": "_receipts/ has what the data files hold",
    "report": "_report.json has what the data files hold",
    "foreign": "there is no file of another job, or of no planned chunk",
    "stranger": "there is no data that this tool did not write",
    "temporary": "there is no unfinished file",
}
"""Every check, by name, and what is true if it finds nothing."""


@dataclass
class Verdict:
    """What was found, and what a repair has left of it."""

    output: str
    chunks: int
    """Planned ones."""
    pairs: int
    """Planned ones."""
    found: dict[int, Found] = field(default_factory=dict)
    """Planned chunks whose data file was opened."""
    undone: set[int] = field(default_factory=set)
    """Planned chunks that are not decided, or not since the plan last changed."""
    problems: list[Problem] = field(default_factory=list)
    resampled: Resampled | None = None
    repairs: list[str] | None = None
    """What a repair has done, in sentences; None if none was asked for."""
    left: list[Problem] = field(default_factory=list)
    """Problems that are still there: all of them, unless something was repaired."""

    @property
    def damaged(self) -> set[int]:
        """Chunks whose data file failed one of `DATA_CHECKS`, or is lost."""
        return {problem.chunk for problem in self.problems if problem.check in DATA_CHECKS}

    @property
    def encoded(self) -> int:
        """Rows in the chunks that are done."""
        return sum(found.encoded for chunk, found in self.found.items() if chunk not in self.undone)

    @property
    def rejects(self) -> Counter[str]:
        """Rejected pairs of the chunks that are done, by the name of their error."""
        errors: Counter[str] = Counter()
        for chunk, found in self.found.items():
            if chunk not in self.undone:
                errors.update(found.errors)
        return errors

    def refuse_unless_whole(self) -> None:
        """Return if every planned pair is a row or a reject and nothing is wrong.

        Raises:
            NotWhole: otherwise; it says how much is wrong and what to do.
        """
        if not self.left and not self.undone:
            return
        wrong = [_many(len(self.left), "problem")] if self.left else []
        undone = [f"{len(self.undone):,} of {_many(self.chunks, 'chunk')} not done yet"] if self.undone else []
        advice = "run the same encode command again"
        if self.left and self.repairs is None:
            advice = "run verify with --repair, and then the same encode command again"
        elif self.left:
            advice = "what is left cannot be repaired here, see above"
        raise NotWhole(f"{self.output} is not whole: {', '.join(wrong + undone)}; {advice}")


def show(verdict: Verdict, console: Console) -> None:
    """Print what was checked, the counts, the first problems, and what was repaired."""
    counts = Counter(problem.check for problem in verdict.problems)
    checks = Table("check", "what should be", "problems", box=None, pad_edge=False)
    for name, sentence in CHECKS.items():
        if name != "sample" or verdict.resampled:
            checks.add_row(name, sentence, f"[red]{counts[name]:,}" if counts[name] else "[green]0")
    console.print(checks)
    console.print(_counts(verdict), highlight=False)
    if verdict.resampled:
        console.print(_resampled(verdict.resampled), highlight=False)
    if verdict.problems:
        console.print(_problems(verdict))
    for line in verdict.repairs or ():
        console.print(f"repair: {escape(line)}", highlight=False)


def _counts(verdict: Verdict) -> str:
    rejects = verdict.rejects
    named = (
        f" ({', '.join(f'{count:,} {escape(error)}' for error, count in rejects.most_common(3))})" if rejects else ""
    )
    counts = (
        f"{_many(verdict.pairs, 'pair')} planned in {_many(verdict.chunks, 'chunk')}: "
        f"{verdict.encoded:,} encoded, {rejects.total():,} rejected{named}"
    )
    if not verdict.undone:
        return counts
    return f"{counts}\n[yellow]{len(verdict.undone):,} of {_many(verdict.chunks, 'chunk')} not done yet[/]"


def _resampled(resampled: Resampled) -> str:
    masks = f"{resampled.other_masks:,} noise_masks differ" if resampled.other_masks else "noise_masks are equal"
    changed = f"; {_many(resampled.changed, 'source')} changed since, not compared" if resampled.changed else ""
    samples = f"samples differ by {resampled.largest:.3g} at most"
    return f"{_many(resampled.rows, 'row')} encoded again: {samples}, {masks}{changed}"


def _problems(verdict: Verdict) -> Table:
    more = len(verdict.problems) - SHOWN
    caption = f"… and {more:,} more" if more > 0 else None
    table = Table("file", "check", "what is wrong", title=_many(len(verdict.problems), "problem"), caption=caption)
    for problem in verdict.problems[:SHOWN]:
        file = problem.file.removeprefix(f"{verdict.output}/")
        table.add_row(escape(file), problem.check, escape(problem.sentence))
    return table


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
