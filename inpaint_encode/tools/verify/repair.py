"""Repairs an output: rebuilds its plan, and removes what is damaged and what can be made again.

A file is removed only if its name is one that the product makes, and if something proves that it may go. This module
removes:

==========================  ====================================================================================
file                        proof
==========================  ====================================================================================
data file                   it cannot be read, or its rows contradict its own footer or the plan with the hash in
                            its footer. The next run makes it again: its pairs are planned, or the source is read
                            again. Not if all files fail, and not if the settings in _job.json are others.
rejects file                a copy of the rejects in the footer of its data file, which is removed or missing
receipts, index, report     caches of the data files; the next run writes them again
file of another job         _job.json lists the job as overwritten, and the present job has an intact data file
temporary file              its name, in a folder in which runs write; the lease is held
==========================  ====================================================================================

A data file of a chunk or unit that is not planned is damage of the plan. If it can be read, it is kept, and the plan is
rebuilt from it. Other commands remove:

==========================  ====================================================================================
file                        proof
==========================  ====================================================================================
encode --overwrite          files of the jobs that _job.json names or, if it is damaged, that have a plan here;
                            _report.json and _index.json, which describe them
encode, at the end          parts that no marker names although their revision has one; files of overwritten jobs;
                            files of an older index; rejects files whose data file has no rejects
export                      files that a record in _export/ names, with names that the format makes; with
                            --overwrite also those that have the name of a data file with a damaged record
lease                       its token is that of this process
doctor                      the probe that it has just written, with a random name
==========================  ====================================================================================
"""

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
        kept, moved = _kept_chunks(result), _chunks_of_lost_names(result)
        self._removed = _damaged_chunks(result) - kept - moved
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
        self._files = dict(self._find_files(planned))
        result.repairs = [line.replace(f"{state.output}/", "") for line in self._describe()]
        if kept:
            result.repairs.append(
                f"keep {len(kept):,} damaged data files: if everything fails, the cause is probably elsewhere "
                "(_job.json, this machine or this version of inpaint-encode); to replace the files anyway, run encode "
                "with --overwrite"
            )
        for chunk in sorted(moved):
            uri = state.data_uri(chunk).replace(f"{state.output}/", "")
            result.repairs.append(f"keep {uri}: nothing proves that its rows can be made again; move it away yourself")
        if any(one.check == "orphan" for one in result.problems) and not self._has_data:
            result.repairs.append(
                "keep the files of other jobs: the job in _job.json has no data file, so it may have been edited; "
                "restore it, or run the same encode command, which removes them"
            )
        result.unrepaired = [one for one in result.problems if self._stays(one, planned, moved)]
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

    def _find_files(self, planned: Collection[str]) -> Iterator[tuple[str, str]]:
        """Yield the files to remove, and why each may be removed."""
        result, state, inventory = self._result, self._state, self._inventory
        if (self._removed or self._rebuilds) and result.is_finished:
            yield state.uri("_report.json"), "the next run writes it again"
        has_problem = any(one.check == "index" for one in result.problems)
        if (self._removed or has_problem) and read_note(state.output):
            yield state.uri(NOTE), "the next run writes it again"
        for chunk in sorted(self._removed):
            if chunk in inventory.versions:
                sentences = [one.sentence for one in result.problems if one.chunk == chunk and one.check in DATA_CHECKS]
                yield state.data_uri(chunk), sentences[0]
            if chunk in inventory.rejects_versions:
                yield state.rejects_uri(chunk), "its data file is removed, or does not exist"
        for chunk in sorted(inventory.rejects_versions.keys() - planned - inventory.versions.keys()):
            yield state.rejects_uri(chunk), "its chunk is not planned and has no data file"
        for one in result.problems:
            if one.check in _FILE_CHECKS and (one.check != "orphan" or self._has_data):
                yield one.file, one.sentence

    @property
    def _has_data(self) -> bool:
        """Whether the present job has an intact data file that is planned; else _job.json may have been edited."""
        return not self._committed.keys().isdisjoint(self._result.findings)

    def _describe(self) -> Iterator[str]:
        """Yield a sentence for each file, in the order in which `run` changes them."""
        for path, table in self._receipts.items():
            if table is None:
                yield f"remove {path}: it cannot be read"
            else:
                yield f"remove receipts from {path}; {table.num_rows:,} are left"
        for chunk in sorted(self._rejects):
            yield f"write {self._state.rejects_uri(chunk)} as the footer of its data file says"
        for file, reason in sorted(self._files.items()):
            yield f"remove {file}: {reason}"
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
                state.delete([path])
            else:
                storage.write(state.uri(path), parquet_bytes(table))
        for chunk in sorted(self._rejects):
            state.check_lease()
            one = self._found[chunk]
            state.accept_existing({"chunk": chunk, "revision": one.revision, "hash": one.hash})
        for file in sorted(self._files, key=lambda file: (file != state.uri(NOTE), file)):
            state.check_lease()
            # The note is first, so that no reader looks for files that are removed.
            state.delete([file.removeprefix(f"{state.output}/")])
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

    def _stays(self, problem: Problem, planned: Collection[str], moved: Collection[str]) -> bool:
        """Return whether a problem still exists after the repair; ``moved`` chunks are kept and not planned."""
        if problem.check == "unknown" or (problem.check == "orphan" and not self._has_data):
            return True
        if problem.check in DATA_CHECKS and not problem.is_intact:
            return problem.chunk not in self._removed
        if problem.check == "plan":
            if problem.chunk:
                return problem.chunk in moved or (problem.chunk in self._committed and problem.chunk not in planned)
            if problem.file == self._state.uri("_plan") or problem.sentence.endswith("move it away yourself"):
                return True
            return not self._rebuilds and problem.file not in map(self._state.uri, self._receipts)
        if problem.is_intact:
            return problem.check != "footer" or not self._rebuilds or problem.chunk not in planned
        return False


def _damaged_chunks(result: VerifyResult) -> set[str]:
    """Return the chunks whose data file is damaged. Rows that differ under other settings prove no damage."""
    others = {one.chunk for one in result.problems if one.check == "settings"}
    damages = (one for one in result.problems if one.check in DATA_CHECKS and not one.is_intact)
    return {one.chunk for one in damages if one.check != "reencode" or one.chunk not in others}


def _chunks_of_lost_names(result: VerifyResult) -> set[str]:
    """Return the unplanned chunks whose file has rows of a further chunk, which nothing else has.

    Somebody renamed such a file. If the further chunk is planned or has its own file, the rows can be made again.
    """
    own = {chunk for chunk, one in (result.findings | result.unplanned).items() if one.footer_chunk == chunk}
    known = own | result.chunks.keys()
    return {
        chunk
        for chunk, one in result.unplanned.items()
        if one.footer_chunk not in ("", chunk) and one.footer_chunk not in known
    }


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
