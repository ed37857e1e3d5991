"""The files of an output. The state of a job is derived from them; there is no separate database.

``<job>-<chunk>.parquet``            a chunk's rows; if it exists, the chunk is done
``_rejected/<job>-<chunk>.parquet``  the chunk's rejected pairs, written before its rows
``_plan/<job>-<generation>-....parquet``  pairs by chunk; a generation is complete once its ``.json`` exists
``_receipts/<job>-....parquet``       the results of committed chunks: a cache of the files' footers
``_job.json``                        the settings of all rows
``_lease.json``                      the run that is writing now
``_report.json``                     counts and rates, written last

A chunk determines the name of its file, and its rows are written only if the file does not exist. A late worker, of
this run or of a dead one, finds the file and accepts it. ``<job>`` is a new random name for each output, so that a late
worker of an overwritten job cannot write among the new rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from inpaint_encode.errors import JobFailed
from inpaint_encode.schema import EXTRA_COLUMNS, PAIRS, RECEIPT, REJECTS, with_extra_columns
from inpaint_encode.stores import storage

from . import plan
from .lease import check_lease_token
from .parquet import parquet_bytes, parquet_file, read_data, translate_errors
from .rows import row_groups

CHUNK_KEY = b"inpaint_encode.chunk"
"""Key of the JSON in a data file's metadata with its chunk, its generation and the rejected pairs."""

