"""Plans in tests: a source is planned into an output as a run does it, without Ray and without encoding anything."""

import json
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.output import lease, planner, shards
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.planner import Planner
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import extra_columns_schema
from inpaint_encode.settings import Chunks, EncodeJob, RunOptions, Source
from inpaint_encode.sources import open_source, pairs, prefixes
from inpaint_encode.sources.pairs import PairSource

JOB = "0123abcd"


def write_lines(path: Path, lines: Iterable[Mapping[str, Any]]) -> str:
    """Write a JSONL list of pairs; the file keeps its version if it has these lines already."""
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
    return str(path)


def run_in_small_units(job: EncodeJob, display: Display, lease_s: float = 1.5) -> None:
    """Run a job, in a process of its own, whose units have about 24 pairs and whose leases end after ``lease_s``."""
    for module in (pairs, planner, prefixes):
        module.BATCH_PAIRS = 24  # type: ignore[attr-defined]
    lease.LEASE_S, lease.RENEW_S = lease_s, lease_s / 5
    shards._POLL_S = 0.2
    run_job(job, display)


class PlanningRun:
    """A run that plans: it has read the plan of the output, and `plan` goes on with it.

    Args:
        output: folder or prefix.
        source: options of `Source`, or a source.
        chunk_rows: of `Chunks`.
        options: of `RunOptions`.
    """

    def __init__(self, output: object, source: Source | PairSource, *, chunk_rows: int = 4, **options: Any) -> None:
        self.source = open_source(source) if isinstance(source, Source) else source
        self.state = OutputState(str(output), JOB, uuid.uuid4().hex)
        extra = extra_columns_schema(self.source.extra_columns)
        self.log = PlanLog.read(self.state, self.state.inventory().plan, extra)
        self.done: set[str] = set()
        """Chunks that count as committed."""
        run = RunOptions(**options)
        self.planner = Planner(self.log, self.source, Chunks(chunk_rows=chunk_rows), run, self._undecided)
        self.steps = self.planner.plan()

    def _undecided(self, unit: int) -> list[int]:
        return [int(name[-5:]) for name in self.log.names(unit) if name not in self.done]

    def plan(self) -> "PlanningRun":
        """Plan the whole source."""
        for _ in self.steps:
            pass
        return self

    def pairs(self) -> list[dict[str, Any]]:
        """Return all planned pairs."""
        return [row for _, table in self.log.read_units() for row in table.to_pylist() if row["key"] is not None]

    def keys(self) -> list[str]:
        """Return the keys of all planned pairs."""
        return [row["key"] for row in self.pairs()]
