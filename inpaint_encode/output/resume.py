"""Begin an output or go on with it: which settings it was made by, what is done there, what remains."""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import UsageError
from inpaint_encode.schema import PAIRS, WORK, with_extra_columns
from inpaint_encode.settings import CONTRACT_VERSION, Decoding, EncodeJob, RunOptions, Source
from inpaint_encode.sources import FoundPairs
from inpaint_encode.stores import storage

from . import plan
from .state import Committed, Inventory, Ledger

__all__ = ["Remaining", "job_record", "open_output", "refuse_sizes", "remaining"]

_BEFORE = {
    "vae_family": "",
    "latent_form": "unscaled",
    "posterior_seed": 0,
    "scaled": False,
    "also_original": False,
    "latent_mask": "none",
    "tile": False,
    "tile_size": 512,
}
"""What outputs did that were begun before their ``_job.json`` said so."""

_PACKAGES = ("inpaint-encode", "torch", "diffusers", "ray", "pyarrow", "pillow", "numpy")


class Remaining(NamedTuple):
    """What a run has before it and behind it."""

    work: pa.Table
    """`schema.WORK` of the chunks that are not decided."""
    done: dict[int, Committed]
    pairs: int
    """All planned pairs, done ones included."""


def job_record(job: EncodeJob, vae: Mapping[str, Any], extra_columns: Sequence[pa.Field] = ()) -> dict[str, Any]:
    """What ``_job.json`` keeps; ``rows`` and ``source`` must be the same for as long as the output grows.

    Args:
        job: the settings.
        vae: `inpaint_encode.vae.VaeFacts` as a dictionary.
        extra_columns: fields of the source's own columns, whose names and types all data files share.
    """
    made_by = {name: value for name, value in vae.items() if name != "vae_source"}
    if job.rows.scaled and made_by["latent_form"] == "unscaled":
        made_by["latent_form"] = "scaled"
    shaped_by = {**job.rows.model_dump(), **job.decoding.recorded()}
    return {
        "rows": {"contract": CONTRACT_VERSION, **shaped_by, **made_by},
        "source": _source_record(job.source, extra_columns),
        "access": job.access.model_dump(),
        "vae_source": vae["vae_source"],
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
    }


def refuse_sizes(decoding: Decoding, multiple: int) -> None:
    """Hold the sizes that images are to be brought to against the VAE's multiple.

    Raises:
        UsageError: they cannot be had; the message says which can.
    """
    try:
        Sizing.of({**decoding.recorded(), "crop_multiple": multiple}).check()
    except ValueError as error:
        raise UsageError(str(error)) from None


def _source_record(source: Source, extra_columns: Sequence[pa.Field]) -> dict[str, Any]:
    given = source.model_dump() | {"masks": source.masks or source.images}
    uris = {
        name: storage.normalise(given[name], storage.READABLE) for name in ("images", "masks", "pairs") if given[name]
    }
    given["random_masks"] = source.random_masks > 0  # more of them are new pairs, and no other source
    return {**given, **uris, "carried": {field.name: str(field.type) for field in extra_columns}}


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
    there = None if blob is None else json.loads(blob.data)
    kept = None if overwrite else there
    if kept is not None:
        _refuse_differences(output, kept, record)
    replaced = there["replaces"] + ([there["job"]] if overwrite else []) if there else []
    ledger = Ledger(output, kept["job"] if kept else uuid.uuid4().hex[:8], token, tuple(replaced))
    inventory = ledger.inventory()
    _refuse_strangers(output, inventory)
    if kept is None:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        whole = {"job": ledger.job, "replaces": replaced, "created": created, **record}
        ledger.still_mine()
        storage.write(uri, json.dumps(whole, indent=2).encode())
        storage.delete(ledger.uri("_report.json"))
    ledger.still_mine()
    for path in inventory.foreign:
        storage.delete(ledger.uri(path))
    return ledger, inventory


