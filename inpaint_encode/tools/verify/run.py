"""Check a whole output: its plan and what is around it here, each chunk in a Ray task of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.job.cluster import joined
from inpaint_encode.job.progress import EVERY_S
from inpaint_encode.metadata import CONTRACT_VERSION, RowMetadata
from inpaint_encode.output.lease import hold
from inpaint_encode.output.plan import CHUNKS_PER_PART
from inpaint_encode.output.resume import metadata_of_job
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.schema import PAIRS
from inpaint_encode.settings import VerifyOptions
from inpaint_encode.stores import storage

from .checks import CHUNK, Found, Problem, Unreadable, check, parsing, read_receipts
from .repair import repair
from .verdict import CHECKS, Verdict

__all__ = ["findings_of", "verify_output"]

_THREADS = 16

_TASKS = 1_000
"""Chunks from which on tasks take more than one."""


class _Plan(NamedTuple):
    """What is planned, newest generations only."""

    chunks: dict[int, tuple[int, str]]
    """Each chunk's generation, and where the part of the plan is that has it."""
    pairs: int
    problems: list[Problem]


def findings_of(chunks: pa.Table, state: OutputState, metadata: RowMetadata) -> ray.data.Dataset:
    """Check each row of ``chunks``, a `checks.CHUNK`; a row of the result is a chunk's `checks.FOUND`.

    A task takes one chunk, or in large outputs some neighbours, one after the other: they share a part of the plan,
    and a task alone costs Ray about a hundredth of a second.
    """
    neighbours = min(CHUNKS_PER_PART, 1 + chunks.num_rows // _TASKS)
    return (
        ray.data.from_arrow(chunks)
        .repartition(target_num_rows_per_block=neighbours)
        .map_batches(check, fn_kwargs={"state": state, "metadata": metadata}, batch_size=1, batch_format="pyarrow")
    )


def verify_output(options: VerifyOptions, say: Callable[[str], None]) -> Verdict:
    """Check an output, and with ``--repair`` take out of it what is wrong; nothing else is written.

    Args:
        options: what to check, and whether to repair.
        say: is told, in a line, how far the work is.

    Raises:
        UsageError: there is no such output, or with ``--repair`` another run is writing to it.
        JobFailed: something could not be read, which is no damage of the output.
    """
    try:
        output = storage.normalize_uri(options.output)
    except ValueError as error:
        raise UsageError(str(error)) from None
    _read_job(output)  # else a lease would be written where no output is
    with hold(storage.join(output, "_lease.json"), say) if options.repair else nullcontext() as lease:
        job = _read_job(output)
        state = OutputState(output, job["job"], lease.token if lease else "", tuple(job["replaces"]))
        inventory = state.inventory()
        verdict = _judged(state, inventory, job, options, say)
        if lease:
            say("repairing")
            repair(verdict, state, inventory, lease)
    return verdict


def _read_job(output: str) -> dict[str, Any]:
    uri = storage.join(output, "_job.json")
    try:
        job = dict(json.loads(storage.read(uri).data))
        contract = metadata_of_job(job).contract
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{uri} cannot be read ({type(error).__name__}: {error}); every output of encode has it, and nothing can "
            "be checked without it: name the folder or prefix that was its --output"
        ) from error
    if contract != CONTRACT_VERSION:
        raise UsageError(f"{uri} says contract {contract}; this version checks contract {CONTRACT_VERSION}")
    return job


def _judged(
    state: OutputState, inventory: Inventory, job: Mapping[str, Any], options: VerifyOptions, say: Callable[[str], None]
) -> Verdict:
    plan = _read_plan(state, inventory.parts)
    verdict = Verdict(state.output, len(plan.chunks), plan.pairs, problems=[*plan.problems])
    verdict.problems += _left_over(state, inventory, plan)
    work = _work(inventory, plan)
    if work.num_rows:
        with joined(options.address):
            _check_chunks(verdict, findings_of(work, state, metadata_of_job(job)), work.num_rows, say)
    done = {chunk for chunk, found in verdict.found.items() if found.generation in (None, plan.chunks[chunk][0])}
    verdict.undone = plan.chunks.keys() - done
    verdict.problems += _receipt_problems(state, inventory, plan, verdict)
    verdict.problems += _report_problems(state, verdict)
    if options.sample:
        _encode_again(verdict, state, job, options, say)
    verdict.problems.sort(key=lambda one: (list(CHECKS).index(one.check), one.file))
    verdict.left = verdict.problems
    return verdict


