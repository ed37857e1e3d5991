"""The checks of a whole output: plan, unexpected files, receipts, report. Needs no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any

from inpaint_encode.errors import JobFailed
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output import version_1
from inpaint_encode.output.index import index_problems
from inpaint_encode.output.notes import DamagedNote, parse_report, read_parsed
from inpaint_encode.output.parquet import read_parquet
from inpaint_encode.output.plan import split_chunk_name
from inpaint_encode.output.plan_check import CheckedPlan, check_plan, find_extra_columns
from inpaint_encode.output.state import FOLDERS, Inventory, OutputState
from inpaint_encode.schema import RECEIPT
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently

from .findings import ChunkFindings, PlannedChunk, Problem, VerifyResult

_NOT_PLANNED = "belongs to a chunk that is not in the plan, so a part of the plan was lost"


def check_output(
    state: OutputState,
    inventory: Inventory,
    metadata: RowMetadata,
    check_chunks: Callable[[list[PlannedChunk]], Iterable[ChunkFindings]],
    *,
    is_old: bool = False,
) -> tuple[VerifyResult, CheckedPlan]:
    """Check an output; rows are not encoded again. Return the result and the plan.

    Args:
        state: of the output; nothing is written.
        inventory: its files.
        metadata: of the rows, by ``_job.json``.
        check_chunks: yields the findings of the chunks.
        is_old: whether version 0.1 wrote the output.

    Raises:
        JobFailed: a file cannot be read, though it is not damaged.
    """
    result = VerifyResult(state.output, is_old=is_old)
    if is_old:
        checked = version_1.check_plan(state, inventory.plan)
    else:
        checked = check_plan(state, inventory.plan, find_extra_columns(state, inventory))
    _add_plan(checked, state, inventory, result)
    result.problems += _unexpected_files(state, inventory, result)
    unplanned = {
        chunk: PlannedChunk(chunk, -1, "", "", "", chunk in inventory.rejects_versions)
        for chunk in inventory.versions.keys() - result.chunks.keys()
    }
    existing = [(result.chunks | unplanned)[chunk] for chunk in sorted(inventory.versions)]
    result.incomplete = set(result.chunks)
    for findings in check_chunks(existing) if existing else ():
        result.problems += findings.problems
        if findings.chunk in unplanned:
            result.unplanned[findings.chunk] = findings
            continue
        result.findings[findings.chunk] = findings
        if findings.revision is None or findings.revision >= result.chunks[findings.chunk].revision:
            result.incomplete.remove(findings.chunk)
    result.problems += _receipts_problems(state, inventory, result)
    found = (result.findings | result.unplanned).items()
    rows = {chunk: one.encoded for chunk, one in found if one.revision is not None}
    for path, sentence in index_problems(state, inventory, rows):
        result.problems.append(Problem("index", state.uri(path), sentence))
    result.problems += _report_problems(state, result)
    if not is_old:
        _drop_planned_since(result, checked, state, inventory)
    return result, checked


def _drop_planned_since(result: VerifyResult, checked: CheckedPlan, state: OutputState, inventory: Inventory) -> None:
    """Drop problems of chunks that a running job has planned since the output was listed."""

    @cache
    def is_new(unit: int, revision: int) -> bool:
        path = checked.log.marker_path(unit, revision)
        if path in inventory.plan:
            return False
        try:
            return bool(storage.stat(state.uri(path)))
        except FileNotFoundError:
            return False

    found = result.findings | result.unplanned

    def is_current(problem: Problem) -> bool:
        if problem.check not in ("plan", "footer") or not problem.chunk:
            return True
        unit = split_chunk_name(problem.chunk)[0]
        revision = (found[problem.chunk].revision if problem.chunk in found else None) or 0
        return not (is_new(unit, 0) or is_new(unit, revision))

    result.problems = [problem for problem in result.problems if is_current(problem)]


def _add_plan(checked: CheckedPlan, state: OutputState, inventory: Inventory, result: VerifyResult) -> None:
    result.problems += [Problem("plan", state.uri(path), sentence) for path, sentence in checked.problems]
    for name, one in checked.log.chunks.items():
        part = "" if one.part in checked.lost_parts else one.part
        has_rejects = name in inventory.rejects_versions
        result.chunks[name] = PlannedChunk(name, one.revision, one.hash, one.footer_hash, part, has_rejects)
    result.pairs = checked.keys.count
    if checked.keys.repeated:
        sentence = f"has {checked.keys.repeated:,} repeated keys, the first {checked.keys.first_repeated}"
        result.problems.append(Problem("plan", state.uri("_plan"), sentence))
    if not (result.chunks or checked.log.units or result.problems or inventory.versions):
        sentence = "has no complete plan; run the same encode command again"
        result.problems.append(Problem("plan", state.uri("_plan"), sentence))


def _unexpected_files(state: OutputState, inventory: Inventory, result: VerifyResult) -> Iterator[Problem]:
    for path in inventory.replaced_files:
        yield Problem("orphan", state.uri(path), f"belongs to an overwritten job; this output's job is {state.job}")
    for path in inventory.unknown_files:
        yield Problem(
            "unknown",
            state.uri(path),
            "was not written by encode, but programs that read the folder would read it; move it away",
        )
    folders = {state.output, *map(state.uri, FOLDERS)}  # other jobs may run in folders below the output
    for uri in storage.temporary_files(state.output):
        if uri.rpartition("/")[0] not in folders:
            continue
        yield Problem("temporary", uri, "is a temporary file, left by a killed run or in use by a running one")
    for chunks, uri_of in ((inventory.versions, state.data_uri), (inventory.rejects_versions, state.rejects_uri)):
        for chunk in sorted(chunks.keys() - result.chunks.keys()):
            yield Problem("plan", uri_of(chunk), _NOT_PLANNED, chunk)


def _receipts_problems(state: OutputState, inventory: Inventory, result: VerifyResult) -> Iterator[Problem]:
    """Compare the receipts with the data files: a resumed run reads the counts from receipts.

    If a chunk and revision has several, the last counts. File names begin with the start time of their run.
    """
    last: dict[tuple[str, int], tuple[str, str, int, dict[str, int]]] = {}
    for path, data in zip(inventory.receipts, map_concurrently(state.read, inventory.receipts), strict=True):
        uri = state.uri(path)
        try:
            receipts = parse_receipts(uri, data, is_old=result.is_old)
        except JobFailed as error:
            yield Problem("receipts", uri, f"cannot be read ({error.__cause__})")
            continue
        last |= {
            (one["chunk"], one["revision"]): (uri, one["hash"], one["encoded"], dict(one["errors"])) for one in receipts
        }
        if lost := sorted({one["chunk"] for one in receipts} - result.chunks.keys()):
            yield Problem("plan", uri, f"has {len(lost):,} chunks, the first {lost[0]}; each {_NOT_PLANNED}", lost[0])
    damaged = result.damaged
    for (chunk, revision), (uri, pairs_hash, encoded, errors) in sorted(last.items()):
        planned, found = result.chunks.get(chunk), result.findings.get(chunk)
        if planned is None or revision != planned.revision:
            continue
        if pairs_hash not in (planned.hash, planned.footer_hash or planned.hash):
            continue  # a run does not use it
        if found is None:
            yield Problem("file", state.data_uri(chunk), "was written earlier but is missing now", chunk)
        elif chunk not in damaged and (encoded, errors) != (found.encoded, found.errors):
            counts = f"{encoded:,} rows and {sum(errors.values()):,} rejects"
            file_counts = f"{found.encoded:,} and {sum(found.errors.values()):,}"
            yield Problem("receipts", uri, f"has {counts} for chunk {chunk}, but its file has {file_counts}", chunk)


def parse_receipts(uri: str, data: bytes, *, is_old: bool = False) -> list[dict[str, Any]]:
    """Return the rows of a file of receipts.

    Raises:
        JobFailed: it is damaged.
    """
    if is_old:
        return version_1.parse_receipts(uri, data)
    rows: list[dict[str, Any]] = read_parquet(uri, data, RECEIPT).to_pylist()
    return rows


def _report_problems(state: OutputState, result: VerifyResult) -> Iterator[Problem]:
    """Check that the report's counts add up, and that those of a finished job are the counts of the data files."""
    uri = state.uri("_report.json")
    try:
        report = read_parsed(uri, parse_report, "run the same encode command again").value
        left = report.get("pairs_left", 0)  # of a run with --limit
        if not left and report["pairs"] < result.pairs:
            result.is_finished = result.is_old
        expected: dict[str, Any] = {"pairs": report["encoded"] + report["rejected"] + left}
        certain = result.is_finished and not (left or result.plan_is_damaged or result.incomplete or result.damaged)
        if certain:
            rejects = result.rejects
            expected = {"pairs": result.pairs, "encoded": result.encoded, "rejected": rejects.total()}
            expected["rejected_by_error"] = dict(rejects)
        wrong = [f"{name} {report[name]}, not {value}" for name, value in expected.items() if report[name] != value]
    except FileNotFoundError:
        result.is_finished = result.is_old
    except DamagedNote as error:
        yield Problem("report", uri, f"cannot be read ({error.reason})")
    else:
        if wrong:
            yield Problem("report", uri, f"has {', '.join(wrong)}")
