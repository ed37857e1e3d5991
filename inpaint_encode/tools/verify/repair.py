"""Remove what is wrong from an output, so that the same encode command completes it."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import JobFailed
from inpaint_encode.output.lease import Lease
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.stores import storage

from .files import Unreadable, read_receipts
from .findings import DATA_CHECKS, VerifyResult

__all__ = ["repair"]

_FILE_CHECKS = frozenset({"orphan", "temporary", "report"})
"""Checks that are repaired by removing the file."""

_NOT_REPAIRED = frozenset({"plan", "unknown"})


def repair(result: VerifyResult, state: OutputState, inventory: Inventory, lease: Lease) -> None:
    """Remove damaged and unexpected files, and record in ``result`` what was done and what remains.

    The receipts of a damaged chunk are removed first, so that no later run counts it as committed; then its data file
    and its rejects file. Unknown files and a damaged plan are not changed. If the plan is damaged, or all data files
    are, or all rows that were encoded again differ, no data file is removed: the cause is probably elsewhere.

    Raises:
        JobFailed: another run has taken the lease.
    """
    kept = _kept_chunks(result)
    removed = result.damaged - kept
    chunks = {
        check: {one.chunk for one in result.problems if one.check == check and one.chunk >= 0}
        for check in ("receipts", "rejects")
    }
    _remove_receipts(removed | chunks["receipts"], list(map(state.uri, inventory.receipts)), lease)
    for chunk in sorted(removed):
        _delete(state.data_uri(chunk), lease)
        _delete(state.rejects_uri(chunk), lease)
    rejects = chunks["rejects"] - removed
    for chunk in sorted(rejects):
        _check_held(lease)
        state.accept_existing({"chunk": chunk, "generation": result.findings[chunk].generation})
    files = {problem.file for problem in result.problems if problem.check in _FILE_CHECKS}
    for file in sorted(files | ({state.uri("_report.json")} if removed else set())):
        _delete(file, lease)
    result.incomplete |= removed
    result.unrepaired = [
        one for one in result.problems if one.check in _NOT_REPAIRED or (one.check in DATA_CHECKS and one.chunk in kept)
    ]
    result.repairs = [
        f"{len(removed):,} damaged chunks removed; the encode command encodes them again",
        f"{len(rejects):,} rejects files rewritten from their data files",
        f"{len(files):,} other files removed",
    ]
    if kept:
        result.repairs.append(
            f"{len(kept):,} damaged data files kept: the plan is damaged or all of them are wrong, so that the cause "
            "is probably the plan, _job.json, this machine or this version; to replace them, encode with --overwrite"
        )


def _kept_chunks(result: VerifyResult) -> set[int]:
    """Return the damaged chunks that must not be removed, because the cause is probably not in their files."""
    damaged, reencoded = result.damaged, result.reencoded
    if any(problem.check == "plan" for problem in result.problems):
        return damaged
    if len(result.findings) > 1 and damaged >= result.findings.keys():
        return set(result.findings)
    if reencoded and reencoded.rows == reencoded.different > 1:
        return damaged - {one.chunk for one in result.problems if one.check in DATA_CHECKS and one.check != "reencode"}
    return set()


def _remove_receipts(chunks: set[int], uris: list[str], lease: Lease) -> None:
    """Remove the receipts of these chunks, and files of receipts that are not readable."""
    for uri in uris:
        try:
            table = read_receipts(uri)
        except Unreadable:
            _delete(uri, lease)
            continue
        kept = table.filter(pc.invert(pc.is_in(table["chunk"], pa.array(sorted(chunks), pa.int64()))))
        if kept.num_rows < table.num_rows:
            _check_held(lease)
            storage.write(uri, parquet_bytes(kept))


def _delete(uri: str, lease: Lease) -> None:
    _check_held(lease)
    storage.delete(uri)


def _check_held(lease: Lease) -> None:
    if lease.lost.is_set():
        raise JobFailed(f"another run has taken over this output (see {lease.uri}); the repair stops here")
