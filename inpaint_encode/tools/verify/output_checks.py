"""The checks of a whole output: the plan, unexpected files, receipts and report. Needs no Ray."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inpaint_encode.errors import JobFailed
from inpaint_encode.output.plan import newest
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.schema import PAIRS
from inpaint_encode.stores import storage

from .chunk_checks import PlannedChunk
from .files import Unreadable, read_receipts, translate_errors
from .findings import ChunkFindings, Problem, VerifyResult

__all__ = ["check_output"]

_THREADS = 16

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
    plan = _read_plan(state, inventory.parts)
    result = VerifyResult(state.output, len(plan.chunks), plan.pairs, problems=[*plan.problems])
    result.problems += _unexpected_files(state, inventory, plan)
    existing = [
        PlannedChunk(chunk, generation, part, has_rejects=chunk in inventory.rejects)
        for chunk, (generation, part) in sorted(plan.chunks.items())
        if chunk in inventory.chunks
    ]
    result.incomplete = set(plan.chunks)
    for findings in check_chunks(existing) if existing else ():
        result.findings[findings.chunk] = findings
        result.problems += findings.problems
        if findings.generation in (None, plan.chunks[findings.chunk][0]):
            result.incomplete.remove(findings.chunk)
    result.problems += _receipts_problems(state, inventory, plan, result)
    result.problems += _report_problems(state, plan, result)
    return result


class _Plan(NamedTuple):
    """The newest generations of a plan."""

    chunks: dict[int, tuple[int, str]]
    """Each chunk's generation and the URI of its plan file."""
    pairs: int
    problems: list[Problem]


def _read_plan(state: OutputState, parts: list[str]) -> _Plan:
    """Read only chunks and keys, so that millions of pairs fit into memory."""
    if not parts:
        sentence = "has no complete plan; run the same encode command again"
        return _Plan({}, 0, [Problem("plan", state.uri("_plan"), sentence)])
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(_read_part, map(state.uri, parts)))
    problems = [part for part in read if isinstance(part, Problem)]
    if not problems:
        problems += _marker_problems(state, dict(zip(parts, read, strict=True)))
    tables = [_KEYS.empty_table()]
    for number, (part, table) in enumerate(zip(parts, read, strict=True)):
        if isinstance(table, pa.Table):
            generation = pa.repeat(pa.scalar(int(part.split("-")[1]), pa.int32()), table.num_rows)
            numbers = pa.repeat(pa.scalar(number, pa.int32()), table.num_rows)
            tables.append(pa.table([*table.columns, generation, numbers], schema=_KEYS))
    pairs = newest(pa.concat_tables(tables))
    first = pairs.group_by("chunk").aggregate([("generation", "min"), ("part", "max")])
    rows = zip(*(first[name].to_pylist() for name in ("chunk", "generation_min", "part_max")), strict=True)
    chunks = {chunk: (generation, state.uri(parts[part])) for chunk, generation, part in rows}
    keys = pairs["key"].drop_null()  # null: a chunk that has lost all its pairs
    if repeated := len(keys) - pc.count_distinct(keys).as_py():
        counts = keys.value_counts()
        first_key = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0]
        problems.append(Problem("plan", state.uri("_plan"), f"has {repeated:,} repeated keys, the first {first_key}"))
    return _Plan(chunks, len(keys), problems)


def _read_part(uri: str) -> pa.Table | Problem:
    try:
        data = storage.read(uri).data
        with translate_errors():
            return pq.read_table(pa.BufferReader(data), columns=["chunk", "key"], schema=PAIRS)
    except Unreadable as error:
        return Problem("plan", uri, f"cannot be read, so that its chunks are not checked ({error})")
    except OSError as error:
        raise JobFailed(f"{uri} cannot be read: {error}") from error


def _marker_problems(state: OutputState, tables: Mapping[str, pa.Table]) -> Iterator[Problem]:
    """Check the ``.json`` of each generation, which has the number of rows of its parts."""
    for stem in sorted({part.rpartition("-")[0] for part in tables}):
        uri = state.uri(f"{stem}.json")
        try:
            expected = json.loads(storage.read(uri).data)["pairs"]
        except (ValueError, KeyError, FileNotFoundError) as error:
            yield Problem("plan", uri, f"cannot be read ({error})")
            continue
        found = sum(table.num_rows for part, table in tables.items() if part.rpartition("-")[0] == stem)
        if found != expected:
            yield Problem("plan", uri, f"has {expected:,} pairs, but its parts have {found:,}")


def _unexpected_files(state: OutputState, inventory: Inventory, plan: _Plan) -> Iterator[Problem]:
    for path in inventory.replaced_files:
        yield Problem("orphan", state.uri(path), f"belongs to an overwritten job; this output's job is {state.job}")
    for path in inventory.unknown_files:
        yield Problem("unknown", state.uri(path), "is by another program, but readers would read it; move it away")
    for uri in storage.temporary_files(state.output):
        yield Problem("temporary", uri, "is unfinished; its run has died, unless it is running now")
    if plan.problems:
        return  # the plan may have lost chunks
    for chunks, uri_of in ((inventory.chunks, state.data_uri), (inventory.rejects, state.rejects_uri)):
        for chunk in sorted(chunks - plan.chunks.keys()):
            yield Problem("orphan", uri_of(chunk), f"belongs to chunk {chunk}, which is not planned")


def _receipts_problems(
    state: OutputState, inventory: Inventory, plan: _Plan, result: VerifyResult
) -> Iterator[Problem]:
    """Compare the receipts with the data files: a resumed run reads the counts from receipts.

    If a chunk and generation has several, the last counts. File names begin with the start time of their run.
    """
    last: dict[tuple[int, int], tuple[str, int, dict[str, int]]] = {}
    for uri in map(state.uri, inventory.receipts):
        try:
            receipts = read_receipts(uri).to_pylist()
        except Unreadable as error:
            yield Problem("receipts", uri, f"cannot be read ({error})")
            continue
        last |= {(one["chunk"], one["generation"]): (uri, one["encoded"], dict(one["errors"])) for one in receipts}
    damaged = result.damaged
    for (chunk, generation), (uri, encoded, errors) in sorted(last.items()):
        if chunk not in plan.chunks or generation != plan.chunks[chunk][0]:
            continue
        found = result.findings.get(chunk)
        if found is None:
            yield Problem("file", state.data_uri(chunk), "does not exist, but was committed", chunk)
        elif chunk not in damaged and (encoded, errors) != (found.encoded, found.errors):
            counts = f"{encoded:,} rows and {sum(errors.values()):,} rejects"
            file_counts = f"{found.encoded:,} and {sum(found.errors.values()):,}"
            yield Problem("receipts", uri, f"has {counts} for chunk {chunk}, but its file has {file_counts}", chunk)


def _report_problems(state: OutputState, plan: _Plan, result: VerifyResult) -> Iterator[Problem]:
    """Check that the report's counts add up, and that those of a finished job are the counts of the data files."""
    uri = state.uri("_report.json")
    try:
        report = json.loads(storage.read(uri).data)
        left = report.get("pairs_left", 0)  # of a run with --limit
        expected: dict[str, Any] = {"pairs": report["encoded"] + report["rejected"] + left}
        if not (left or plan.problems or result.incomplete or result.damaged):
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
