"""Repairs an output: rebuilds its plan, and removes what is damaged and what can be made again."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import JobFailed
from inpaint_encode.output import plan
from inpaint_encode.output.index_files import NOTE, read_note
from inpaint_encode.output.parquet import parquet_bytes, read_parquet
from inpaint_encode.output.plan_check import CheckedPlan
from inpaint_encode.output.rebuild import Committed, PlanRepair
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.schema import RECEIPT
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently

from .findings import DATA_CHECKS, ChunkFindings, PlannedChunk, Problem, VerifyResult

_FILE_CHECKS = frozenset({"orphan", "temporary", "report", "index"})
"""Checks that are repaired by removing the file."""


class Repair:
    """What is to be done about the problems of an output. Nothing is changed before `run`.

    A data file is removed only if it is damaged itself: files that disagree with the plan or with _job.json are kept.
    If all data files are damaged, or all rows that were encoded again differ, no data file is removed either, since the
    cause is probably elsewhere. Unknown files are not changed.

    Args:
        result: of `check_output`.
        checked: the plan.
        state: of the output.
        inventory: its files.

    Raises:
        JobFailed: a file cannot be read, though it is not damaged.
    """

    def __init__(self, result: VerifyResult, checked: CheckedPlan, state: OutputState, inventory: Inventory) -> None:
        self._result, self._state, self._inventory = result, state, inventory
        self._found = result.findings | result.unplanned
        kept = _kept_chunks(result)
        self._removed = result.damaged - kept
        self._committed = {
            chunk: Committed(one.revision, one.hash)
            for chunk, one in self._found.items()
            if one.revision is not None and chunk not in self._removed
        }
        self._plan = PlanRepair(state, checked, inventory.plan, self._committed)
        self._rebuilds = bool(self._plan.rebuilt) and self._plan.problem is None
        planned = self._plan.planned if self._rebuilds else set(result.chunks)
        self._rejects = {one.chunk for one in result.problems if one.check == "rejects"} & self._committed.keys()
        without_receipts = {one.chunk for one in result.problems if one.check == "receipts"} | self._removed
        self._receipts = dict(self._find_receipts(without_receipts, planned | self._committed.keys()))
        self._files = {one.file for one in result.problems if one.check in _FILE_CHECKS}
        if self._removed or self._rebuilds:
            self._files |= {state.uri("_report.json")} if result.is_finished else set()
        has_problem = any(one.check == "index" for one in result.problems)
        if (self._removed or has_problem) and read_note(state.output):
            self._files |= {state.uri(NOTE)}
        for chunk in sorted(self._removed):
            self._files |= {state.data_uri(chunk)} if chunk in inventory.versions else set()
            self._files |= {state.rejects_uri(chunk)} if chunk in inventory.rejects_versions else set()
        lost_rejects = inventory.rejects_versions.keys() - planned - inventory.versions.keys()
        self._files |= {state.rejects_uri(chunk) for chunk in lost_rejects}
        result.repairs = [line.replace(f"{state.output}/", "") for line in self._describe()]
        if kept:
            result.repairs.append(
                f"keep {len(kept):,} damaged data files: if everything fails, the cause is probably elsewhere "
                "(_job.json, this machine or this version of inpaint-encode); to replace the files anyway, run encode "
                "with --overwrite"
            )
        result.unrepaired = [one for one in result.problems if self._stays(one, planned, kept)]
        if self._plan.rebuilt and (problem := self._plan.problem):
            result.unrepaired.append(Problem("plan", state.uri(problem.path), problem.sentence))

    def _find_receipts(self, chunks: Collection[str], known: Collection[str]) -> Iterator[tuple[str, pa.Table | None]]:
        """Yield the files of receipts to change and their new rows: none of ``chunks`` or of chunks not ``known``.

        The rows of a file that cannot be read are None.
        """
        paths, names = self._inventory.receipts, pa.array(sorted(set(known) - set(chunks)), pa.string())
        for path, data in zip(paths, map_concurrently(self._state.read, paths), strict=True):
            try:
                table = read_parquet(self._state.uri(path), data, RECEIPT)
            except JobFailed:
                yield path, None
                continue
            kept = table.filter(pc.is_in(table["chunk"], value_set=names))
            if kept.num_rows < table.num_rows:
                yield path, kept

    def _describe(self) -> Iterator[str]:
        """Yield a sentence for each file, in the order in which `run` changes them."""
        for path, table in self._receipts.items():
            if table is None:
                yield f"remove {path}, which cannot be read"
            else:
                yield f"remove receipts from {path}; {table.num_rows:,} are left"
        for chunk in sorted(self._rejects):
            yield f"write {self._state.rejects_uri(chunk)} as the footer of its data file says"
        for file in sorted(self._files):
            yield f"remove {file}"
        if self._rebuilds:
            yield from self._plan.describe()

    def run(self) -> None:
        """Change the files, and record in the result what is complete afterwards.

        Raises:
            JobFailed: another run has taken the lease.
            OSError: the store fails.
        """
        result, state = self._result, self._state
        for path, table in self._receipts.items():
            state.check_lease()
            if table is None:
                storage.delete(state.uri(path))
            else:
                storage.write(state.uri(path), parquet_bytes(table))
        for chunk in sorted(self._rejects):
            state.check_lease()
            one = self._found[chunk]
            state.accept_existing({"chunk": chunk, "revision": one.revision, "hash": one.hash})
        for file in sorted(self._files, key=lambda file: (file != state.uri(NOTE), file)):
            state.check_lease()
            storage.delete(file)  # the note first, so that no reader looks for files that are removed
        result.is_repaired = True
        result.is_finished = result.is_finished and state.uri("_report.json") not in self._files
        result.incomplete |= self._removed & result.chunks.keys()
        if self._rebuilds:
            self._use(self._plan.run().chunks)

    def _use(self, chunks: dict[str, plan.PlannedChunk]) -> None:
        """Replace the plan in the result."""
        result = self._result
        result.pairs = sum(one.pairs for one in chunks.values())
        result.chunks = {
            name: PlannedChunk(name, *one[:2], one.footer_hash, one.part, False) for name, one in chunks.items()
        }
        result.findings = {name: found for name, found in self._found.items() if name in chunks}
        result.incomplete = {
            name
            for name, one in chunks.items()
            if name not in self._committed or self._committed[name].revision != one.revision
        }

    def _stays(self, problem: Problem, planned: Collection[str], kept: Collection[str]) -> bool:
        """Return whether a problem still exists after the repair."""
        if problem.check == "unknown" or problem.chunk in kept:
            return problem.check in DATA_CHECKS or problem.check == "unknown"
        if problem.check == "plan":
            if problem.chunk:
                return problem.chunk in self._committed and problem.chunk not in planned
            if problem.file == self._state.uri("_plan"):
                return True
            return not self._rebuilds and problem.file not in map(self._state.uri, self._receipts)
        if problem.is_intact:
            return problem.check != "footer" or not self._rebuilds or problem.chunk not in planned
        return False


def _kept_chunks(result: VerifyResult) -> set[str]:
    """Return the damaged chunks that must not be removed, because the cause is probably not in their files."""
    damaged, reencoded = result.damaged, result.reencoded
    found: dict[str, ChunkFindings] = result.findings | result.unplanned
    if len(found) > 1 and damaged >= found.keys():
        return set(found)
    if reencoded and reencoded.rows == len(reencoded.problems) > 1:
        others = [one for one in result.problems if one.check in DATA_CHECKS and one.check != "reencode"]
        return damaged - {one.chunk for one in others if not one.is_intact}
    return set()
