"""Take what is wrong out of an output, so that the encode command that made it makes it whole again."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import JobFailed
from inpaint_encode.output.lease import Lease
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.stores import storage

from .checks import Unreadable, read_receipts
from .verdict import DATA_CHECKS, Verdict

__all__ = ["repair"]

_REMOVED = frozenset({"foreign", "temporary", "report"})
"""Checks whose problems are gone when the file is."""

_BEYOND = frozenset({"plan", "stranger"})
"""Checks whose problems nothing here can mend."""


def repair(verdict: Verdict, state: OutputState, inventory: Inventory, lease: Lease) -> None:
    """Mend what can be mended; `Verdict.left` and `Verdict.undone` say what remains to be done.

    A damaged chunk loses its receipts first, so that no later run takes it for done, then its data file, then its
    rejects file. Strangers and a damaged plan stay as they are. If the plan or every data file is damaged, or every
    row that was encoded again differs, the cause is rather the plan, ``_job.json``, this machine or this version of
    the tool, and no such file is removed.

    Raises:
        JobFailed: another run has taken the lease.
    """
    hands = _Hands(state, lease)
    spared = _spared(verdict)
    removed = verdict.damaged - spared
    hands.forget(removed | _chunks_of(verdict, "receipts"), inventory.receipts)
    for chunk in sorted(removed):
        hands.delete(state.data_uri(chunk))
        hands.delete(state.rejects_uri(chunk))
    mended = _chunks_of(verdict, "rejects") - removed
    for chunk in sorted(mended):
        hands.accept_existing(chunk, verdict.found[chunk].generation)
    files = {problem.file for problem in verdict.problems if problem.check in _REMOVED}
    for file in sorted(files | ({state.uri("_report.json")} if removed else set())):
        hands.delete(file)
    verdict.undone |= removed
    verdict.left = [one for one in verdict.problems if one.check in _BEYOND or _is_spared(one.check, one.chunk, spared)]
    verdict.repairs = [
        f"{len(removed):,} chunks are to be encoded again, their files are removed",
        f"{len(mended):,} rejects files made to say what their data files say",
        f"{len(files):,} other files removed",
        *([f"{len(spared):,} data files stay: {_WHY_SPARED}"] if spared else []),
    ]


_WHY_SPARED = (
    "what is wrong is rather the plan, _job.json, this machine or this version, since the plan is damaged or all of "
    "them are wrong at once; to give them up, encode with --overwrite"
)


class _Hands:
    """Writes and deletes for as long as the lease is held."""

    def __init__(self, state: OutputState, lease: Lease) -> None:
        self._ledger, self._lease = state, lease

    def delete(self, uri: str) -> None:
        self._hold_on()
        storage.delete(uri)

    def accept_existing(self, chunk: int, generation: int | None) -> None:
        """Make a chunk's rejects file say what its data file says."""
        self._hold_on()
        self._ledger.accept_existing({"chunk": chunk, "generation": generation})

    def forget(self, chunks: set[int], receipts: list[str]) -> None:
        """Take ``chunks`` out of the receipts, and receipts away that cannot be read."""
        for uri in map(self._ledger.uri, receipts):
            try:
                table = read_receipts(uri)
            except Unreadable:
                self.delete(uri)
                continue
            kept = table.filter(pc.invert(pc.is_in(table["chunk"], pa.array(sorted(chunks), pa.int64()))))
            if kept.num_rows < table.num_rows:
                self._hold_on()
                storage.write(uri, parquet_bytes(kept))

    def _hold_on(self) -> None:
        if self._lease.lost.is_set():
            raise JobFailed("another run has taken over this output; the repair stops here")


def _chunks_of(verdict: Verdict, check: str) -> set[int]:
    return {problem.chunk for problem in verdict.problems if problem.check == check and problem.chunk >= 0}


def _spared(verdict: Verdict) -> set[int]:
    """Chunks whose damage is not believed."""
    damaged, resampled = verdict.damaged, verdict.resampled
    if any(problem.check == "plan" for problem in verdict.problems):
        return damaged
    if len(verdict.found) > 1 and damaged >= verdict.found.keys():
        return set(verdict.found)
    if resampled and resampled.rows == resampled.different > 1:
        others = {one.chunk for one in verdict.problems if one.check in DATA_CHECKS and one.check != "sample"}
        return damaged - others
    return set()


def _is_spared(check: str, chunk: int, spared: set[int]) -> bool:
    return check in DATA_CHECKS and chunk in spared
