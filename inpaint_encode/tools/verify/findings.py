"""The checks and their results: problems, the findings of one chunk, and the result for a whole output."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from inpaint_encode.errors import IncompleteOutput
from inpaint_encode.tools import pluralize

MAX_PROBLEMS = 20
"""Problems that are printed; all of them are counted."""

DATA_CHECKS = {
    "file": "every data file exists and is readable",
    "footer": "its footer has the name, the revision and the hash of the planned chunk",
    "settings": "its footer has the settings of _job.json",
    "columns": "its columns have the expected names and types",
    "keys": "its rows and rejects are the planned pairs, each once",
    "samples": "all latent values are finite",
    "shapes": "shapes and crop match the size of the source",
    "noise_mask": "noise_mask is 0 or 1",
    "latent_mask": "latent_mask matches noise_mask (comfyui) or is binary (diffusers)",
    "mask_coverage": "mask_coverage is the mean of noise_mask",
    "reencode": "re-encoding the sources gives the stored rows",
}
"""Checks of a data file. If one fails, the chunk must be encoded again, unless the file itself is intact."""

CHECKS = {
    "plan": "the plan is complete, has every chunk that is encoded, and every pair once",
    **DATA_CHECKS,
    "rejects": "rejected pairs in _rejected/ agree with the data files",
    "receipts": "cached counts in _receipts/ agree with the data files",
    "index": "row groups and keys in _index/ agree with the data files",
    "report": "counts in _report.json agree with the data files",
    "orphan": "no file belongs to an overwritten job",
    "unknown": "no file was written by another program",
    "temporary": "no temporary file is left",
}
"""Every check by name, and what is true if it finds no problem."""


class Problem(NamedTuple):
    """One problem of one file."""

    check: str
    """A name in `CHECKS`."""
    file: str
    """Its URI."""
    sentence: str
    """What is wrong; the file is the subject."""
    chunk: str = ""
    """The chunk of the file; empty if it has none."""
    is_intact: bool = False
    """Whether the data file is intact and only disagrees with the plan or with _job.json, so that it is never removed.
    """


class PlannedChunk(NamedTuple):
    """A chunk of the plan, or a chunk with a data file that is not planned."""

    chunk: str
    revision: int
    """The newest one that contains the chunk; -1 if it is not planned."""
    hash: str
    """Of the planned pairs; empty in an output of version 0.1, or if it is not planned."""
    footer_hash: str
    """See `inpaint_encode.output.plan_log.MarkedChunk`."""
    part: str
    """URI of its plan file; empty if it is lost."""
    has_rejects: bool
    """Whether a rejects file exists."""


@dataclass
class ChunkFindings:
    """What the files of one chunk contain, and their problems."""

    chunk: str
    revision: int | None = None
    """In the data file's footer; None if the file is not readable, or has the footer of another chunk."""
    hash: str = ""
    """The same."""
    encoded: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Number of rejected pairs by the name of the error."""
    problems: list[Problem] = field(default_factory=list)
    fatal: str | None = None
    """Why the chunk could not be checked, which ends the command."""
    footer_chunk: str = ""
    """The chunk in the data file's footer; empty if the file is not readable."""

    def add(self, check: str, file: str, sentence: str, *, is_intact: bool = False) -> None:
        """Add a problem."""
        self.problems.append(Problem(check, file, sentence, self.chunk, is_intact))


@dataclass
class ReencodeResult:
    """The comparison of some rows with their sources, which were encoded again."""

    rows: int = 0
    """Compared rows."""
    changed: int = 0
    """Rows that were not compared, because their image or mask has changed since."""
    largest: float = 0.0
    """Largest absolute difference of a latent value."""
    other_masks: int = 0
    """Rows with another noise_mask."""
    problems: list[Problem] = field(default_factory=list)
    """One for each row that differs."""


