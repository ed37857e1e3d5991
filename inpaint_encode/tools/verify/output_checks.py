"""The checks of a whole output (plan, unexpected files, receipts, report), and its repair. Needs no Ray."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import JobFailed
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.output.plan import newest
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.schema import PAIRS, RECEIPT
from inpaint_encode.stores import storage
from inpaint_encode.tools import pluralize

from .chunk_checks import Unreadable, read_table
from .findings import DATA_CHECKS, ChunkFindings, PlannedChunk, Problem, VerifyResult

_THREADS = 16

_FILE_CHECKS = frozenset({"orphan", "temporary", "report"})
"""Checks that are repaired by removing the file."""

_NOT_REPAIRED = frozenset({"plan", "unknown"})

_KEYS = pa.schema([PAIRS.field("chunk"), PAIRS.field("key"), ("generation", pa.int32()), ("part", pa.int32())])
"""Keys of a plan; ``part`` is the index of the plan file."""


def check_output(
    state: OutputState, inventory: Inventory, check_chunks: Callable[[list[PlannedChunk]], Iterable[ChunkFindings]]
) -> VerifyResult:
    """Check an output; rows are not encoded again.

    Args:
        state: of the output; nothing is written.
        inventory: its files.
        check_chunks: yields the findings of the chunks.

    Raises:
        JobFailed: a file cannot be read, though it is not damaged.
    """
    result = VerifyResult(state.output)
    _read_plan(state, inventory, result)
    result.problems += _unexpected_files(state, inventory, result)
    existing = [result.chunks[chunk] for chunk in sorted(inventory.chunks & result.chunks.keys())]
    result.incomplete = set(result.chunks)
    for findings in check_chunks(existing) if existing else ():
        result.findings[findings.chunk] = findings
        result.problems += findings.problems
        if findings.generation in (None, result.chunks[findings.chunk].generation):
            result.incomplete.remove(findings.chunk)
    result.problems += _receipts_problems(state, inventory, result)
    result.problems += _report_problems(state, result)
    return result


def _read_plan(state: OutputState, inventory: Inventory, result: VerifyResult) -> None:
    """Add the plan to ``result``. Only chunks and keys are read, so that millions of pairs fit into memory."""
    parts = inventory.parts
    if not parts:
        sentence = "has no complete plan; run the same encode command again"
        result.problems.append(Problem("plan", state.uri("_plan"), sentence))
        return
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(_read_part, map(state.uri, parts)))
    tables, rows_of_generations = [_KEYS.empty_table()], Counter[str]()
    for number, (part, table) in enumerate(zip(parts, read, strict=True)):
        if isinstance(table, Problem):
            result.problems.append(table)
            continue
        generation = pa.repeat(pa.scalar(int(part.split("-")[1]), pa.int32()), table.num_rows)
        numbers = pa.repeat(pa.scalar(number, pa.int32()), table.num_rows)
        tables.append(pa.table([*table.columns, generation, numbers], schema=_KEYS))
        rows_of_generations[part.rpartition("-")[0]] += table.num_rows
    if not result.problems:
        result.problems += _marker_problems(state, rows_of_generations)
    pairs = newest(pa.concat_tables(tables))
    first = pairs.group_by("chunk").aggregate([("generation", "min"), ("part", "max")])
    rows = zip(*(first[name].to_pylist() for name in ("chunk", "generation_min", "part_max")), strict=True)
    for chunk, generation, part in rows:
        result.chunks[chunk] = PlannedChunk(chunk, generation, state.uri(parts[part]), chunk in inventory.rejects)
    keys = pairs["key"].drop_null()  # null: a chunk that has lost all its pairs
    result.pairs = len(keys)
    if repeated := len(keys) - pc.count_distinct(keys).as_py():
        counts = keys.value_counts()
        first_key = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0]
        sentence = f"has {repeated:,} repeated keys, the first {first_key}"
        result.problems.append(Problem("plan", state.uri("_plan"), sentence))


def _read_part(uri: str) -> pa.Table | Problem:
    try:
        return read_table(storage.read(uri).data, PAIRS, ["chunk", "key"])
    except Unreadable as error:
        return Problem("plan", uri, f"cannot be read, so its chunks are not checked ({error})")
    except OSError as error:
        raise JobFailed(f"{uri} cannot be read: {error}") from error


def _marker_problems(state: OutputState, rows: Mapping[str, int]) -> Iterator[Problem]:
    """Check the ``.json`` of each generation, which has the number of rows of its parts."""
    for stem, found in sorted(rows.items()):
        uri = state.uri(f"{stem}.json")
        try:
            expected = json.loads(storage.read(uri).data)["pairs"]
        except (ValueError, KeyError, FileNotFoundError) as error:
            yield Problem("plan", uri, f"cannot be read ({error})")
            continue
        if found != expected:
            yield Problem("plan", uri, f"has {expected:,} pairs, but its Parquet files have {found:,}")


def _unexpected_files(state: OutputState, inventory: Inventory, result: VerifyResult) -> Iterator[Problem]:
    for path in inventory.replaced_files:
        yield Problem("orphan", state.uri(path), f"belongs to an overwritten job; this output's job is {state.job}")
    for path in inventory.unknown_files:
        yield Problem(
            "unknown",
            state.uri(path),
            "was not written by encode, but programs that read the folder would read it; move it away",
        )
    for uri in storage.temporary_files(state.output):
        yield Problem("temporary", uri, "is a temporary file, left by a killed run or in use by a running one")
    if result.plan_is_damaged:
        return  # the plan may have lost chunks
    for chunks, uri_of in ((inventory.chunks, state.data_uri), (inventory.rejects, state.rejects_uri)):
        for chunk in sorted(chunks - result.chunks.keys()):
            yield Problem("orphan", uri_of(chunk), f"belongs to chunk {chunk}, which is not planned")


def _receipts_problems(state: OutputState, inventory: Inventory, result: VerifyResult) -> Iterator[Problem]:
    """Compare the receipts with the data files: a resumed run reads the counts from receipts.

    If a chunk and generation has several, the last counts. File names begin with the start time of their run.
    """
    last: dict[tuple[int, int], tuple[str, int, dict[str, int]]] = {}
    for uri in map(state.uri, inventory.receipts):
        try:
            receipts = read_table(storage.read(uri).data, RECEIPT).to_pylist()
        except Unreadable as error:
            yield Problem("receipts", uri, f"cannot be read ({error})")
            continue
        last |= {(one["chunk"], one["generation"]): (uri, one["encoded"], dict(one["errors"])) for one in receipts}
    damaged = result.damaged
    for (chunk, generation), (uri, encoded, errors) in sorted(last.items()):
        if chunk not in result.chunks or generation != result.chunks[chunk].generation:
            continue
        found = result.findings.get(chunk)
        if found is None:
            yield Problem("file", state.data_uri(chunk), "was written earlier but is missing now", chunk)
        elif chunk not in damaged and (encoded, errors) != (found.encoded, found.errors):
            counts = f"{encoded:,} rows and {sum(errors.values()):,} rejects"
            file_counts = f"{found.encoded:,} and {sum(found.errors.values()):,}"
            yield Problem("receipts", uri, f"has {counts} for chunk {chunk}, but its file has {file_counts}", chunk)


def _report_problems(state: OutputState, result: VerifyResult) -> Iterator[Problem]:
    """Check that the report's counts add up, and that those of a finished job are the counts of the data files."""
    uri = state.uri("_report.json")
    try:
        report = json.loads(storage.read(uri).data)
        left = report.get("pairs_left", 0)  # of a run with --limit
        expected: dict[str, Any] = {"pairs": report["encoded"] + report["rejected"] + left}
        if not (left or result.plan_is_damaged or result.incomplete or result.damaged):
            rejects = result.rejects
            expected = {"pairs": result.pairs, "encoded": result.encoded, "rejected": rejects.total()}
            expected["rejected_by_error"] = dict(rejects)
        wrong = [f"{name} {report[name]}, not {value}" for name, value in expected.items() if report[name] != value]
    except FileNotFoundError:
        return
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        yield Problem("report", uri, f"cannot be read ({type(error).__name__}: {error})")
    else:
        if wrong:
            yield Problem("report", uri, f"has {', '.join(wrong)}")