def remaining(ledger: Ledger, inventory: Inventory, job: EncodeJob, found: FoundPairs) -> Remaining:
    """Plan what the source holds and the plan does not, and return what is to be done."""
    parts = _extended(ledger, inventory.parts, job, found)
    if job.run.refresh or job.run.retry_rejected:
        parts = _revised(ledger, parts, inventory, job.run, found)
    chunks = ledger.planned_chunks(parts)
    done = ledger.decided(inventory, _generations(chunks))
    keep = pc.is_in(chunks["chunk"], pa.array(sorted(inventory.chunks), pa.int64()))
    todo = pc.invert(pc.is_in(chunks["chunk"], pa.array(sorted(done), pa.int64())))
    work = chunks.append_column("keep", keep).filter(todo).select(WORK.names).cast(WORK).sort_by("chunk")
    pairs = plan.newest(ledger.read_plan(parts, ["chunk", "key"]))["key"]
    return Remaining(work, done, len(pairs) - pairs.null_count)


def _extended(ledger: Ledger, parts: list[str], job: EncodeJob, found: FoundPairs) -> list[str]:
    """Add a generation of new chunks for pairs that are not planned yet."""
    planned = plan.newest(ledger.read_plan(parts, ["chunk", "key"]))
    fresh = plan.added(planned, found.pairs)
    if not fresh.num_rows:
        return parts
    first = pc.max(planned["chunk"]).as_py() + 1 if planned.num_rows else 0
    cut = plan.cut(found.with_uris(fresh), job.output.chunk_rows, job.output.chunk_bytes, first)
    return parts + ledger.write_plan(_next_generation(parts), cut)


def _revised(ledger: Ledger, parts: list[str], inventory: Inventory, run: RunOptions, found: FoundPairs) -> list[str]:
    """Add a generation that states anew the chunks whose pairs changed, vanished or are to be tried again."""
    columns = with_extra_columns(PAIRS, found.pairs.schema).names
    planned = plan.newest(ledger.read_plan(parts, columns))
    again = plan.changed(planned, found.pairs) if run.refresh else found.pairs.slice(0, 0)
    again = found.with_uris(again).select([name for name in columns if name not in ("chunk", "encode")])
    if run.retry_rejected:
        again = plan.with_keys(again, planned, ledger.rejected_keys(inventory))
    gone = planned.filter(pc.invert(pc.is_in(planned["key"], value_set=found.pairs["key"])))["key"].drop_null()
    dropped = gone.combine_chunks() if run.drop_vanished else pa.array([], pa.string())
    if not again.num_rows and not len(dropped):
        return parts
    undecided = pa.array(sorted(_undecided(ledger, inventory, ledger.planned_chunks(parts))), pa.int64())
    return parts + ledger.write_plan(_next_generation(parts), plan.revise(planned, again, dropped, undecided))


def _undecided(ledger: Ledger, inventory: Inventory, chunks: pa.Table) -> set[int]:
    wanted = _generations(chunks)
    return wanted.keys() - ledger.decided(inventory, wanted).keys()


def _generations(chunks: pa.Table) -> dict[int, int]:
    return dict(zip(chunks["chunk"].to_pylist(), chunks["generation"].to_pylist(), strict=True))


def _next_generation(parts: list[str]) -> int:
    return int(parts[-1].split("-")[1]) + 1 if parts else 0


def _refuse_differences(output: str, kept: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    unknown = {"crop_multiple": kept["rows"].get("ratio"), "config_sha256": record["rows"]["config_sha256"]}
    differences = [
        f"{name}: {there} there, {value} here"
        for section, before in (("rows", {**_BEFORE, **unknown}), ("source", {}))
        for name, value in record[section].items()
        if (there := kept[section].get(name, before.get(name))) != value
    ]
    if differences:
        raise UsageError(
            f"{output} was begun with other settings ({'; '.join(differences)}); "
            "use the same ones, another --output, or --overwrite to start anew"
        )


def _refuse_strangers(output: str, inventory: Inventory) -> None:
    if inventory.strangers:
        raise UsageError(
            f"{output} holds {len(inventory.strangers)} files that are not this job's, such as "
            f"{inventory.strangers[0]}; choose an empty folder, since a reader takes all files of one"
        )