def _read_plan(state: OutputState, parts: list[str]) -> _Plan:
    """Read the plan's keys and chunks and nothing else of it, so that millions of pairs fit."""
    with ThreadPoolExecutor(_THREADS) as pool:
        answers = dict(zip(parts, pool.map(_read_part, map(state.uri, parts)), strict=True))
    problems = [answer for answer in answers.values() if isinstance(answer, Problem)]
    tables = {part: answer for part, answer in answers.items() if isinstance(answer, pa.Table)}
    if not parts:
        problems.append(Problem("plan", state.uri("_plan"), "has no complete plan; run the same encode command again"))
    problems += _incomplete_generations(state, tables) if not problems else []
    chunks: dict[int, tuple[int, str]] = {}
    for part, table in tables.items():
        generation = _generation(part)
        newer = (chunk for chunk in pc.unique(table["chunk"]).to_pylist() if chunks.get(chunk, (-1,))[0] <= generation)
        chunks.update(dict.fromkeys(newer, (generation, state.uri(part))))
    keys = _current_keys(tables, chunks)
    return _Plan(chunks, len(keys), problems + _repeated_keys(state, keys))


def _generation(part: str) -> int:
    return int(part.split("-")[1])


def _read_part(uri: str) -> pa.Table | Problem:
    try:
        data = storage.read(uri).data
        with parsing():
            return pq.read_table(pa.BufferReader(data), columns=["chunk", "key"], schema=PAIRS)
    except Unreadable as error:
        return Problem("plan", uri, f"cannot be read, so that its chunks cannot be checked: {error}")
    except OSError as error:
        raise JobFailed(f"{uri} cannot be read: {error}") from error


def _incomplete_generations(state: OutputState, tables: Mapping[str, pa.Table]) -> Iterator[Problem]:
    """A generation's marker says how many rows its parts have."""
    for stem in sorted({part.rpartition("-")[0] for part in tables}):
        uri = state.uri(f"{stem}.json")
        try:
            stated = json.loads(storage.read(uri).data)["pairs"]
        except (ValueError, KeyError, FileNotFoundError) as error:
            yield Problem("plan", uri, f"cannot be read: {error}")
            continue
        there = sum(table.num_rows for part, table in tables.items() if part.rpartition("-")[0] == stem)
        if there != stated:
            yield Problem("plan", uri, f"says {stated:,} pairs, its parts have {there:,}")


def _current_keys(tables: Mapping[str, pa.Table], chunks: Mapping[int, tuple[int, str]]) -> pa.ChunkedArray:
    """The keys of each chunk's newest generation; a null stands for a chunk that has lost all its pairs."""
    current = []
    for part, table in tables.items():
        mine = [chunk for chunk in pc.unique(table["chunk"]).to_pylist() if chunks[chunk][0] == _generation(part)]
        current.append(table.filter(pc.is_in(table["chunk"], pa.array(mine, pa.int64())))["key"])
    return pa.chunked_array([piece for column in current for piece in column.chunks], pa.string()).drop_null()


def _repeated_keys(state: OutputState, keys: pa.ChunkedArray) -> list[Problem]:
    more = len(keys) - pc.count_distinct(keys).as_py()
    if not more:
        return []
    counts = keys.value_counts()
    first = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0]
    return [Problem("plan", state.uri("_plan"), f"has keys more than once: {more:,}, such as {first}")]


def _left_over(state: OutputState, inventory: Inventory, plan: _Plan) -> Iterator[Problem]:
    """What is in the output and should not be; files of no planned chunk only where the whole plan could be read."""
    for path in inventory.replaced_files:
        yield Problem("foreign", state.uri(path), f"is another job's; this output is job {state.job}'s")
    for path in inventory.unknown_files:
        yield Problem("stranger", state.uri(path), "is none of this tool's files, but readers take it for one; move it")
    for uri in storage.temporary_files(state.output):
        yield Problem("temporary", uri, "is unfinished: by a run that has died, unless one is running now")
    if plan.problems:
        return
    for chunk in sorted(inventory.chunks - plan.chunks.keys()):
        yield Problem("foreign", state.data_uri(chunk), f"is of chunk {chunk}, which is not planned")
    for chunk in sorted(inventory.rejects - plan.chunks.keys()):
        yield Problem("foreign", state.rejects_uri(chunk), f"is of chunk {chunk}, which is not planned")