def repair(result: VerifyResult, state: OutputState, inventory: Inventory) -> None:
    """Remove damaged and unexpected files, and record in ``result`` what was done and what remains.

    The receipts of a damaged chunk are removed first, so that no later run counts it as committed; then its data file
    and its rejects file. Unknown files and a damaged plan are not changed. If the plan is damaged, or all data files
    are, or all rows that were encoded again differ, no data file is removed: the cause is probably elsewhere.

    Raises:
        JobFailed: another run has taken the lease.
    """
    kept = _kept_chunks(result)
    removed = result.damaged - kept
    receipts, rejects = (
        {one.chunk for one in result.problems if one.check == check and one.chunk >= 0}
        for check in ("receipts", "rejects")
    )
    _remove_receipts(state, inventory.receipts, removed | receipts)
    rejects -= removed
    for chunk in sorted(rejects):
        state.check_lease()
        state.accept_existing({"chunk": chunk, "generation": result.findings[chunk].generation})
    files = {problem.file for problem in result.problems if problem.check in _FILE_CHECKS}
    of_chunks = [uri_of(chunk) for chunk in sorted(removed) for uri_of in (state.data_uri, state.rejects_uri)]
    for file in [*of_chunks, *sorted(files | ({state.uri("_report.json")} if removed else set()))]:
        state.check_lease()
        storage.delete(file)
    result.incomplete |= removed
    result.unrepaired = [
        one for one in result.problems if one.check in _NOT_REPAIRED or (one.check in DATA_CHECKS and one.chunk in kept)
    ]
    advice = "; run the same encode command again to re-encode them" if removed else ""
    result.repairs = [
        f"{pluralize(len(removed), 'damaged chunk')} removed{advice}",
        f"{pluralize(len(rejects), 'rejects file')} rewritten from the data files",
        f"{pluralize(len(files), 'other file')} removed",
    ]
    if kept:
        result.repairs.append(
            f"{pluralize(len(kept), 'damaged data file')} kept: if the plan is damaged or everything fails, the "
            "cause is probably elsewhere (the plan, _job.json, this machine or this version of inpaint-encode); to "
            "replace the files anyway, run encode with --overwrite"
        )


def _kept_chunks(result: VerifyResult) -> set[int]:
    """Return the damaged chunks that must not be removed, because the cause is probably not in their files."""
    damaged, reencoded = result.damaged, result.reencoded
    if result.plan_is_damaged:
        return damaged
    if len(result.findings) > 1 and damaged >= result.findings.keys():
        return set(result.findings)
    if reencoded and reencoded.rows == len(reencoded.problems) > 1:
        return damaged - {one.chunk for one in result.problems if one.check in DATA_CHECKS and one.check != "reencode"}
    return set()


def _remove_receipts(state: OutputState, paths: list[str], chunks: set[int]) -> None:
    """Remove the receipts of ``chunks``, and files of receipts that cannot be read."""
    for uri in map(state.uri, paths):
        try:
            table = read_table(storage.read(uri).data, RECEIPT)
        except Unreadable:
            state.check_lease()
            storage.delete(uri)
            continue
        kept = table.filter(pc.invert(pc.is_in(table["chunk"], pa.array(sorted(chunks), pa.int64()))))
        if kept.num_rows < table.num_rows:
            state.check_lease()
            storage.write(uri, parquet_bytes(kept))
