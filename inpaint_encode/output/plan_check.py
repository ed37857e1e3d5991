"""Reads a plan that may be damaged: every problem by file, and what is intact."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import JobFailed
from inpaint_encode.parquet_file import read_schema
from inpaint_encode.schema import EXTRA_COLUMNS, data_schema, extra_columns_schema
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import RangedFile

from . import plan
from .known_keys import KnownKeys, hash_keys
from .notes import MAX_NOTE_BYTES, parse_metadata_footer
from .parquet import read_parquet, translate_errors
from .plan_log import MARKER, PART, DamagedPlan, Marker, Part, PlanLog, parse_marker
from .state import Inventory, OutputState

MAX_LOST = 1_000
"""Largest number of consecutive markers that are rebuilt, of units or of revisions."""


class PlanProblem(NamedTuple):
    """One problem of one file of the plan."""

    path: str
    """Relative to the output."""
    sentence: str
    """What is wrong; the file is the subject."""


class LostMarker(NamedTuple):
    """A marker that is missing or damaged."""

    version: str
    """Of the damaged file; `storage.ABSENT` if the file is missing."""
    replaces: str
    """Hash by which the next marker names it; empty if no marker follows."""


class KeyCounter:
    """Counts the keys of a plan, and those that occur more than once, with 12 bytes a key.

    Args:
        read_keys: returns the keys of a unit that was added; called for units that may have a key of another one.
    """

    def __init__(self, read_keys: Callable[[int], pa.ChunkedArray]) -> None:
        self.count = self.repeated = 0
        self.first_repeated = ""
        self.known = KnownKeys()
        self._read_keys = read_keys

    def add(self, unit: int, keys: pa.ChunkedArray) -> None:
        """Add the keys of the next unit."""
        self.count += len(keys)
        hashes = hash_keys(keys)
        if len(keys) - pc.count_distinct(keys).as_py():
            counts = keys.value_counts()
            several = counts.filter(pc.greater(counts.field("counts"), 1))
            self._add_repeated(several.field("values"), pc.sum(several.field("counts")).as_py() - len(several))
        positions, units = self.known.find(hashes)
        for other in np.unique(units).tolist():
            candidates = keys.take(np.unique(positions[units == other]))
            both = candidates.filter(pc.is_in(candidates, value_set=self._read_keys(other)))
            self._add_repeated(both, len(both))
        self.known.add(hashes, unit)

    def _add_repeated(self, keys: pa.Array, count: int) -> None:
        self.repeated += count
        if count and not self.first_repeated:
            self.first_repeated = keys[0].as_py()


@dataclass
class CheckedPlan:
    """What `check_plan` found."""

    log: PlanLog
    """All units; a marker without chunks stands for each lost one."""
    intact: dict[tuple[int, int], tuple[Marker, bytes]] = field(default_factory=dict)
    """Intact markers and their bytes, by unit and revision."""
    lost: dict[tuple[int, int], LostMarker] = field(default_factory=dict)
    """Lost markers, by unit and revision."""
    lost_parts: set[str] = field(default_factory=set)
    """URIs of used parts that are missing or damaged."""
    problems: list[PlanProblem] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rows = lru_cache(maxsize=4)(self._rows)
        self.keys = KeyCounter(lambda unit: self.rows(unit)["key"])

    def _rows(self, unit: int) -> pa.Table:
        """Return the rows of a unit's intact parts, see `PlanLog.read_parts`."""
        uris = ((part, self.log.part_uri(part)) for part in self.log.used_parts(unit))
        return self.log.read_parts(unit, [part for part, uri in uris if uri not in self.lost_parts])


def find_extra_columns(state: OutputState, inventory: Inventory) -> pa.Schema:
    """Return a schema with the `inpaint_encode.schema.EXTRA_COLUMNS` of the plan; empty if the source has none.

    They are read from the first part that is intact, or from the first such data file.

    Args:
        state: of the output.
        inventory: its files.
    """
    for path in filter(PART.fullmatch, sorted(inventory.plan)):
        with suppress(JobFailed, FileNotFoundError), translate_errors(state.uri(path)):
            found = read_schema(state.read(path))
            return pa.schema([one for one in found if one.name == EXTRA_COLUMNS and pa.types.is_struct(one.type)])
    for chunk in sorted(inventory.versions):
        with suppress(JobFailed, FileNotFoundError), translate_errors(uri := state.data_uri(chunk)):
            found = read_schema(RangedFile(uri, storage.DEFAULT_ACCESS))
            own = data_schema(parse_metadata_footer(found.metadata))
            return extra_columns_schema(list(found)[len(own) :])
    return pa.schema([])


def check_plan(state: OutputState, files: Mapping[str, int], extra: pa.Schema) -> CheckedPlan:
    """Read all markers and all used parts of a plan, and look for repeated keys.

    The keys are compared by their hashes, 12 bytes a key, and exactly where two hashes agree.

    Args:
        state: of the output; nothing is written.
        files: sizes of the files below ``_plan/`` by path, from a listing.
        extra: a schema with the `inpaint_encode.schema.EXTRA_COLUMNS` of the plan.

    Raises:
        JobFailed: a file cannot be read, though it is not damaged.
    """
    checked = CheckedPlan(PlanLog(state, extra))
    try:
        _check_markers(checked, state, files)
        _check_parts(checked, state, files)
    except OSError as error:
        raise JobFailed(f"the plan of {state.output} cannot be read: {error}") from error
    return checked


