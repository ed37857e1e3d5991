"""The output is its own ledger: what is there is done, and nothing else is believed.

``<job>-<chunk>.parquet``            a chunk's rows; there means decided
``_rejected/<job>-<chunk>.parquet``  the chunk's rejected pairs, written before its rows
``_plan/<job>-<generation>-….parquet``  which pairs are in which chunk; complete once ``….json`` is there
``_receipts/<job>-….parquet``        what committed chunks reported: a cache of the files' footers
``_job.json``                        the settings that every row was made by
``_lease.json``                      who is writing now
``_report.json``                     counts and rates, written last

A file's name follows from its chunk, and a chunk's rows are written only where none are: whoever comes late, a
worker of a dead run or of this one, finds the decision made and adopts it. ``<job>`` is drawn anew when an output
is begun, so that a late worker of an overwritten job cannot write among the new rows.
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
from inpaint_encode.output.parquet import damage_named, parquet_bytes, parquet_file, read_data
from inpaint_encode.schema import EXTRA_COLUMNS, PAIRS, RECEIPT, REJECTS, with_extra_columns
from inpaint_encode.stores import storage

from . import plan
from .lease import check_token

__all__ = ["DECISION_KEY", "Committed", "Inventory", "Ledger"]

DECISION_KEY = b"inpaint_encode.chunk"
"""Key of the JSON in a data file's metadata that says which chunk it decides, and which pairs it rejects."""

_NAME = re.compile(
    r"(?P<folder>_plan/|_receipts/)(?P<job>[0-9a-f]{8})-[0-9a-z-]+\.(?:parquet|json)"
    r"|(?P<chunk_folder>|_rejected/)(?P<chunk_job>[0-9a-f]{8})-(?P<chunk>\d{8})\.parquet"
)


@dataclass(frozen=True, slots=True)  # there is one for every chunk
class Committed:
    """What a chunk's files hold, as decided by whoever was first."""

    encoded: int
    rejected: int
    errors: dict[str, int]
    data_bytes: int
    version: str
    """Of the data file."""
    rejects_version: str
    """Of the rejects file, empty where there is none."""


@dataclass
class Inventory:
    """What one listing of an output found."""

    chunks: set[int] = field(default_factory=set)
    """Decided chunks."""
    versions: dict[int, str] = field(default_factory=dict)
    """Their data files' versions."""
    rejects: set[int] = field(default_factory=set)
    """Chunks with a rejects file."""
    rejects_versions: dict[int, str] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)
    """Parts of complete generations of the plan, relative to the output."""
    receipts: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    """Files of the jobs that this one replaces, to be removed."""
    strangers: list[str] = field(default_factory=list)
    """Data that this package did not write, never to be touched."""


