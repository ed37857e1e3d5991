"""Begin an output or go on with it: which settings it was made by, what is done there, what remains."""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from . import plan, rows, storage
from .errors import UsageError
from .ledger import Committed, Inventory, Ledger
from .settings import CONTRACT_VERSION, EncodeJob, RunOptions
from .sources import FoundPairs

__all__ = ["Remaining", "job_record", "open_output", "remaining"]

_PACKAGES = ("inpaint-encode", "torch", "diffusers", "ray", "pyarrow", "pillow", "numpy")


class Remaining(NamedTuple):
    """What a run has before it and behind it."""

    work: pa.Table
    """`rows.WORK` of the chunks that are not decided."""
    done: dict[int, Committed]
    pairs: int
    """All planned pairs, done ones included."""


def job_record(job: EncodeJob, vae: Mapping[str, Any]) -> dict[str, Any]:
    """What ``_job.json`` keeps; ``rows`` and ``source`` must be the same for as long as the output grows."""
    made_by = {name: value for name, value in vae.items() if name != "vae_source"}
    return {
        "rows": {"contract": CONTRACT_VERSION, "posterior": "mean", **job.rows.model_dump(), **made_by},
        "source": {name: storage.normalise(uri) for name, uri in job.source.model_dump().items()},
        "vae_source": vae["vae_source"],
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def open_output(output: str, record: Mapping[str, Any], *, overwrite: bool, token: str) -> tuple[Ledger, Inventory]:
    """Write ``_job.json`` or hold it against ``record``; remove what other jobs have left; say what is there.

    Raises:
        UsageError: the rows there were made by other settings, or it holds data that is not this package's.
    """
    uri = storage.join(output, "_job.json")
    try:
        blob = storage.read(uri)
    except FileNotFoundError:
        blob = None
    kept = None if blob is None or overwrite else json.loads(blob.data)
    if kept is not None:
        _refuse_differences(output, kept, record)
    ledger = Ledger(output, kept["job"] if kept else uuid.uuid4().hex[:8], token)
    inventory = ledger.inventory()
    _refuse_strangers(output, inventory)
    if kept is None:
        whole = {"job": ledger.job, "created": datetime.now(UTC).isoformat(timespec="seconds"), **record}
        storage.write(uri, json.dumps(whole, indent=2).encode())
        storage.delete(ledger.uri("_report.json"))
    for path in inventory.foreign:
        storage.delete(ledger.uri(path))
    return ledger, inventory


def remaining(ledger: Ledger, inventory: Inventory, job: EncodeJob, found: FoundPairs) -> Remaining:
    """Plan what the source holds and the plan does not, and return what is to be done."""
    generations = ledger.read_plan(inventory.parts)
    generations = _extended(ledger, generations, job, found.pairs)
    if job.run.refresh or job.run.retry_rejected:
        generations = _revised(ledger, generations, inventory, job.run, found.pairs)
    newest = plan.newest(generations)
    chunks = newest.group_by(["chunk", "generation", "part"], use_threads=False).aggregate([])
    wanted = dict(zip(chunks["chunk"].to_pylist(), chunks["generation"].to_pylist(), strict=True))
    done = ledger.decided(inventory, wanted)
    keep = pc.is_in(chunks["chunk"], pa.array(sorted(inventory.chunks), pa.int64()))
    todo = pc.invert(pc.is_in(chunks["chunk"], pa.array(sorted(done), pa.int64())))
    work = chunks.append_column("keep", keep).filter(todo).select(rows.WORK.names).cast(rows.WORK)
    return Remaining(work, done, pc.sum(pc.is_valid(newest["key"])).as_py() or 0)


def _extended(ledger: Ledger, generations: pa.Table, job: EncodeJob, found: pa.Table) -> pa.Table:
    """Add a generation of new chunks for pairs that are not planned yet."""
    fresh = plan.added(generations, found) if generations.num_rows else found
    if not fresh.num_rows:
        return generations
    first = (pc.max(generations["chunk"]).as_py() or 0) + 1 if generations.num_rows else 0
    return _recorded(ledger, generations, plan.cut(fresh, job.output.chunk_rows, job.output.chunk_bytes, first))


def _revised(ledger: Ledger, generations: pa.Table, inventory: Inventory, run: RunOptions, found: pa.Table) -> pa.Table:
    """Add a generation that states anew the chunks whose pairs changed, vanished or are to be tried again."""
    current = plan.newest(generations)
    again = plan.changed(current, found) if run.refresh else found.schema.empty_table().select(["key"])
    if run.retry_rejected:
        again = plan.with_keys(again, current, ledger.rejected_keys(inventory))
    gone = current["key"].combine_chunks().filter(pc.invert(pc.is_in(current["key"], found["key"].combine_chunks())))
    dropped = gone.drop_null() if run.drop_vanished else pa.array([], pa.string())
    if not again.num_rows and not len(dropped):
        return generations
    return _recorded(ledger, generations, plan.revise(current, again, dropped))


def _recorded(ledger: Ledger, generations: pa.Table, table: pa.Table) -> pa.Table:
    number = (pc.max(generations["generation"]).as_py() + 1) if generations.num_rows else 0
    names = ledger.write_plan(number, table)
    return pa.concat_tables([generations, ledger.read_plan(names)])


def _refuse_differences(output: str, kept: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    differences = [
        f"{name}: {kept[section].get(name)} there, {value} here"
        for section in ("rows", "source")
        for name, value in record[section].items()
        if kept[section].get(name) != value
    ]
    if differences:
        raise UsageError(
            f"{output} was begun with other settings ({'; '.join(differences)}); "
            "use the same ones, another --output, or --overwrite to start anew"
        )


def _refuse_strangers(output: str, inventory: Inventory) -> None:
    if inventory.strangers:
        raise UsageError(
            f"{output} holds {len(inventory.strangers)} files that are not this tool's, such as "
            f"{inventory.strangers[0]}; choose an empty folder, since a reader takes all files of one"
        )
