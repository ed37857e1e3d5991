"""Verify a whole output: each chunk in a Ray task, the rest in this process."""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyarrow as pa
import ray.data

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.job.cluster import connect_ray
from inpaint_encode.job.progress import EVERY_S
from inpaint_encode.metadata import CONTRACT_VERSION, RowMetadata
from inpaint_encode.output.notes import RESTORE_JOB, DamagedNote, metadata_of_job, parse_job, read_parsed
from inpaint_encode.output.plan import CHUNKS_PER_PART
from inpaint_encode.output.resume import LAYOUT
from inpaint_encode.output.shards import hold_output
from inpaint_encode.output.state import OutputState
from inpaint_encode.settings import RunOptions, VerifyOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.inspect.summary import normalize_output_uri
from inpaint_encode.tools.recorded import check_named

from .chunk_checks import check_chunk
from .findings import CHECKS, ChunkFindings, PlannedChunk, VerifyResult
from .output_checks import check_output
from .repair import Repair

_SINGLE_CHUNK_TASKS = 1_000
"""Chunks up to which each has its own task."""


def verify_output(options: VerifyOptions, on_status: Callable[[str], None]) -> VerifyResult:
    """Check an output, and with ``--repair`` repair it; nothing else is written.

    Args:
        options: of the command.
        on_status: called with a line about the progress.

    Raises:
        UsageError: the output does not exist; or with ``--repair`` version 0.1 wrote it, or another run writes to it.
        JobFailed: a file cannot be read, though it is not damaged.
    """
    output = normalize_output_uri(options.output)
    is_old = _read_job(output).get("layout", 1) == 1  # before the lease, which would be written where no output is
    if options.repair and is_old:
        raise UsageError(
            f"{output} was written by version 0.1 of inpaint-encode, whose outputs this version checks but does not "
            "repair; leave out --repair, or repair it with the version that wrote it"
        )
    writes = options.repair and not options.dry_run
    with hold_output(output, RunOptions(), on_status) if writes else nullcontext() as lease:
        job = _read_job(output)
        if options.sample:
            check_named(output, job, options.reading, options.vae)
        state = OutputState(output, job["job"], lease.token if lease else "", tuple(job["replaces"]))
        inventory, metadata = state.inventory(), metadata_of_job(job)
        check_chunks = partial(
            _check_on_ray, state=state, metadata=metadata, address=options.address, on_status=on_status
        )
        result, checked = check_output(state, inventory, metadata, check_chunks, is_old=is_old)
        if options.sample:
            from .reencode import draw_rows, reencode_rows  # imports torch, which takes seconds

            intact = sorted(result.findings.keys() - result.damaged)
            rows = draw_rows({chunk: result.findings[chunk].encoded for chunk in intact}, options.sample, options.seed)
            on_status(f"encoding {sum(map(len, rows.values())):,} rows again")
            result.reencoded = reencode_rows(rows, state, job, options.vae, options.reading)
            result.problems += result.reencoded.problems
        order = list(CHECKS)
        result.problems.sort(key=lambda problem: (order.index(problem.check), problem.file))
        if options.repair:
            repair = Repair(result, checked, state, inventory)
            for line in result.repairs or () if lease else ():
                on_status(f"repair: {line}")
            if lease:
                repair.run()
    return result


def _read_job(output: str) -> dict[str, Any]:
    uri, where = storage.join(output, "_job.json"), "give the folder or prefix that was encode's --output"
    try:
        job = read_parsed(uri, parse_job, RESTORE_JOB).value
    except DamagedNote as error:
        raise UsageError(str(error)) from error
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{uri} does not exist; {where}") from None
    contract, layout = metadata_of_job(job).contract, job.get("layout", 1)
    if contract != CONTRACT_VERSION:
        raise UsageError(
            f"{uri} was written with version {contract} of the transform, but this inpaint-encode has version "
            f"{CONTRACT_VERSION}; verify it with the inpaint-encode that wrote it"
        )
    if layout not in (1, LAYOUT):
        raise UsageError(f"{uri} was written by a newer version of inpaint-encode; verify it with that version")
    return job


def _check_on_ray(
    chunks: list[PlannedChunk],
    state: OutputState,
    metadata: RowMetadata,
    address: str,
    on_status: Callable[[str], None],
) -> Iterator[ChunkFindings]:
    """Yield the findings of each chunk when a Ray task has checked it.

    A task checks one chunk, or in large outputs some neighbors: they share a plan file, and each task costs Ray about
    a hundredth of a second.
    """
    reported, checked, problems, total = time.monotonic(), 0, 0, len(chunks)
    on_status(f"checking {total:,} chunks")
    with connect_ray(address):
        findings = (
            ray.data.from_arrow(pa.Table.from_pylist([chunk._asdict() for chunk in chunks]))
            .repartition(target_num_rows_per_block=min(CHUNKS_PER_PART, 1 + total // _SINGLE_CHUNK_TASKS))
            .map_batches(_check_batch, fn_args=(state, metadata), batch_size=1, batch_format="pyarrow")
        )
        for batch in findings.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for data in batch["findings"].to_pylist():
                found: ChunkFindings = pickle.loads(data)  # noqa: S301, TID251 - from `_check_batch`
                if found.fatal:
                    raise JobFailed(f"{found.fatal}; the output itself may be fine; run verify again")
                checked, problems = checked + 1, problems + len(found.problems)
                yield found
            if time.monotonic() - reported > EVERY_S:
                reported = time.monotonic()
                on_status(f"{checked:,} of {total:,} chunks checked, {problems:,} problems")


def _check_batch(chunk: pa.Table, state: OutputState, metadata: RowMetadata) -> pa.Table:
    (planned,) = chunk.to_pylist()
    return pa.table({"findings": [pickle.dumps(check_chunk(PlannedChunk(**planned), state, metadata))]})
