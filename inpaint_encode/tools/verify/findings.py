"""The checks and their results: problems, the findings of one chunk, and the result for a whole output."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from inpaint_encode.errors import IncompleteOutput

__all__ = ["CHECKS", "DATA_CHECKS", "ChunkFindings", "Problem", "ReencodeResult", "VerifyResult", "counted"]

DATA_CHECKS = {
    "file": "every data file exists and is readable",
    "footer": "its footer has its chunk and a planned generation",
    "settings": "its footer has the settings of _job.json",
    "columns": "its columns have the expected names and types",
    "keys": "its rows and rejects are the planned pairs, each once",
    "samples": "all latent values are finite",
    "shapes": "shapes and crop follow from the source's size",
    "noise_mask": "noise_mask is 0 or 1",
    "latent_mask": "latent_mask follows from noise_mask, or is 0 or 1",
    "mask_coverage": "mask_coverage is the mean of noise_mask",
    "reencode": "rows that are encoded again are the same",
}
"""Checks of a data file. If one fails, the chunk must be encoded again."""

CHECKS = {
    "plan": "the plan is complete and has every pair once",
    **DATA_CHECKS,
    "rejects": "_rejected/ has the rejects of the data files",
    "receipts": "_receipts/ has the counts of the data files",
    "report": "_report.json has the counts of the data files",
    "orphan": "no file belongs to another job or to an unplanned chunk",
    "unknown": "no data file is by another program",
    "temporary": "no file is unfinished",
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
    chunk: int = -1
    """The chunk of the file; -1 if it has none."""


@dataclass
class ChunkFindings:
    """What the files of one chunk contain, and their problems."""

    chunk: int
    generation: int | None = None
    """Generation of the plan in the data file's footer; None if the file is not readable."""
    encoded: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Number of rejected pairs by the name of the error."""
    problems: list[Problem] = field(default_factory=list)
    fatal: str | None = None
    """Why the chunk could not be checked, which ends the command."""

    def add(self, check: str, file: str, sentence: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(check, file, sentence, self.chunk))

    def to_json(self) -> str:
        """Return the findings as JSON."""
        return json.dumps(vars(self))

    @classmethod
    def from_json(cls, text: str) -> ChunkFindings:
        """Return the findings of `to_json`."""
        values = json.loads(text)
        return cls(**{**values, "problems": [Problem(*problem) for problem in values["problems"]]})


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
    different: int = 0
    """Rows with a problem."""
    problems: list[Problem] = field(default_factory=list)


@dataclass
class VerifyResult:
    """The problems of an output, and what a repair did about them."""

    output: str
    chunks: int
    """Number of planned chunks."""
    pairs: int
    """Number of planned pairs."""
    findings: dict[int, ChunkFindings] = field(default_factory=dict)
    """Of the planned chunks that have a data file."""
    incomplete: set[int] = field(default_factory=set)
    """Planned chunks that are not encoded, or not since the plan last changed; a repair adds those it removes."""
    problems: list[Problem] = field(default_factory=list)
    reencoded: ReencodeResult | None = None
    repairs: list[str] | None = None
    """What a repair did, in sentences; None without ``--repair``."""
    unrepaired: list[Problem] = field(default_factory=list)
    """Problems that a repair could not remove."""

    @property
    def remaining(self) -> list[Problem]:
        """Problems that still exist."""
        return self.problems if self.repairs is None else self.unrepaired

    @property
    def damaged(self) -> set[int]:
        """Chunks whose data file is missing or has failed one of `DATA_CHECKS`."""
        return {problem.chunk for problem in self.problems if problem.check in DATA_CHECKS}

    @property
    def encoded(self) -> int:
        """Number of rows in complete chunks."""
        return sum(found.encoded for chunk, found in self.findings.items() if chunk not in self.incomplete)

    @property
    def rejects(self) -> Counter[str]:
        """Number of rejected pairs in complete chunks, by the name of the error."""
        errors: Counter[str] = Counter()
        for chunk, found in self.findings.items():
            if chunk not in self.incomplete:
                errors.update(found.errors)
        return errors

    def check_complete(self) -> None:
        """Check that every planned pair is a row or a reject, and that no problem remains.

        Raises:
            IncompleteOutput: otherwise; the message has the counts and says what to do.
        """
        if not self.remaining and not self.incomplete:
            return
        reasons = [counted(len(self.remaining), "problem")] if self.remaining else []
        if self.incomplete:
            reasons.append(f"{len(self.incomplete):,} of {counted(self.chunks, 'chunk')} not encoded yet")
        advice = "run the same encode command again"
        if self.remaining and self.repairs is None:
            advice = "run verify with --repair, then run the same encode command again"
        elif self.remaining:
            advice = "--repair cannot remove the problems that are left"
        raise IncompleteOutput(f"{self.output} is not complete: {', '.join(reasons)}; {advice}")


def counted(count: int, noun: str) -> str:
    """Return ``1 row``, ``2 rows``, ..."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
