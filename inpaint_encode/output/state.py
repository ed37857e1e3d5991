"""The files of an output. The state of a job is derived from them; there is no separate database.

``<job>-<chunk>.parquet``            a chunk's rows; if it exists, the chunk is done
``_rejected/<job>-<chunk>.parquet``  the chunk's rejected pairs: a copy of what its data file's footer has
``_plan/<job>-....json, .parquet``   the plan, see `plan_log`
``_receipts/<job>-....parquet``      the results of committed chunks: a cache of the files' footers
``_index/<job>-....parquet``         files, row groups and keys: a cache of the data files, see `index`
``_index.json``                      names the index of a finished output; missing while a run changes the data files
``_job.json``                        the settings of all rows
``_lease.json``                      the run that is writing now
``_report.json``                     counts and rates, written last

A chunk determines the name of its file. The file is created only if it does not exist, and replaced only if it still
has the version that was read, so two workers never overwrite each other. A late worker, of this run or of a dead one,
finds the file and accepts it. Its footer has the hash of the chunk's planned pairs, so that a file of another plan is
noticed. ``<job>`` is a new random name for each output, so that a late worker of an overwritten job cannot write among
the new rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import JobFailed
from inpaint_encode.parquet_file import ParquetFile, read_footer
from inpaint_encode.schema import RECEIPT, REJECTS, UNIT_INDEX
from inpaint_encode.stores import storage
from inpaint_encode.stores.names import validate_name
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import RangedFile

from . import plan
from .index_files import NOTE, is_hidden, newest_unit_indexes, read_index_file
from .known_keys import hash_keys
from .lease import check_lease_token
from .notes import CHUNK_KEY, parse_chunk_footer
from .parquet import parquet_bytes, parquet_file, read_data, read_parquet, translate_errors
from .rows import row_groups

FOLDERS = ("_plan", "_receipts", "_index", "_rejected", "_leases")
"""Folders of an output in which runs write."""

_NAME = re.compile(
    r"(?P<folder>_plan/|_receipts/|_index/)(?P<job>[0-9a-f]{8})-[0-9a-z.-]+\.(?:parquet|json)"
    r"|(?P<chunk_folder>|_rejected/)(?P<chunk_job>[0-9a-f]{8})-(?P<chunk>\d{6}-\d{5}|\d{8})\.parquet"
)
"""Files of this version, and of version 0.1, whose chunks have eight digits."""

_DELETED = re.compile(
    rf"{_NAME.pattern}|_report\.json|_index\.json|(?:(?:{'|'.join(FOLDERS)})/)?{storage.TEMPORARY}[0-9a-f]{{32}}"
)
"""Files that may be deleted."""

_RECEIPTS = re.compile(r"_receipts/[0-9a-f]{8}-(?P<unit>\d{6})-[0-9a-z-]+\.parquet")

_RESULT = ["chunk", "revision", "hash", "encoded", "rejected", "errors", "data_bytes", "version", "rejects_version"]
"""Columns of receipts and of the index that a resumed run needs."""


class RowGroups(NamedTuple):
    """The row groups of a data file; columns of `inpaint_encode.schema.RECEIPT`."""

    group_rows: list[int]
    group_bytes: list[int]
    footer_bytes: int
    key_hashes: bytes


def read_row_groups(file: Any) -> RowGroups:
    """Read the footer and the keys of a data file.

    Args:
        file: as `inpaint_encode.parquet_file.ParquetFile` accepts it.
    """
    with ParquetFile(file) as parquet:
        metadata = parquet.metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        columns = range(metadata.num_columns)
        return RowGroups(
            group_rows=[group.num_rows for group in groups],
            group_bytes=[sum(group.column(at).total_compressed_size for at in columns) for group in groups],
            footer_bytes=metadata.serialized_size + 8,
            key_hashes=hash_keys(parquet.read(columns=["key"])["key"]).tobytes(),
        )


@dataclass(frozen=True, slots=True)  # one per chunk of the job
class ChunkResult:
    """What the files of a committed chunk contain."""

    encoded: int
    rejected: int
    errors: dict[str, int]
    data_bytes: int
    version: str
    """Version of the data file."""
    rejects_version: str
    """Version of the rejects file; empty if there is none."""
    row_groups: RowGroups | None = field(default=None, compare=False)
    """Only in what `OutputState.commit` returns for a new file."""

    @classmethod
    def from_receipt(cls, receipt: Mapping[str, Any]) -> ChunkResult:
        """Return the result from a row of `RECEIPT`, without its row groups."""
        names = ("encoded", "rejected", "data_bytes", "version", "rejects_version")
        return cls(**{name: receipt[name] for name in names}, errors=dict(receipt["errors"]))

    def to_receipt(self) -> dict[str, Any]:
        """Return the columns of `RECEIPT` that the result has."""
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "row_groups"}
        groups = self.row_groups._asdict() if self.row_groups else dict.fromkeys(RowGroups._fields)
        return values | groups | {"errors": list(self.errors.items())}


@dataclass
class Inventory:
    """The files that one listing of an output found."""

    versions: dict[str, str] = field(default_factory=dict)
    """Versions of the data files, by chunk."""
    rejects_versions: dict[str, str] = field(default_factory=dict)
    """Versions of the rejects files, by chunk."""
    plan: dict[str, int] = field(default_factory=dict)
    """Sizes of the plan's files, by path relative to the output."""
    receipts: list[str] = field(default_factory=list)
    index: list[str] = field(default_factory=list)
    """Files below ``_index/``."""
    replaced_files: list[str] = field(default_factory=list)
    """Files of overwritten jobs, to be deleted."""
    unknown_files: list[str] = field(default_factory=list)
    """Data files that this package did not write; they are never touched."""


