"""Begin or resume an output: its settings, the chunks that are done, and those that are not."""

from __future__ import annotations

import json
import platform
import sys
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.schema import WORK, extra_columns_schema
from inpaint_encode.settings import Decoding, EncodeJob, RowSettings, Source
from inpaint_encode.sources.pairs import LeftOut, PairSource
from inpaint_encode.stores import storage
from inpaint_encode.stores.redaction import redacted_values

from . import plan
from .index import IndexWriter
from .index_files import NOTE
from .notes import RESTORE_JOB, DamagedNote, metadata_of_job, parse_job, read_parsed
from .own_outputs import mark_own
from .plan_log import MARKER, PlanLog
from .planner import Planner
from .state import ChunkResult, Inventory, OutputState

_LABELS = {
    "weights_sha256": "hash of the VAE's weights",
    "config_sha256": "hash of the VAE's configuration",
    "contract": "version of the transform",
}
"""Names of settings in errors, where the field's own name is unclear."""

LAYOUT = 2
"""Version of the names and the plan of an output's files, in ``_job.json``; version 0.1 wrote none."""

_PACKAGES = ("inpaint-encode", "torch", "diffusers", "ray", "pyarrow", "pillow", "numpy")


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
    record = {
        "layout": LAYOUT,
        "rows": rows,
        "source": _source_record(job.source, extra_columns),
        "access": job.access.model_dump(),
        "vae_source": vae_source,
        "versions": versions,
    }
    return dict(redacted_values(record))


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
    output: str, record: Mapping[str, Any], *, overwrite: bool, token: str, lease: str = "_lease.json"
) -> tuple[OutputState, Inventory]:
    """Begin or resume an output: write or compare ``_job.json``, delete files of overwritten jobs, list the rest.

    Args:
        output: normalized URI.
        record: of `job_record`.
        overwrite: whether to begin a new job in place of the present one.
        token: of the lease.
        lease: path of the lease in the output.

    Raises:
        UsageError: the output was written with other settings, or data files of another tool.
    """
    uri = storage.join(output, "_job.json")
    present, version = _read_job(output, overwrite=overwrite)
    if present is not None and not overwrite:
        _validate_same_settings(output, present, record)
    replaced = present.get("replaces", []) + ([present["job"]] if overwrite else []) if present else []
    job = present["job"] if present and not overwrite else uuid.uuid4().hex[:8]
    state = OutputState(output, job, token, tuple(replaced), lease)
    inventory = state.inventory()
    if inventory.unknown_files:
        raise UsageError(
            f"{output} contains {inventory.unknown_files[0]}, which this job did not write (files of this kind: "
            f"{len(inventory.unknown_files):,}); choose an empty folder, since readers read all files of a folder"
        )
    if present is None or overwrite:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        whole = {"job": state.job, "replaces": replaced, "created": created, **record}
        state.check_lease()
        try:
            storage.write_once(uri, json.dumps(whole, indent=2).encode(), expect=version)
        except storage.Conflict:  # another run has begun the output
            return open_output(output, record, overwrite=False, token=token, lease=lease)
        state.delete(["_report.json", NOTE])
    else:
        whole = {"job": state.job, **present}
    if all(whole.get(name) == value for name, value in record.items() if name in ("source", "access", "vae_source")):
        mark_own(output, whole)
    state.check_lease()
    state.delete(inventory.replaced_files)
    return state, inventory


def _read_job(output: str, *, overwrite: bool) -> tuple[dict[str, Any] | None, str]:
    """Return the contents of ``_job.json`` and its version; None if it does not exist.

    With ``overwrite``, a damaged or missing one is replaced by the names of the jobs that have a plan in the output.
    The data files of these jobs may be deleted: no other files have such names.

    Raises:
        UsageError: it is damaged.
    """
    advice = f"{RESTORE_JOB}, choose another --output, or use --overwrite to start again"
    try:
        return read_parsed(storage.join(output, "_job.json"), parse_job, advice)
    except FileNotFoundError:
        version = storage.ABSENT
    except DamagedNote as error:
        if not overwrite:
            raise UsageError(str(error)) from error
        version = error.version
    if not overwrite:
        return None, version
    pages = storage.list_objects(storage.join(output, "_plan"))
    markers = (MARKER.fullmatch(f"_plan/{path}") for page in pages for path in page.paths)
    *others, job = sorted({name["job"] for name in markers if name}) or [""]
    return ({"job": job, "replaces": others} if job else None), version


