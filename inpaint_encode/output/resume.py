"""Begin or resume an output: its settings, the chunks that are done, and those that are not."""

from __future__ import annotations

import json
import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.schema import PAIRS, WORK, with_extra_columns
from inpaint_encode.settings import Decoding, EncodeJob, RowSettings, RunOptions, Source
from inpaint_encode.sources import FoundPairs
from inpaint_encode.stores import storage

from . import plan
from .state import ChunkResult, Inventory, OutputState

_LABELS = {
    "weights_sha256": "hash of the VAE's weights",
    "config_sha256": "hash of the VAE's configuration",
    "contract": "version of the transform",
}
"""Names of settings in errors, where the field's own name is unclear."""

_PACKAGES = ("inpaint-encode", "torch", "diffusers", "ray", "pyarrow", "pillow", "numpy")


class Remaining(NamedTuple):
    """The chunks of a job that are done, and those that are not."""

    work: pa.Table
    """`inpaint_encode.schema.WORK` of the chunks to encode, with a ``pairs`` column: the pairs of each."""
    done: dict[int, ChunkResult]
    pairs: int
    """All planned pairs."""
    excluded: int = 0
    """Pairs of chunks that `limited` left out."""

    def limited(self, pairs: int) -> Remaining:
        """Return the first chunks that together have at least ``pairs`` pairs; 0 is no limit."""
        if not pairs:
            return self
        counts = self.work["pairs"].to_numpy()
        kept = int(np.searchsorted(np.cumsum(counts), pairs)) + 1
        return self._replace(work=self.work.slice(0, kept), excluded=int(counts[kept:].sum()))


def row_metadata(rows: RowSettings, decoding: Decoding, vae: VaeMetadata) -> RowMetadata:
    """Return the metadata of the rows that these settings give.

    Args:
        rows: what a row contains.
        decoding: how images and masks are decoded.
        vae: of the loaded VAE; with ``--scaled`` the rows' latent form becomes "scaled".
    """
    if rows.scaled and vae.latent_form == "unscaled":
        vae = replace(vae, latent_form="scaled")
    versions = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return RowMetadata(vae=vae, versions=versions, **rows.recorded(), **decoding.recorded())


def job_record(job: EncodeJob, metadata: RowMetadata, extra_columns: Sequence[pa.Field] = ()) -> dict[str, Any]:
    """Return the contents of ``_job.json``; ``rows`` and ``source`` must stay the same while the output grows.

    Args:
        job: the settings.
        metadata: of the rows.
        extra_columns: fields of the source's own columns, whose names and types all data files share.
    """
    rows = metadata.to_dict()
    versions, vae_source = rows.pop("versions"), rows.pop("vae_source")
    return {
        "rows": rows,
        "source": _source_record(job.source, extra_columns),
        "access": job.access.model_dump(),
        "vae_source": vae_source,
        "versions": versions,
    }


def metadata_of_job(record: Mapping[str, Any]) -> RowMetadata:
    """Return the rows' metadata from the contents of ``_job.json``.

    Raises:
        KeyError: a required field is missing.
    """
    return RowMetadata.from_dict(
        {**record["rows"], "vae_source": record["vae_source"], "versions": record.get("versions", {})}
    )


def validate_sizes(metadata: RowMetadata) -> None:
    """Check ``--resize``, ``--resolution`` and ``--buckets`` against the VAE's crop multiple.

    Raises:
        UsageError: the sizes are no multiples of it; the message names sizes that are.
    """
    try:
        Sizing.of(metadata).check()
    except ValueError as error:
        raise UsageError(str(error)) from None


def _source_record(source: Source, extra_columns: Sequence[pa.Field]) -> dict[str, Any]:
    given = source.model_dump() | {"masks": source.masks or source.images}
    uris = {
        name: storage.normalize_uri(given[name], storage.READABLE)
        for name in ("images", "masks", "pairs")
        if given[name]
    }
    given["random_masks"] = source.random_masks > 0  # more of them are new pairs, and no other source
    return {**given, **uris, "extra_columns": {field.name: str(field.type) for field in extra_columns}}


def open_output(
    output: str, record: Mapping[str, Any], *, overwrite: bool, token: str
) -> tuple[OutputState, Inventory]:
    """Begin or resume an output: write or compare ``_job.json``, delete files of overwritten jobs, list the rest.

    Args:
        output: normalized URI.
        record: of `job_record`.
        overwrite: whether to begin a new job in place of the present one.
        token: of the lease.

    Raises:
        UsageError: the output was written with other settings, or data files of another tool.
    """
    uri = storage.join(output, "_job.json")
    try:
        present = json.loads(storage.read(uri).data)
    except FileNotFoundError:
        present = None
    kept = None if overwrite else present
    if kept is not None:
        _validate_same_settings(output, kept, record)
    replaced = present["replaces"] + ([present["job"]] if overwrite else []) if present else []
    state = OutputState(output, kept["job"] if kept else uuid.uuid4().hex[:8], token, tuple(replaced))
    inventory = state.inventory()
    if inventory.unknown_files:
        raise UsageError(
            f"{output} contains {inventory.unknown_files[0]}, which this job did not write (files of this kind: "
            f"{len(inventory.unknown_files):,}); choose an empty folder, since readers read all files of a folder"
        )
    if kept is None:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        whole = {"job": state.job, "replaces": replaced, "created": created, **record}
        state.check_lease()
        storage.write(uri, json.dumps(whole, indent=2).encode())
        storage.delete(state.uri("_report.json"))
    state.check_lease()
    for path in inventory.replaced_files:
        storage.delete(state.uri(path))
    return state, inventory