@dataclass(frozen=True)
class OutputState:
    """The files of one job in an output; it is small, and every worker has a copy."""

    output: str
    job: str
    token: str
    replaces: tuple[str, ...] = ()
    """Overwritten jobs; their late workers may still write."""
    lease: str = "_lease.json"
    """The lease of this run, relative to the output."""

    def uri(self, *parts: str) -> str:
        """Return the URI of a path in the output."""
        return storage.join(self.output, *parts)

    def data_uri(self, chunk: str) -> str:
        """Return the URI of a chunk's data file."""
        return f"{self.output}/{self.job}-{chunk}.parquet"

    def rejects_uri(self, chunk: str) -> str:
        """Return the URI of a chunk's rejects file."""
        return f"{self.output}/_rejected/{self.job}-{chunk}.parquet"

    def read(self, path: str) -> bytes:
        """Return the contents of a file of the output."""
        return storage.read(self.uri(path)).data

    def check_lease(self) -> None:
        """Check that this run holds the lease.

        `commit` checks it before each chunk, in one request. A data file decides alone which worker commits a chunk,
        but it does not keep a late worker from two other writes to a finished output: data files of an overwritten
        job, which readers without the index would read, and files of rejects, which are written without a condition.

        Raises:
            JobFailed: another run has taken it.
        """
        check_lease_token(self.uri(self.lease), self.token)

    def commit(
        self,
        work: Mapping[str, Any],
        data: Iterable[pa.Table],
        schema: pa.Schema,
        rejects: pa.Table,
        check: Callable[[], None] | None = None,
    ) -> ChunkResult:
        """Write a chunk's rejects, then its rows in one step; if the chunk was committed before, accept that.

        Args:
            work: a row of `inpaint_encode.schema.WORK`. With ``keep``, the rows and rejects that the plan does not ask
                to encode are copied from the chunk's present file.
            data: the rows, one table per row group.
            schema: of the rows, an `inpaint_encode.schema.data_schema`.
            rejects: rows of `inpaint_encode.schema.REJECTS`.
            check: called just before writing; by default `check_lease`.

        Raises:
            JobFailed: another run has taken the lease, or has committed another revision of the chunk.
            OSError: the store or the disk fails.
        """
        chunk, expect = work["chunk"], storage.ABSENT
        if work["keep"]:
            blob = storage.read(self.data_uri(chunk))
            before = _parse_footer(self.data_uri(chunk), pa.BufferReader(blob.data), len(blob.data), blob.version)
            if before.revision >= work["revision"]:
                return self.accept_existing(work)
            pairs = plan.read_chunk(work["part"], chunk, work["hash"])
            kept = pairs.filter(pc.invert(pairs["encode"]))["key"].combine_chunks()
            rows_before = read_data(blob.data, schema)
            data = chain(data, row_groups(rows_before.filter(pc.is_in(rows_before["key"], kept)), schema))
            rejects = pa.concat_tables([rejects, before.rejects.filter(pc.is_in(before.rejects["key"], kept))])
            expect = before.version
        footer = {"chunk": chunk, "revision": work["revision"], "hash": work["hash"], "rejected": rejects.to_pylist()}
        encoded = parquet_file(data, schema.with_metadata({**schema.metadata, CHUNK_KEY: json.dumps(footer)}))
        (check or self.check_lease)()
        rejects_version = ""
        if rejects.num_rows:
            rejects_version = storage.write(self.rejects_uri(chunk), parquet_bytes(rejects))
        try:
            version = storage.write(self.data_uri(chunk), encoded, expect=expect)
        except storage.Conflict:
            return self.accept_existing(work)
        if work["keep"] and not rejects.num_rows:
            self.delete([f"_rejected/{self.job}-{chunk}.parquet"])
        groups = read_row_groups(pa.BufferReader(encoded))
        result = _chunk_result(sum(groups.group_rows), rejects, len(encoded), version, rejects_version)
        return replace(result, row_groups=groups)

    def accept_existing(self, work: Mapping[str, Any]) -> ChunkResult:
        """Write the rejects file as a committed chunk's footer says, and return what the data file contains.

        The rejects are written whatever the data file is, since `commit` has replaced them with those of its own rows.
        The data file stays.

        Raises:
            JobFailed: the file is of another revision of the chunk than ``work``, or has other pairs.
        """
        found = self._read_footer(work["chunk"])
        result = self._align_rejects(work["chunk"], found)
        if found.revision < work["revision"]:
            raise JobFailed(
                f"a worker of an earlier, killed run has just written outdated rows to {self.data_uri(work['chunk'])}; "
                "run the same command again to replace them"
            )
        self._check_hash(work["chunk"], found, plan.PlannedChunk(work["revision"], work["hash"], "", 0))
        return result

    def _check_hash(self, chunk: str, found: _ChunkFile, planned: plan.PlannedChunk) -> None:
        """Check that a data file has the pairs that are planned for its chunk."""
        newer = found.revision > planned.revision
        if newer or (found.revision == planned.revision and not planned.has_hash(found.hash)):
            raise JobFailed(
                f"{self.data_uri(chunk)} has other pairs than the plan has for this chunk, so a part of the plan was "
                "lost or replaced; nothing was changed; restore _plan/, or run `inpaint-encode verify --repair`"
            )

    def _align_rejects(self, chunk: str, found: _ChunkFile) -> ChunkResult:
        """Write the rejects file as the data file's footer says."""
        version = ""
        if found.rejects.num_rows:
            version = storage.write(self.rejects_uri(chunk), parquet_bytes(found.rejects))
        else:
            self.delete([f"_rejected/{self.job}-{chunk}.parquet"])
        return _chunk_result(found.rows, found.rejects, found.size, found.version, version)

    def inventory(self) -> Inventory:
        """List the output once and return its files by kind."""
        found = Inventory()
        for listed in storage.list_objects(self.output):
            for path, version, size in zip(listed.paths, listed.versions, listed.sizes, strict=True):
                self._sort(path, version, size, found)
        found.receipts.sort()
        found.index.sort()
        return found

    def _sort(self, path: str, version: str, size: int, found: Inventory) -> None:
        name = _NAME.fullmatch(path)
        if name is None:
            if not is_hidden(path):
                found.unknown_files.append(path)
        elif (job := name["job"] or name["chunk_job"]) != self.job:
            if job in self.replaces:
                found.replaced_files.append(path)
            elif name["chunk_folder"] == "":
                found.unknown_files.append(path)
        elif name["folder"] == "_plan/":
            found.plan[path] = size
        elif name["folder"] == "_receipts/":
            found.receipts.append(path)
        elif name["folder"] == "_index/":
            found.index.append(path)
        elif name["chunk_folder"]:
            found.rejects_versions[name["chunk"]] = version
        else:
            found.versions[name["chunk"]] = version

    def write_receipts(self, run: str, number: int, receipts: list[dict[str, Any]]) -> None:
        """Write the results of chunks, so that the next run need not open their files; each unit's into one file."""
        by_unit: dict[str, list[dict[str, Any]]] = {}
        for receipt in receipts:
            by_unit.setdefault(receipt["chunk"].partition("-")[0], []).append(receipt)
        for unit, rows in by_unit.items():
            path = f"_receipts/{self.job}-{unit}-{run}-{number:06d}.parquet"
            storage.write(self.uri(path), parquet_bytes(pa.Table.from_pylist(rows, RECEIPT)))

    def committed_chunks(
        self, inventory: Inventory, planned: Mapping[str, plan.PlannedChunk], *, read_only: bool = False
    ) -> dict[str, ChunkResult]:
        """Return the results of the chunks that are committed at their newest revision.

        Those of finished units come from the index, most others from receipts. Only chunks of a run's last moments are
        opened, and their rejects files are written again, since the worker may have died in between.

        Args:
            inventory: the files of the output.
            planned: every chunk of the plan.
            read_only: do not write rejects files; then some results have no version of them.

        Raises:
            JobFailed: a data file has pairs that are not planned for it.
        """
        for chunk in inventory.versions.keys() - planned.keys():
            raise JobFailed(
                f"{self.data_uri(chunk)} belongs to a chunk that is not in the plan, so a part of the plan was lost; "
                "nothing was changed; restore _plan/, or run `inpaint-encode verify --repair`, which rebuilds it or "
                "says which files to move away"
            )
        results = self._results_of_index(inventory, planned)
        results |= self._results_of_receipts(inventory, planned, inventory.versions.keys() - results.keys())
        others = sorted(inventory.versions.keys() - results.keys())
        for chunk, found in zip(others, map_concurrently(self._read_footer, others), strict=True):
            self._check_hash(chunk, found, planned[chunk])
            if found.revision == planned[chunk].revision:
                if read_only:
                    results[chunk] = _chunk_result(found.rows, found.rejects, found.size, found.version, "")
                else:
                    results[chunk] = self._align_rejects(chunk, found)
        return results

    def _results_of_index(
        self, inventory: Inventory, planned: Mapping[str, plan.PlannedChunk]
    ) -> dict[str, ChunkResult]:
        """Return the results of chunks whose unit's index has their planned pairs and the version of their file."""
        results = {}
        indexes = newest_unit_indexes(inventory.index)
        tables = map_concurrently(lambda path: read_index_file(self.uri(path), UNIT_INDEX, _RESULT), indexes.values())
        for (_, unit), table in zip(indexes, tables, strict=True):
            for row in table.to_pylist() if table else ():
                chunk = plan.chunk_name(unit, row["chunk"])
                if _is_current(row, planned.get(chunk), inventory.versions.get(chunk)):
                    results[chunk] = ChunkResult.from_receipt(row)
        return results

    def _results_of_receipts(
        self, inventory: Inventory, planned: Mapping[str, plan.PlannedChunk], wanted: Collection[str]
    ) -> dict[str, ChunkResult]:
        """Return the results of wanted chunks whose receipts have their pairs and the version of their file."""
        results = {}
        units = {plan.split_chunk_name(chunk)[0] for chunk in wanted}
        paths = [path for path in inventory.receipts if unit_of_receipts(path) in units | {None}]
        for path, data in zip(paths, map_concurrently(self.read, paths), strict=True):
            for row in read_parquet(self.uri(path), data, RECEIPT).select(_RESULT).to_pylist():
                chunk = row["chunk"]
                if _is_current(row, planned.get(chunk), inventory.versions.get(chunk)):
                    results[chunk] = ChunkResult.from_receipt(row)
        return results

    def _read_footer(self, chunk: str) -> _ChunkFile:
        file = RangedFile(self.data_uri(chunk), storage.DEFAULT_ACCESS)
        return _parse_footer(self.data_uri(chunk), file, file.size, file.version)

    def finish(self, chunks: Mapping[str, ChunkResult], unused: Iterable[str]) -> Inventory:
        """Correct what late workers left: rejects files that differ from the footers, files that nothing refers to.

        Returns the files of the output before that.

        Args:
            chunks: the committed chunks.
            unused: further files to delete, relative to the output.

        Raises:
            JobFailed: another run has taken the lease, or a committed chunk's file is gone.
        """
        self.check_lease()
        inventory = self.inventory()
        if gone := chunks.keys() - inventory.versions.keys():
            raise JobFailed(
                f"{self.data_uri(min(gone))} was deleted while the job ran; run the same command to write it again"
            )
        self.delete([*inventory.replaced_files, *unused])
        wrong = [
            chunk
            for chunk in inventory.rejects_versions.keys() | chunks.keys()
            if chunk in chunks and inventory.rejects_versions.get(chunk, "") != chunks[chunk].rejects_version
        ]
        for chunk, found in zip(wrong, map_concurrently(self._read_footer, wrong), strict=True):
            self._align_rejects(chunk, found)
        return inventory

    def remove_note(self) -> None:
        """Remove the note of the output's index; call it before a data file is replaced or removed.

        Raises:
            OSError: the store fails.
        """
        self.delete([NOTE])

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files of the output: only those whose names are of its format.

        Raises:
            ValueError: a path is no such name. The callers' paths are from `inventory`, or were validated.
        """
        for _ in map_concurrently(lambda path: storage.delete(self.uri(validate_name(path, _DELETED))), paths):
            pass

    def rejected_keys(self, chunks: Iterable[str]) -> pa.Array:
        """Return the keys of the rejected pairs of committed chunks that have any."""
        tables = map_concurrently(self._rejects, chunks)
        return pa.concat_tables([REJECTS.empty_table(), *tables])["key"].combine_chunks()

    def _rejects(self, chunk: str) -> pa.Table:
        try:
            return read_parquet(self.rejects_uri(chunk), storage.read(self.rejects_uri(chunk)).data, REJECTS)
        except FileNotFoundError:  # it is a copy
            return self._read_footer(chunk).rejects


def unit_of_receipts(path: str) -> int | None:
    """Return the number of the unit that a file of receipts belongs to; None if its name has none."""
    name = _RECEIPTS.fullmatch(path)
    return int(name["unit"]) if name else None


def _is_current(row: Mapping[str, Any], planned: plan.PlannedChunk | None, version: str | None) -> bool:
    """Whether a result has the planned pairs of its chunk and the version of its data file."""
    if planned is None or row["version"] != version:
        return False
    return row["revision"] == planned.revision and planned.has_hash(row["hash"])


@dataclass(frozen=True)
class _ChunkFile:
    """What the footer of a chunk's data file says."""

    revision: int
    hash: str
    """Of the chunk's planned pairs."""
    rejects: pa.Table
    rows: int
    size: int
    version: str


def _parse_footer(uri: str, file: Any, size: int, version: str) -> _ChunkFile:
    with translate_errors(uri):
        metadata = read_footer(file)
        footer = parse_chunk_footer(metadata.metadata)
        rejects = pa.Table.from_pylist(footer.rejected, REJECTS)
        return _ChunkFile(footer.revision, footer.hash, rejects, metadata.num_rows, size, version)


def _chunk_result(encoded: int, rejects: pa.Table, data_bytes: int, version: str, rejects_version: str) -> ChunkResult:
    counts = rejects["error"].value_counts().to_pylist()
    return ChunkResult(
        encoded, rejects.num_rows, {c["values"]: c["counts"] for c in counts}, data_bytes, version, rejects_version
    )