def _check_markers(checked: CheckedPlan, state: OutputState, files: Mapping[str, int]) -> None:
    names = {(int(name["unit"]), int(name["revision"])): name[0] for name in map(MARKER.fullmatch, files) if name}
    # A name alone proves nothing: a marker that is far after all others would make as many lost ones.
    for at in [at for at in names if at[0] > len(names) + MAX_LOST or at[1] > len(names) + MAX_LOST]:
        checked.problems.append(PlanProblem(names.pop(at), "has a number far after all others; move it away yourself"))
    read = map_concurrently(lambda path: _read(state, path, MAX_NOTE_BYTES), names.values())
    blobs = dict(zip(names, read, strict=True))
    parsed: dict[tuple[int, int], Marker] = {}
    sentences: dict[tuple[int, int], str] = {}
    for at, blob in blobs.items():
        if blob is not None:
            try:
                marker = parse_marker("", blob.data)
            except DamagedPlan as error:
                sentences[at] = f"cannot be read: it {error.sentence.removeprefix('cannot be read ')}"
                continue
            if (marker.unit, marker.revision) == at:
                parsed[at] = marker
            else:
                sentences[at] = f"is the marker of revision {marker.revision} of unit {marker.unit}"
    revisions = {unit: 1 + max(rows) for unit, rows in _grouped(names)}
    for unit in range(1 + max(revisions, default=-1)):
        for revision in range(revisions.get(unit, 1)):
            at = unit, revision
            blob, named = blobs.get(at), _named_by_next(parsed, unit, revision)
            previous = checked.log.previous(unit, revision)
            if blob and at in parsed and parsed[at].previous != previous:
                sentences[at] = "does not follow the marker before it"
            elif (
                blob
                and at in parsed
                and named not in ("", parsed[at].replaces or hashlib.sha256(blob.data).hexdigest())
            ):
                sentences[at] = "has other contents than the marker after it says"
            if blob and at in parsed and at not in sentences:
                checked.intact[at] = parsed[at], blob.data
                checked.log.add(parsed[at], blob.data)
                continue
            checked.problems.append(PlanProblem(checked.log.marker_path(*at), sentences.get(at, "is missing")))
            checked.lost[at] = LostMarker(blob.version if blob else storage.ABSENT, named)
            empty = Marker.without_pairs(unit, revision, previous, replaces=named)
            checked.log.add(empty, b"")


def _read(state: OutputState, path: str, max_bytes: int = sys.maxsize) -> storage.Blob | None:
    """Return a file of the plan, without its contents if it is too large, or None if it is missing."""
    try:
        return storage.read(state.uri(path), max_bytes=max_bytes)
    except FileNotFoundError:
        return None
    except storage.TooLarge:
        return storage.Blob(b"", storage.stat(state.uri(path)).version)


def _grouped(names: Mapping[tuple[int, int], str]) -> Iterator[tuple[int, list[int]]]:
    for unit, group in groupby(sorted(names), key=lambda at: at[0]):
        yield unit, [revision for _, revision in group]


def _named_by_next(parsed: Mapping[tuple[int, int], Marker], unit: int, revision: int) -> str:
    """Return the hash that the markers after this one name; empty if there is none."""
    followers = [(unit, revision + 1)] if revision else [(unit + 1, 0), (unit, 1)]
    return next((parsed[at].previous for at in followers if at in parsed), "")


def _check_parts(checked: CheckedPlan, state: OutputState, files: Mapping[str, int]) -> None:
    log = checked.log
    used = [(unit.number, part) for unit in log.units for part in log.used_parts(unit.number)]
    read = map_concurrently(lambda one: _read_part(state, files, log, *one), used)
    for unit, found in groupby(zip(used, read, strict=True), key=lambda one: one[0][0]):
        keys: list[pa.Array] = []
        for (_, part), (chunks, sentence) in found:
            keys += chunks
            if sentence:
                checked.lost_parts.add(state.uri(part.path))
                checked.problems.append(PlanProblem(part.path, sentence))
        checked.keys.add(unit, pa.chunked_array(keys, pa.string()))


def _read_part(
    state: OutputState, files: Mapping[str, int], log: PlanLog, unit: int, part: Part
) -> tuple[list[pa.Array], str]:
    """Return the keys of the newest rows in a part, or what is wrong with it."""
    blob = _read(state, part.path) if part.path in files else None
    if blob is None:
        return [], "is missing"
    if hashlib.sha256(blob.data).hexdigest() != part.sha256:
        return [], "has other contents than its marker says"
    try:
        table = read_parquet(state.uri(part.path), blob.data, log.schema)
    except JobFailed as error:
        return [], f"cannot be read ({error.__cause__})"
    table = table.filter(pc.is_in(table["chunk"], value_set=pa.array(log.newest(unit, part), pa.int32())))
    hashes = {one.number: one.hash for one in plan.summarize(table)}
    for number in log.newest(unit, part):
        if hashes.get(number) != log.chunks[name := plan.chunk_name(unit, number)].hash:
            return [], f"has other pairs for chunk {name} than its marker says"
    return table["key"].drop_null().chunks, ""