def _work(inventory: Inventory, plan: _Plan) -> pa.Table:
    there = sorted(inventory.chunks & plan.chunks.keys())
    columns = [
        there,
        [plan.chunks[chunk][0] for chunk in there],
        [plan.chunks[chunk][1] for chunk in there],
        [chunk in inventory.rejects for chunk in there],
    ]
    return pa.table(columns, schema=CHUNK)


def _check_chunks(verdict: Verdict, findings: ray.data.Dataset, total: int, say: Callable[[str], None]) -> None:
    said = time.monotonic()
    say(f"checking {total:,} chunks")
    for batch in findings.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for found in map(Found.of_row, batch.to_pylist()):
            if found.fatal:
                raise JobFailed(f"{found.fatal}; that is no damage of the output")
            verdict.found[found.chunk] = found
            verdict.problems += found.problems
        if time.monotonic() - said > EVERY_S:
            said = time.monotonic()
            say(f"{len(verdict.found):,} of {total:,} chunks checked, {len(verdict.problems):,} problems")


def _receipt_problems(state: OutputState, inventory: Inventory, plan: _Plan, verdict: Verdict) -> Iterator[Problem]:
    """A resume believes the receipts, the last of each chunk and generation, without a look at the chunk.

    The name of a file of receipts begins with the time when its run began, so that the last name is the last run's.
    """
    last: dict[tuple[int, int], tuple[str, int, dict[str, int]]] = {}
    for uri in map(state.uri, inventory.receipts):
        try:
            receipts = read_receipts(uri).to_pylist()
        except Unreadable as error:
            yield Problem("receipts", uri, f"cannot be read: {error}")
            continue
        last |= {(one["chunk"], one["generation"]): (uri, one["encoded"], dict(one["errors"])) for one in receipts}
    damaged = verdict.damaged
    for (chunk, generation), (uri, encoded, errors) in sorted(last.items()):
        if chunk not in plan.chunks or generation != plan.chunks[chunk][0]:
            continue
        found = verdict.found.get(chunk)
        if found is None:
            yield Problem("file", state.data_uri(chunk), "is not there, though it was committed", chunk)
        elif chunk not in damaged and (encoded, errors) != (found.encoded, found.errors):
            stated = f"{encoded:,} rows and {sum(errors.values()):,} rejects"
            there = f"{found.encoded:,} and {sum(found.errors.values()):,}"
            yield Problem("receipts", uri, f"says that chunk {chunk} has {stated}; its file has {there}", chunk)


def _report_problems(state: OutputState, verdict: Verdict) -> Iterator[Problem]:
    """The report is of the last run that ended; it can only be held against an output where all is done."""
    if verdict.undone or verdict.damaged:
        return
    uri = state.uri("_report.json")
    rejects = verdict.rejects
    counts = {"pairs": verdict.pairs, "encoded": verdict.encoded, "rejected": rejects.total()}
    there = {**counts, "rejected_by_error": dict(rejects)}
    try:
        report = json.loads(storage.read(uri).data)
        wrong = [f"{name} {report[name]}, not {value}" for name, value in there.items() if report[name] != value]
    except FileNotFoundError:
        return
    except (ValueError, KeyError) as error:
        wrong = [f"nothing that can be read ({type(error).__name__}: {error})"]
    if wrong:
        yield Problem("report", uri, f"says {', '.join(wrong)}")


def _encode_again(
    verdict: Verdict, state: OutputState, job: Mapping[str, Any], options: VerifyOptions, say: Callable[[str], None]
) -> None:
    """Encode rows again, of those chunks that are whole."""
    from .resample import draw, encode_again  # brings torch, which takes seconds to import

    whole = verdict.found.keys() - verdict.damaged
    drawn = draw({chunk: verdict.found[chunk].encoded for chunk in whole}, options.sample, options.seed)
    say(f"encoding {sum(map(len, drawn.values())):,} rows again")
    verdict.resampled = encode_again(drawn, state, job, options.vae)
    verdict.problems += verdict.resampled.problems