@dataclass
class VerifyResult:
    """The problems of an output, and what a repair did about them."""

    output: str
    chunks: dict[str, PlannedChunk] = field(default_factory=dict)
    """All planned chunks."""
    pairs: int = 0
    """Number of planned pairs."""
    findings: dict[str, ChunkFindings] = field(default_factory=dict)
    """Of the planned chunks that have a data file."""
    unplanned: dict[str, ChunkFindings] = field(default_factory=dict)
    """Of other chunks that have a data file."""
    incomplete: set[str] = field(default_factory=set)
    """Planned chunks that are not encoded, or not since the plan last changed; a repair adds those it removes."""
    is_finished: bool = True
    """Whether a run has planned the whole source, and has written the report of this plan."""
    is_old: bool = False
    """Whether version 0.1 wrote the output."""
    problems: list[Problem] = field(default_factory=list)
    reencoded: ReencodeResult | None = None
    repairs: list[str] | None = None
    """What a repair does, a sentence for each file; None without ``--repair``."""
    is_repaired: bool = False
    """Whether the repair was done, not only listed."""
    unrepaired: list[Problem] = field(default_factory=list)
    """Problems that a repair could not remove."""

    @property
    def remaining(self) -> list[Problem]:
        """Problems that still exist."""
        return self.unrepaired if self.is_repaired else self.problems

    @property
    def damaged(self) -> set[str]:
        """Chunks whose data file is missing, or is damaged according to one of `DATA_CHECKS`."""
        return {one.chunk for one in self.problems if one.check in DATA_CHECKS and not one.is_intact}

    @property
    def plan_is_damaged(self) -> bool:
        """Whether the plan has a problem, so that chunks may be unknown."""
        return any(problem.check == "plan" for problem in self.problems)

    @property
    def complete(self) -> list[ChunkFindings]:
        """The findings of the complete chunks."""
        return [found for chunk, found in self.findings.items() if chunk not in self.incomplete]

    @property
    def encoded(self) -> int:
        """Number of rows in complete chunks."""
        return sum(found.encoded for found in self.complete)

    @property
    def rejects(self) -> Counter[str]:
        """Number of rejected pairs in complete chunks, by the name of the error."""
        return sum((Counter(found.errors) for found in self.complete), Counter())

    def check_complete(self) -> None:
        """Check that every planned pair is a row or a reject, and that no problem remains.

        Raises:
            IncompleteOutput: otherwise; the message has the counts and says what to do.
        """
        if not self.remaining and not self.incomplete and self.is_finished:
            return
        reasons = [pluralize(len(self.remaining), "problem")] if self.remaining else []
        if self.incomplete:
            reasons.append(f"{len(self.incomplete):,} of {pluralize(len(self.chunks), 'chunk')} not encoded yet")
        elif not self.is_finished:
            reasons.append("no run has finished since the plan last changed")
        advice = "run the same encode command again"
        if self.is_old:
            advice = "use the version of inpaint-encode that wrote it"
        elif self.remaining and not self.is_repaired:
            advice = "run verify with --repair, then run the same encode command again"
        elif self.remaining:
            advice = "--repair cannot remove the problems that are left"
        raise IncompleteOutput(f"{self.output} is not complete: {', '.join(reasons)}; {advice}")


def print_result(result: VerifyResult, console: Console) -> None:
    """Print the checks, the counts, the first problems, and the repairs."""
    counts = Counter(problem.check for problem in result.problems)
    checks = Table("check", "what should be true", "problems", box=None, pad_edge=False)
    for name, sentence in CHECKS.items():
        if name != "reencode" or result.reencoded:
            checks.add_row(name, sentence, f"[red]{counts[name]:,}" if counts[name] else "[green]0")
    console.print(checks)
    chunks, rejects = pluralize(len(result.chunks), "chunk"), result.rejects
    errors = ", ".join(f"{count:,} {escape(error)}" for error, count in rejects.most_common(3))
    console.print(
        f"{pluralize(result.pairs, 'pair')} planned in {chunks}: {result.encoded:,} encoded, "
        f"{rejects.total():,} rejected{f' ({errors})' if errors else ''}",
        highlight=False,
    )
    if result.incomplete:
        console.print(f"[yellow]{len(result.incomplete):,} of {chunks} not encoded yet[/]", highlight=False)
    if sample := result.reencoded:
        masks = f"{sample.other_masks:,} noise_masks differ" if sample.other_masks else "noise_masks are equal"
        changed = f"; {pluralize(sample.changed, 'source')} changed since, not compared" if sample.changed else ""
        differences = f"samples differ by at most {sample.largest:.3g}, {masks}{changed}"
        console.print(f"{pluralize(sample.rows, 'row')} encoded again: {differences}", highlight=False)
    if total := len(result.problems):
        caption = f"… and {total - MAX_PROBLEMS:,} more" if total > MAX_PROBLEMS else None
        table = Table("file", "check", "what is wrong", title=pluralize(total, "problem"), caption=caption)
        for problem in result.problems[:MAX_PROBLEMS]:
            file = problem.file.removeprefix(f"{result.output}/")
            table.add_row(escape(file), problem.check, escape(problem.sentence))
        console.print(table)
    done = "done" if result.is_repaired else "not done yet"
    for line in result.repairs or ():
        console.print(f"repair ({done}): {escape(line)}", highlight=False, soft_wrap=True)