_NAME = re.compile(
    r"(?P<folder>_plan/|_receipts/)(?P<job>[0-9a-f]{8})-[0-9a-z-]+\.(?:parquet|json)"
    r"|(?P<chunk_folder>|_rejected/)(?P<chunk_job>[0-9a-f]{8})-(?P<chunk>\d{8})\.parquet"
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


@dataclass
class Inventory:
    """The files that one listing of an output found."""

    chunks: set[int] = field(default_factory=set)
    """Chunks with a data file."""
    versions: dict[int, str] = field(default_factory=dict)
    """Versions of the data files."""
    rejects: set[int] = field(default_factory=set)
    """Chunks with a rejects file."""
    rejects_versions: dict[int, str] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    """Plan files of complete generations, relative to the output."""
    receipts: list[str] = field(default_factory=list)
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

    def uri(self, *parts: str) -> str:
        """Return the URI of a path in the output."""
        return storage.join(self.output, *parts)

    def data_uri(self, chunk: int) -> str:
        """Return the URI of a chunk's data file."""
        return f"{self.output}/{self.job}-{chunk:08d}.parquet"

    def rejects_uri(self, chunk: int) -> str:
        """Return the URI of a chunk's rejects file."""
        return f"{self.output}/_rejected/{self.job}-{chunk:08d}.parquet"

    def check_lease(self) -> None:
        """Check that this run holds the lease.

        Raises:
            JobFailed: another run has taken it.
        """
        check_lease_token(f"{self.output}/_lease.json", self.token)

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
            JobFailed: another run has taken the lease.
            OSError: the store or the disk fails.
        """
        chunk, expect = work["chunk"], storage.ABSENT
        if work["keep"]:
            before = _read_chunk_file(self.data_uri(chunk))
            if before.generation >= work["generation"]:
                return self.accept_existing(work)
            pairs = plan.read_chunk(work["part"], chunk)
            kept = pairs.filter(pc.invert(pairs["encode"]))["key"].combine_chunks()
            rows_before = read_data(before.data, schema)
            data = chain(data, row_groups(rows_before.filter(pc.is_in(rows_before["key"], kept)), schema))
            rejects = pa.concat_tables([rejects, before.rejects.filter(pc.is_in(before.rejects["key"], kept))])
            expect = before.version
        footer = {"chunk": chunk, "generation": work["generation"], "rejected": rejects.to_pylist()}
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
            storage.delete(self.rejects_uri(chunk))
        rows = pq.read_metadata(pa.BufferReader(encoded)).num_rows
        return _chunk_result(rows, rejects, len(encoded), version, rejects_version)

    def accept_existing(self, work: Mapping[str, Any]) -> ChunkResult:
        """Return what a committed chunk's file contains, and write the rejects file accordingly.

        Raises:
            JobFailed: the file is of an older generation of the plan than this run's.
        """
        found = _read_chunk_file(self.data_uri(work["chunk"]))
        if found.generation < work["generation"]:
            raise JobFailed(
                f"a worker of an earlier, killed run has just written outdated rows to {self.data_uri(work['chunk'])}; "
                "run the same command again to replace them"
            )
        return self._align_rejects(work["chunk"], found)

    def _align_rejects(self, chunk: int, found: _ChunkFile) -> ChunkResult:
        """Write the rejects file as the data file's footer says."""
        version = ""
        if found.rejects.num_rows:
            version = storage.write(self.rejects_uri(chunk), parquet_bytes(found.rejects))
        else:
            storage.delete(self.rejects_uri(chunk))
        return _chunk_result(found.rows, found.rejects, len(found.data), found.version, version)

    def inventory(self) -> Inventory:
        """List the output once and return its files by kind."""
        found = Inventory()
        plan_files: list[str] = []
        for listed in storage.list_objects(self.output):
            for path, version in zip(listed.paths, listed.versions, strict=True):
                self._sort(path, version, found, plan_files)
        complete = {path.removesuffix(".json") for path in plan_files if path.endswith(".json")}
        found.parts = sorted(p for p in plan_files if p.endswith(".parquet") and p.rpartition("-")[0] in complete)
        found.receipts.sort()
        return found

    def _sort(self, path: str, version: str, found: Inventory, plan_files: list[str]) -> None:
        name = _NAME.fullmatch(path)
        if name is None:
            if not path.startswith("_"):
                found.unknown_files.append(path)
        elif (job := name["job"] or name["chunk_job"]) != self.job:
            if job in self.replaces:
                found.replaced_files.append(path)
            elif name["chunk_folder"] == "":
                found.unknown_files.append(path)
        elif name["folder"] == "_plan/":
            plan_files.append(path)
        elif name["folder"] == "_receipts/":
            found.receipts.append(path)
        elif name["chunk_folder"]:
            found.rejects.add(int(name["chunk"]))
            found.rejects_versions[int(name["chunk"])] = version
        else:
            found.chunks.add(int(name["chunk"]))
            found.versions[int(name["chunk"])] = version

    def write_plan(self, generation: int, table: pa.Table) -> list[str]:
        """Write one generation of the plan and return its files; its ``.json``, written last, makes it complete."""
        stem = f"_plan/{self.job}-{generation:04d}"
        for listed in storage.list_objects(self.uri("_plan")):
            for path in listed.paths:
                if f"_plan/{path}".startswith(stem):  # a run that died while planning may have left more files
                    storage.delete(self.uri("_plan", path))
        names = []
        for number, part in enumerate(plan.parts(table)):
            names.append(f"{stem}-{number:06d}.parquet")
            storage.write(self.uri(names[-1]), parquet_bytes(part))
        self.check_lease()
        storage.write(self.uri(f"{stem}.json"), json.dumps({"pairs": table.num_rows}).encode())
        return names

    def read_plan(self, parts: list[str], columns: list[str]) -> pa.Table:
        """Return columns of all generations of the plan, and a ``generation`` column.

        Args:
            parts: plan files.
            columns: names in `inpaint_encode.schema.PAIRS`, and `EXTRA_COLUMNS` if the plan has it.
        """
        known = PAIRS
        if EXTRA_COLUMNS in columns:
            data = storage.read(self.uri(parts[0])).data
            with translate_errors(self.uri(parts[0])):
                known = with_extra_columns(PAIRS, pq.read_schema(pa.BufferReader(data)))
        schema = pa.schema([known.field(name) for name in columns])
        tables = [_with_generation(self._read(part, schema), part) for part in parts]
        return pa.concat_tables([_with_generation(schema.empty_table(), "-0"), *tables])

    def planned_chunks(self, parts: list[str]) -> pa.Table:
        """Return `inpaint_encode.schema.WORK` without ``keep``: each chunk's newest generation and its plan file."""
        tables = []
        for part in parts:
            chunks = _with_generation(self._read(part, pa.schema([PAIRS.field("chunk")])), part)
            once = chunks.group_by(["chunk", "generation"], use_threads=False).aggregate([])
            tables.append(once.append_column("part", pa.array([self.uri(part)] * once.num_rows)))
        return plan.newest(pa.concat_tables(tables))

    def _read(self, path: str, schema: pa.Schema) -> pa.Table:
        data = storage.read(self.uri(path)).data
        with translate_errors(self.uri(path)):
            return pq.read_table(pa.BufferReader(data), columns=schema.names).cast(schema)

    def write_receipts(self, run: str, number: int, receipts: list[dict[str, Any]]) -> None:
        """Write the results of chunks, so that the next run need not open their files."""
        table = pa.Table.from_pylist(receipts, RECEIPT)
        storage.write(self.uri("_receipts", f"{self.job}-{run}-{number:06d}.parquet"), parquet_bytes(table))

    def committed_chunks(self, inventory: Inventory, generations: Mapping[int, int]) -> dict[int, ChunkResult]:
        """Return the results of the chunks that are committed at their newest generation.

        Most come from receipts. Only chunks of a run's last moments are opened, and their rejects files are written
        again, since the worker may have died in between.

        Args:
            inventory: the files of the output.
            generations: each planned chunk's newest generation.
        """
        known = {}
        for path in inventory.receipts:
            for row in self._read(path, RECEIPT).to_pylist():
                names = ("encoded", "rejected", "data_bytes", "version", "rejects_version")
                values = {name: row[name] for name in names}
                known[row["chunk"], row["generation"]] = ChunkResult(**values, errors=dict(row["errors"]))
        results = {}
        for chunk in inventory.chunks & generations.keys():
            receipt = known.get((chunk, generations[chunk]))
            if receipt and receipt.version == inventory.versions[chunk]:
                results[chunk] = receipt
            else:
                found = _read_chunk_file(self.data_uri(chunk))
                if found.generation == generations[chunk]:
                    results[chunk] = self._align_rejects(chunk, found)
        return results

    def finish(self, chunks: Mapping[int, ChunkResult]) -> None:
        """Correct what late workers left: rejects files that differ from the footers, files of overwritten jobs.

        Raises:
            JobFailed: another run has taken the lease, or a committed chunk's file is gone.
        """
        self.check_lease()
        inventory = self.inventory()
        if gone := chunks.keys() - inventory.chunks:
            raise JobFailed(
                f"{self.data_uri(min(gone))} was deleted while the job ran; run the same command to write it again"
            )
        for path in inventory.replaced_files:
            storage.delete(self.uri(path))
        for chunk in inventory.rejects | chunks.keys():
            if inventory.rejects_versions.get(chunk, "") != chunks[chunk].rejects_version:
                self._align_rejects(chunk, _read_chunk_file(self.data_uri(chunk)))

    def rejected_keys(self, inventory: Inventory) -> pa.Array:
        """Return the keys of all rejected pairs of committed chunks."""
        files = [f"_rejected/{self.job}-{chunk:08d}.parquet" for chunk in sorted(inventory.rejects & inventory.chunks)]
        tables = [self._read(path, REJECTS) for path in files]
        return pa.concat_tables([REJECTS.empty_table(), *tables])["key"].combine_chunks()


def _with_generation(table: pa.Table, part: str) -> pa.Table:
    generation = pa.scalar(int(part.split("-")[1]), pa.int32())
    return table.append_column("generation", pa.repeat(generation, table.num_rows))


@dataclass(frozen=True)
class _ChunkFile:
    """A chunk's data file and what its footer says."""

    generation: int
    rejects: pa.Table
    data: bytes
    version: str
    rows: int


def _read_chunk_file(uri: str) -> _ChunkFile:
    blob = storage.read(uri)
    with translate_errors(uri):
        metadata = pq.read_metadata(pa.BufferReader(blob.data))
        footer = json.loads(metadata.metadata[CHUNK_KEY])
    rejects = pa.Table.from_pylist(footer["rejected"], REJECTS)
    return _ChunkFile(footer["generation"], rejects, blob.data, blob.version, metadata.num_rows)


def _chunk_result(encoded: int, rejects: pa.Table, data_bytes: int, version: str, rejects_version: str) -> ChunkResult:
    counts = rejects["error"].value_counts().to_pylist()
    return ChunkResult(
        encoded, rejects.num_rows, {c["values"]: c["counts"] for c in counts}, data_bytes, version, rejects_version
    )