def _validate_same_settings(output: str, kept: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    if kept.get("layout") != LAYOUT:
        raise UsageError(
            f"{output} was begun by another version of inpaint-encode, which plans differently; its rows can be read, "
            "verified and exported; to encode more, choose another --output, or --overwrite to start again"
        )
    before = metadata_of_job({"vae_source": "", **kept}).to_dict()
    now = metadata_of_job(record).to_dict()
    before["config_sha256"] = before["config_sha256"] or now["config_sha256"]
    differences = [
        f"{_LABELS.get(name, name)}: {there.get(name)} in the output, {value} now"
        for there, here in ((before, now), (kept["source"], record["source"]))
        for name, value in here.items()
        if there.get(name) != value and name not in ("versions", "vae_source")
    ]
    if differences:
        raise UsageError(
            f"{output} was written with other settings ({'; '.join(differences)}); "
            "use the same settings, another --output, or --overwrite to start again"
        )


class Remaining:
    """What is left to encode: planned chunks that are not done, and those that are planned during the run.

    Args:
        state: of the output.
        inventory: its files.
        job: the settings.
        source: of the pairs.

    Raises:
        JobFailed: the plan is damaged.
    """

    def __init__(self, state: OutputState, inventory: Inventory, job: EncodeJob, source: PairSource) -> None:
        self.log = PlanLog.read(state, inventory.plan, extra_columns_schema(source.extra_columns))
        self.state, self._inventory, self._run, self._source = state, inventory, job.run, source
        self.done = self._committed(inventory)
        self.new_planner(job, source)
        self._old_plan = set(inventory.plan)
        self.index = IndexWriter(state, self.log, inventory.receipts)

    def new_planner(self, job: EncodeJob, source: PairSource) -> Planner:
        """Begin to plan the source from the units that the log has now."""
        self.planner = Planner(self.log, source, job.output, job.run, self._undecided)
        return self.planner

    def _committed(self, inventory: Inventory) -> dict[str, ChunkResult]:
        """Return the results of the chunks that a listing has, see `OutputState.committed_chunks`."""
        return self.state.committed_chunks(inventory, self.log.chunks)

    def close(self) -> None:
        """Release what `work` holds."""

    def work(self) -> Iterator[pa.Table]:
        """Yield `inpaint_encode.schema.WORK` with a ``pairs`` column: first planned chunks, then each new unit's.

        If pairs are to be encoded again, the whole source is planned before the first table, and `done` loses the
        chunks with these pairs. With ``limit``, only the first chunks that together have that many pairs are yielded.

        Raises:
            UsageError, JobFailed, OSError: as `Planner.plan`.
        """
        left = self._run.limit or sys.maxsize
        for names in self._names():
            table = self._work_of(names)
            full = int(np.searchsorted(np.cumsum(table["pairs"].to_numpy()), left)) + 1
            table = table.slice(0, full)
            left -= pc.sum(table["pairs"]).as_py() or 0
            if table.num_rows:
                yield table
            if left <= 0:
                return

    def note_committed(self, chunk: str) -> None:
        """Note that a chunk of `work` is committed; only a run that shares the output needs to know."""

    def _names(self) -> Iterator[Sequence[str]]:
        """Yield the names of chunks to encode."""
        if self._run.retry_rejected or self._run.refresh:
            for names in self._revise():
                for name in names:
                    self.done.pop(name, None)
            yield sorted(self.log.chunks.keys() - self.done.keys())
            return
        planned: Iterable[Sequence[str]] = self.planner.plan()
        if (left := sorted(self.log.chunks.keys() - self.done.keys())) and self._source.is_signed:
            planned = list(planned)  # reads the signatures for the chunks that are left
        yield left
        yield from planned

    def _revise(self) -> Iterator[list[str]]:
        if self._run.retry_rejected:
            rejected = defaultdict(list)
            pending = self._inventory.rejects_versions.keys() & self._inventory.versions.keys() - self.done.keys()
            for name in [*sorted(pending), *(name for name, result in self.done.items() if result.rejected)]:
                rejected[plan.split_chunk_name(name)[0]].append(name)
            yield from self.planner.retry(lambda unit: self.state.rejected_keys(rejected[unit]))
        yield from self.planner.plan()

    def _undecided(self, unit: int) -> list[int]:
        """Return the numbers of the unit's chunks that are not committed at their newest revision."""
        return [plan.split_chunk_name(name)[1] for name in self.log.names(unit) if name not in self.done]

    def _work_of(self, names: Sequence[str]) -> pa.Table:
        chunks = [self.log.chunks[name] for name in names]
        columns = {
            "chunk": list(names),
            "revision": [chunk.revision for chunk in chunks],
            "hash": [chunk.hash for chunk in chunks],
            "part": [chunk.part for chunk in chunks],
            "keep": [name in self._inventory.versions for name in names],
        }
        return pa.table(columns, WORK).append_column("pairs", pa.array([chunk.pairs for chunk in chunks], pa.int64()))

    def planned(self) -> dict[str, int]:
        """Return the counts of the plan for the report."""
        changed = 0 if self._run.refresh else self.planner.changed
        return {"pairs": self.log.pairs, "repeated_lines": self.log.repeated, "changed_pairs": changed}

    def left_out(self, found: LeftOut) -> LeftOut:
        """Add the counts of files that were not read again to what this run left out."""
        counts = np.zeros(3, np.int64)
        last = self.log.last_slices()
        for unit in self.log.units[: self.planner.old_units]:
            for one in unit.slices:
                is_current = one.file in self.planner.unchanged and one.version == last[one.file].version
                counts += np.array(one.left_out) * is_current
        images, masks, ignored = counts.tolist()
        return replace(
            found,
            unpaired_images=found.unpaired_images + images,
            unpaired_masks=found.unpaired_masks + masks,
            ignored_files=found.ignored_files + ignored,
        )

    def finish(
        self, results: Mapping[str, ChunkResult], on_warning: Callable[[str], None]
    ) -> Mapping[str, ChunkResult]:
        """Complete the output, and return the results of all its committed chunks.

        See `OutputState.finish` and `IndexWriter.complete`.

        Args:
            results: of the chunks that were committed before and by this run.
            on_warning: called with a sentence if the index cannot be written.

        Raises:
            JobFailed: another run has taken the lease, or a committed chunk's file is gone.
            OSError: the store fails.
        """
        inventory = self.state.finish(results, self.log.unused_parts(self._old_plan))
        whole = self._whole(results)
        try:
            if self._is_last(whole):
                self.index.complete(whole, inventory)
        except OSError as error:
            on_warning(f"warning: the index cannot be written ({error}); readers list the output instead")
        return whole

    def _whole(self, results: Mapping[str, ChunkResult]) -> Mapping[str, ChunkResult]:
        """Return the results of all committed chunks."""
        return results

    def _is_last(self, whole: Mapping[str, ChunkResult]) -> bool:
        """Whether no other run will add to these results."""
        return True