def _validate_same_settings(output: str, kept: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    before = metadata_of_job({"vae_source": "", **kept}).to_dict()
    now = metadata_of_job(record).to_dict()
    before["config_sha256"] = before["config_sha256"] or now["config_sha256"]
    source = {"extra_columns": kept["source"].get("carried"), **kept["source"]}  # the name in version 0.1
    differences = [
        f"{_LABELS.get(name, name)}: {there.get(name)} in the output, {value} now"
        for there, here in ((before, now), (source, record["source"]))
        for name, value in here.items()
        if there.get(name) != value and name not in ("versions", "vae_source")
    ]
    if differences:
        raise UsageError(
            f"{output} was written with other settings ({'; '.join(differences)}); "
            "use the same settings, another --output, or --overwrite to start again"
        )


def remaining(state: OutputState, inventory: Inventory, job: EncodeJob, found: FoundPairs) -> Remaining:
    """Add new and changed pairs of the source to the plan, and return the chunks that are not done."""
    parts = _with_new_pairs(state, inventory.parts, job, found)
    if job.run.refresh or job.run.retry_rejected:
        parts = _with_revised_chunks(state, parts, inventory, job.run, found)
    chunks = state.planned_chunks(parts)
    done = state.committed_chunks(inventory, _generations(chunks))
    keep = pc.is_in(chunks["chunk"], pa.array(sorted(inventory.chunks), pa.int64()))
    todo = pc.invert(pc.is_in(chunks["chunk"], pa.array(sorted(done), pa.int64())))
    work = chunks.append_column("keep", keep).filter(todo).select(WORK.names).cast(WORK).sort_by("chunk")
    pairs = plan.newest(state.read_plan(parts, ["chunk", "key"]))
    counts = pairs.filter(pc.is_valid(pairs["key"])).group_by("chunk").aggregate([("key", "count")])
    of_work = counts["key_count"].take(pc.index_in(work["chunk"], counts["chunk"].combine_chunks()))
    work = work.append_column("pairs", pc.fill_null(of_work, 0))
    return Remaining(work, done, len(pairs["key"]) - pairs["key"].null_count)


def _with_new_pairs(state: OutputState, parts: list[str], job: EncodeJob, found: FoundPairs) -> list[str]:
    """Add a generation of new chunks for pairs that are not planned yet."""
    planned = plan.newest(state.read_plan(parts, ["chunk", "key"]))
    fresh = plan.added(planned, found.pairs)
    if not fresh.num_rows:
        return parts
    first = pc.max(planned["chunk"]).as_py() + 1 if planned.num_rows else 0
    chunks = plan.split_into_chunks(found.with_uris(fresh), job.output.chunk_rows, job.output.chunk_bytes, first)
    return parts + state.write_plan(_next_generation(parts), chunks)


def _with_revised_chunks(
    state: OutputState, parts: list[str], inventory: Inventory, run: RunOptions, found: FoundPairs
) -> list[str]:
    """Add a generation for the chunks with pairs that changed, vanished or are to be retried."""
    columns = with_extra_columns(PAIRS, found.pairs.schema).names
    planned = plan.newest(state.read_plan(parts, columns))
    revised = plan.changed(planned, found.pairs) if run.refresh else found.pairs.slice(0, 0)
    revised = found.with_uris(revised).select([name for name in columns if name not in ("chunk", "encode")])
    if run.retry_rejected:
        revised = plan.with_keys(revised, planned, state.rejected_keys(inventory))
    gone = planned.filter(pc.invert(pc.is_in(planned["key"], value_set=found.pairs["key"])))["key"].drop_null()
    dropped = gone.combine_chunks() if run.drop_vanished else pa.array([], pa.string())
    if not revised.num_rows and not len(dropped):
        return parts
    wanted = _generations(state.planned_chunks(parts))
    undone = pa.array(sorted(wanted.keys() - state.committed_chunks(inventory, wanted).keys()), pa.int64())
    return parts + state.write_plan(_next_generation(parts), plan.revise(planned, revised, dropped, undone))


def _generations(chunks: pa.Table) -> dict[int, int]:
    return dict(zip(chunks["chunk"].to_pylist(), chunks["generation"].to_pylist(), strict=True))


def _next_generation(parts: list[str]) -> int:
    return int(parts[-1].split("-")[1]) + 1 if parts else 0