@dataclass(frozen=True)
class Ledger:
    """One job's files in an output; small and plain, so that every worker can carry it."""

    output: str
    job: str
    token: str
    replaces: tuple[str, ...] = ()
    """Jobs that were overwritten here; a late worker of theirs may still write."""

    def uri(self, *parts: str) -> str:
        """Where something of this output is."""
        return storage.join(self.output, *parts)

    def data_uri(self, chunk: int) -> str:
        """Where a chunk's rows are."""
        return self.uri(f"{self.job}-{chunk:08d}.parquet")

    def rejects_uri(self, chunk: int) -> str:
        """Where a chunk's rejected pairs are."""
        return self.uri("_rejected", f"{self.job}-{chunk:08d}.parquet")

    def commit(
        self, work: Mapping[str, Any], data: Iterable[pa.Table], schema: pa.Schema, rejects: pa.Table
    ) -> Committed:
        """Decide a chunk: its rejects first, then its rows, which are there whole or not at all.

        If the chunk was decided before, that decision stands, and what it says is returned.

        Args:
            work: a row of `schema.WORK`; with ``keep`` the rows and rejects that the plan does not ask to encode
                are carried over from the chunk's file.
            data: the rows, a table a row group.
            schema: of them, a `schema.data_schema`.
            rejects: rows of `schema.REJECTS`.

        Raises:
            JobFailed: another run has taken the lease.
            OSError: the store or the disk refuses.
        """
        return self.publish(work, data, schema, rejects, self.still_mine)

    def still_mine(self) -> None:
        """Make sure that this run holds the lease.

        Raises:
            JobFailed: another run has taken it.
        """
        check_token(self.uri("_lease.json"), self.token)

    def publish(
        self,
        work: Mapping[str, Any],
        data: Iterable[pa.Table],
        schema: pa.Schema,
        rejects: pa.Table,
        check: Callable[[], None] = lambda: None,
    ) -> Committed:
        """Do what `commit` does, with ``check`` in the place of its last look at the lease."""
        expect = storage.ABSENT
        if work["keep"]:
            before = _read_decision(self.data_uri(work["chunk"]))
            if before.generation >= work["generation"]:
                return self.adopt(work)
            kept = _kept_keys(work)
            data, rejects = chain(data, [before.rows_of(kept, schema)]), before.rejects_with(rejects, kept)
            expect = before.version
        encoded = parquet_file(data, _with_decision(schema, work, rejects))
        check()
        rejects_version = self._write_rejects(work["chunk"], rejects)
        try:
            version = storage.write(self.data_uri(work["chunk"]), encoded, expect=expect)
        except storage.Conflict:
            return self.adopt(work)
        if work["keep"] and not rejects.num_rows:
            storage.delete(self.rejects_uri(work["chunk"]))
        stored = pq.read_metadata(pa.BufferReader(encoded)).num_rows
        return _committed(stored, rejects, len(encoded), version, rejects_version)

    def adopt(self, work: Mapping[str, Any]) -> Committed:
        """Take a decided chunk's file as the truth, and make its rejects file say the same.

        Raises:
            JobFailed: the file is of an older generation of the plan than this run's.
        """
        decided = _read_decision(self.data_uri(work["chunk"]))
        if decided.generation < work["generation"]:
            raise JobFailed(f"{self.data_uri(work['chunk'])} was written late by a dead run; run the command again")
        return self._agreed(work["chunk"], decided)

    def _agreed(self, chunk: int, decided: _Decision) -> Committed:
        """Make the rejects file say what the data file says."""
        version = self._write_rejects(chunk, decided.rejects)
        if not version:
            storage.delete(self.rejects_uri(chunk))
        return _committed(decided.rows, decided.rejects, len(decided.data), decided.version, version)

    def _write_rejects(self, chunk: int, rejects: pa.Table) -> str:
        return storage.write(self.rejects_uri(chunk), parquet_bytes(rejects)) if rejects.num_rows else ""

    def inventory(self) -> Inventory:
        """List the output once and sort what is there."""
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
                found.strangers.append(path)
        elif (job := name["job"] or name["chunk_job"]) != self.job:
            if job in self.replaces:
                found.foreign.append(path)
            elif name["chunk_folder"] == "":
                found.strangers.append(path)
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
        """Keep one generation of the plan, which counts once all of it is there; return its parts."""
        stem = f"_plan/{self.job}-{generation:04d}"
        self._forget_parts(stem)
        names = []
        for number, part in enumerate(plan.parts(table)):
            names.append(f"{stem}-{number:06d}.parquet")
            storage.write(self.uri(names[-1]), parquet_bytes(part))
        self.still_mine()
        storage.write(self.uri(f"{stem}.json"), json.dumps({"pairs": table.num_rows}).encode())
        return names

    def _forget_parts(self, stem: str) -> None:
        """A run that died while it planned may have left more parts than this one will write."""
        for listed in storage.list_objects(self.uri("_plan")):
            for path in listed.paths:
                if f"_plan/{path}".startswith(stem):
                    storage.delete(self.uri("_plan", path))

    def read_plan(self, parts: list[str], columns: list[str]) -> pa.Table:
        """Return ``columns`` of the planned pairs, all generations of them, with a ``generation`` column.

        Columns are those of `schema.PAIRS` and, if the plan has it, `schema.EXTRA_COLUMNS`.
        """
        known = self._plan_schema(parts[0]) if EXTRA_COLUMNS in columns else PAIRS
        schema = pa.schema([known.field(name) for name in columns])
        tables = [_with_generation(self._read(part, schema), part) for part in parts]
        return pa.concat_tables([_with_generation(schema.empty_table(), "-0"), *tables])

    def _plan_schema(self, part: str) -> pa.Schema:
        data = storage.read(self.uri(part)).data
        with damage_named(self.uri(part)):
            return with_extra_columns(PAIRS, pq.read_schema(pa.BufferReader(data)))

    def planned_chunks(self, parts: list[str]) -> pa.Table:
        """Return `schema.WORK` without ``keep``: each chunk at its newest generation, and the part that states it."""
        tables = []
        for part in parts:
            chunks = _with_generation(self._read(part, pa.schema([PAIRS.field("chunk")])), part)
            once = chunks.group_by(["chunk", "generation"], use_threads=False).aggregate([])
            tables.append(once.append_column("part", pa.array([self.uri(part)] * once.num_rows)))
        return plan.newest(pa.concat_tables(tables))

    def _read(self, path: str, schema: pa.Schema) -> pa.Table:
        data = storage.read(self.uri(path)).data
        with damage_named(self.uri(path)):
            return pq.read_table(pa.BufferReader(data), columns=schema.names).cast(schema)

    def write_receipts(self, run: str, number: int, receipts: list[dict[str, Any]]) -> None:
        """Keep what chunks reported, so that the next run need not open their files."""
        table = pa.Table.from_pylist(receipts, RECEIPT)
        storage.write(self.uri("_receipts", f"{self.job}-{run}-{number:06d}.parquet"), parquet_bytes(table))

    def decided(self, inventory: Inventory, generations: Mapping[int, int]) -> dict[int, Committed]:
        """Return what the chunks hold that are decided at the generation that the plan has for them.

        Receipts answer for most; only a chunk that was committed in a run's last moments is opened, and its
        rejects file is made to agree, since whoever wrote it may have died in between.
        """
        known = self._receipts(inventory)
        answers = {}
        for chunk in inventory.chunks & generations.keys():
            receipt = known.get((chunk, generations[chunk]))
            if receipt and receipt.version == inventory.versions[chunk]:
                answers[chunk] = receipt
            else:
                decision = _read_decision(self.data_uri(chunk))
                if decision.generation == generations[chunk]:
                    answers[chunk] = self._agreed(chunk, decision)
        return answers

    def _receipts(self, inventory: Inventory) -> dict[tuple[int, int], Committed]:
        known = {}
        for path in inventory.receipts:
            for row in self._read(path, RECEIPT).to_pylist():
                known[row["chunk"], row["generation"]] = Committed(
                    row["encoded"],
                    row["rejected"],
                    dict(row["errors"]),
                    row["data_bytes"],
                    row["version"],
                    row["rejects_version"],
                )
        return known

    def settle(self, chunks: Mapping[int, Committed]) -> None:
        """Put right what late workers left: rejects files that the chunks' own files gainsay, replaced jobs' files.

        Raises:
            JobFailed: another run has taken the lease, or a decided chunk's file has gone since.
        """
        self.still_mine()
        inventory = self.inventory()
        if gone := chunks.keys() - inventory.chunks:
            raise JobFailed(
                f"{self.data_uri(min(gone))} was removed while the job ran; the same command writes it again"
            )
        for path in inventory.foreign:
            storage.delete(self.uri(path))
        for chunk in inventory.rejects | chunks.keys():
            if inventory.rejects_versions.get(chunk, "") != chunks[chunk].rejects_version:
                self._agreed(chunk, _read_decision(self.data_uri(chunk)))

    def rejected_keys(self, inventory: Inventory) -> pa.Array:
        """Return the keys of all rejected pairs of decided chunks."""
        files = [f"_rejected/{self.job}-{chunk:08d}.parquet" for chunk in sorted(inventory.rejects & inventory.chunks)]
        tables = [self._read(path, REJECTS) for path in files]
        return pa.concat_tables([REJECTS.empty_table(), *tables])["key"].combine_chunks()


