"""Reads the plan of an output of version 0.1, which verify checks and nothing writes any more.

``_plan/<job>-<generation>-<part>.parquet``  pairs of some chunks
``_plan/<job>-<generation>.json``            number of the generation's pairs; it was written last

Chunks were numbered through the whole output, and data files named a generation of the plan instead of a revision and a
hash. If several generations have a chunk, the newest wins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ValidationError

from inpaint_encode.errors import JobFailed
from inpaint_encode.parquet_file import read_table
from inpaint_encode.schema import EXTRA_COLUMNS, PAIR_FIELDS, RECEIPT
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently

from .parquet import read_parquet
from .plan import PlannedChunk
from .plan_check import CheckedPlan, KeyCounter, PlanProblem
from .plan_log import PlanLog
from .state import OutputState

PAIRS = pa.schema([("chunk", pa.int64()), *PAIR_FIELDS, ("encode", pa.bool_())])
"""Columns of the plan, without the source's own."""

_PART = re.compile(r"_plan/[0-9a-f]{8}-(?P<generation>\d{4})-\d{6}\.parquet")
_MARKER = re.compile(r"_plan/[0-9a-f]{8}-(?P<generation>\d{4})\.json")
_COUNTS = ["encoded", "rejected", "errors", "data_bytes", "version", "rejects_version", "counters", "fatal"]
_RECEIPT = pa.schema([("chunk", pa.int64()), ("generation", pa.int32()), *map(RECEIPT.field, _COUNTS)])


class _Marker(BaseModel):
    pairs: int


def is_old(chunk: str) -> bool:
    """Return whether this is the name of a chunk of version 0.1."""
    return "-" not in chunk


def chunk_name(number: int) -> str:
    """Return the name of a chunk, which is part of the names of its files."""
    return f"{number:08d}"


def check_plan(state: OutputState, files: Mapping[str, int]) -> CheckedPlan:
    """Read all plan files, see `plan_check.check_plan`; chunks have generations as revisions, and no hashes.

    Raises:
        JobFailed: a file cannot be read, though it is not damaged.
    """
    checked = CheckedPlan(PlanLog(state, pa.schema([])))
    markers = {int(name["generation"]): name[0] for name in map(_MARKER.fullmatch, files) if name}
    parts = [name for name in map(_PART.fullmatch, sorted(files)) if name and int(name["generation"]) in markers]
    rows = dict.fromkeys(markers, 0)
    newest: dict[int, PlannedChunk] = {}
    for name, data in zip(parts, map_concurrently(lambda part: state.read(part[0]), parts), strict=True):
        uri, generation = state.uri(name[0]), int(name["generation"])
        try:
            table = read_parquet(uri, data, PAIRS).select(["chunk", "key"])
        except JobFailed as error:
            sentence = f"cannot be read, so its chunks are not checked ({error.__cause__})"
            checked.problems.append(PlanProblem(name[0], sentence))
            continue
        rows[generation] += table.num_rows
        counts = table.group_by("chunk").aggregate([("key", "count")])
        for chunk, pairs in zip(counts["chunk"].to_pylist(), counts["key_count"].to_pylist(), strict=True):
            before = newest.get(chunk)
            if before is None or before.revision < generation:
                newest[chunk] = PlannedChunk(generation, "", uri, pairs)
    if not parts and not checked.problems:
        checked.problems.append(PlanProblem("_plan", "has no complete plan"))
    if not checked.problems:
        checked.problems += _marker_problems(state, markers, rows)
    checked.log.chunks = {chunk_name(chunk): one for chunk, one in sorted(newest.items())}
    used = sorted({one.part for one in newest.values()})
    checked.keys = KeyCounter(lambda number: _newest_keys(used[number], newest))
    for number, uri in enumerate(used):
        checked.keys.add(number, _newest_keys(uri, newest))
    return checked


def _newest_keys(uri: str, newest: Mapping[int, PlannedChunk]) -> pa.ChunkedArray:
    """Return the keys in a part whose chunks have no newer generation."""
    table = _read_part(uri)
    chunks = pa.array([chunk for chunk, one in newest.items() if one.part == uri], pa.int64())
    return table["key"].filter(pc.is_in(table["chunk"], value_set=chunks)).drop_null()


def _marker_problems(state: OutputState, markers: Mapping[int, str], rows: Mapping[int, int]) -> Iterator[PlanProblem]:
    """Compare the number of rows of each generation with its marker."""
    for generation, path in sorted(markers.items()):
        try:
            expected = _Marker.model_validate_json(state.read(path)).pairs
        except (ValidationError, FileNotFoundError) as error:
            yield PlanProblem(path, f"cannot be read ({str(error).splitlines()[0]})")
            continue
        if rows[generation] != expected:
            yield PlanProblem(path, f"has {expected:,} pairs, but its Parquet files have {rows[generation]:,}")


@lru_cache(maxsize=2)
def _read_part(uri: str) -> pa.Table:
    table = read_table(storage.read(uri).data)
    return table.rename_columns([EXTRA_COLUMNS if name == "carried" else name for name in table.column_names])


def read_chunk(part_uri: str, chunk: str) -> pa.Table:
    """Return the pairs of the chunk with this name, see `plan.read_chunk`."""
    part = _read_part(part_uri)
    return part.filter(pc.and_(pc.equal(part["chunk"], int(chunk)), pc.is_valid(part["key"])))


def parse_receipts(uri: str, data: bytes) -> list[dict[str, Any]]:
    """Return receipts as rows of `inpaint_encode.schema.RECEIPT`.

    Raises:
        JobFailed: the file is damaged.
    """
    return [
        {**row, "chunk": chunk_name(row["chunk"]), "revision": row["generation"], "hash": ""}
        for row in read_parquet(uri, data, _RECEIPT).to_pylist()
    ]