def _with_generation(table: pa.Table, part: str) -> pa.Table:
    generation = pa.scalar(int(part.split("-")[1]), pa.int32())
    return table.append_column("generation", pa.repeat(generation, table.num_rows))


@dataclass(frozen=True)
class _Decision:
    """A chunk's data file, opened."""

    generation: int
    rejects: pa.Table
    data: bytes
    version: str
    rows: int

    def rows_of(self, keys: pa.Array, schema: pa.Schema) -> pa.Table:
        """Its rows of ``keys``."""
        rows_then = read_data(self.data, schema)
        return rows_then.filter(pc.is_in(rows_then["key"], keys))

    def rejects_with(self, rejects: pa.Table, keys: pa.Array) -> pa.Table:
        """The new rejects, and its own of ``keys``."""
        return pa.concat_tables([rejects, self.rejects.filter(pc.is_in(self.rejects["key"], keys))])


def _read_decision(uri: str) -> _Decision:
    blob = storage.read(uri)
    with damage_named(uri):
        metadata = pq.read_metadata(pa.BufferReader(blob.data))
        decision = json.loads(metadata.metadata[DECISION_KEY])
    rejects = pa.Table.from_pylist(decision["rejected"], REJECTS)
    return _Decision(decision["generation"], rejects, blob.data, blob.version, metadata.num_rows)


def _with_decision(schema: pa.Schema, work: Mapping[str, Any], rejects: pa.Table) -> pa.Schema:
    decision = {"chunk": work["chunk"], "generation": work["generation"], "rejected": rejects.to_pylist()}
    return schema.with_metadata({**schema.metadata, DECISION_KEY: json.dumps(decision)})


def _kept_keys(work: Mapping[str, Any]) -> pa.Array:
    pairs = plan.read_chunk(work["part"], work["chunk"])
    return pairs.filter(pc.invert(pairs["encode"]))["key"].combine_chunks()


def _committed(encoded: int, rejects: pa.Table, data_bytes: int, version: str, rejects_version: str) -> Committed:
    counts = rejects["error"].value_counts().to_pylist()
    return Committed(
        encoded, rejects.num_rows, {c["values"]: c["counts"] for c in counts}, data_bytes, version, rejects_version
    )
