"""Rebuilds lost files of a plan from what is proved: parts that are still there, and the data files.

A lost marker is rebuilt from its parts if their hashes agree with the footers of the data files, else from the data
files: their rows and the rejects in their footers are the planned pairs. A marker that replaces a lost one has the hash
by which the next marker names it. Chunks of a lost part are planned in a further revision: as their data files have
them, or without pairs if they have no data file. Pairs that nothing proves are not in the plan afterwards, so the last
unit's slices make the next run read the whole source.

Nothing that can be read is replaced: a marker is written only if its name is free, or if the file with its name is
still the damaged one that was read. The last unit is written before the other markers, so that a plan whose repair was
interrupted is still damaged.
"""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import JobFailed
from inpaint_encode.parquet_file import ParquetFile
from inpaint_encode.schema import DUPLICATE_KEY, EXTRA_COLUMNS, PAIR_FIELDS
from inpaint_encode.sources.pairs import Slice
from inpaint_encode.sources.part_uris import without_suffix
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import RangedFile

from . import plan
from .known_keys import KnownKeys, hash_keys
from .notes import parse_chunk_footer
from .parquet import read_parquet, translate_errors
from .plan_check import MAX_LOST, CheckedPlan, LostMarker, PlanProblem
from .plan_log import PART, MarkedChunk, Marker, Part, PlanLog
from .state import OutputState


class Committed(NamedTuple):
    """What the footer of an intact data file says."""

    revision: int
    hash: str


@dataclass(frozen=True)
class Rebuilt:
    """A marker to write."""

    unit: int
    revision: int
    lost: LostMarker
    parts: tuple[str, ...] = ()
    """Paths of the parts from which it is rebuilt; if there are none, the chunks are."""
    numbers: tuple[int, ...] = ()
    """Chunks in ``parts``, or chunks to rebuild from their data files."""
    empty: tuple[int, ...] = ()
    """Chunks that are planned without pairs."""


class PlanRepair:
    """What is to be written so that a damaged plan is complete.

    Args:
        state: of the output.
        checked: its plan.
        files: paths of the plan's files.
        committed: footers of all intact data files, by chunk.

    Raises:
        JobFailed: a file cannot be read, though it is not damaged.
    """

    def __init__(
        self, state: OutputState, checked: CheckedPlan, files: Collection[str], committed: Mapping[str, Committed]
    ) -> None:
        self._state, self._checked, self._log = state, checked, checked.log
        self._groups: defaultdict[tuple[int, int], defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        for path in sorted(files):
            if name := PART.fullmatch(path):
                stem = path.rpartition("-")[0]
                self._groups[int(name["unit"]), int(name["revision"])][stem].append(path)
        self._committed: defaultdict[int, dict[int, Committed]] = defaultdict(dict)
        for chunk, one in committed.items():
            unit, number = plan.split_chunk_name(chunk)
            known = len(self._log.units[unit].revisions) if unit < len(self._log.units) else 0
            if unit < len(self._log.units) + MAX_LOST and one.revision < known + MAX_LOST:
                self._committed[unit][number] = one
        self._rows_after = lru_cache(maxsize=4)(self._read_rows_after)
        self._table = lru_cache(maxsize=4)(self._make_table)
        self.rebuilt = sorted(self._find(), key=lambda one: (one.unit, one.revision))
        self._by_unit: defaultdict[int, list[Rebuilt]] = defaultdict(list)
        for marker in self.rebuilt:
            self._by_unit[marker.unit].append(marker)
        self.problem = self._find_repeated_key()
        """Why the plan cannot be rebuilt: two chunks have one key. None if it can."""

    @property
    def planned(self) -> set[str]:
        """Names of all chunks that are planned afterwards."""
        rebuilt = {plan.chunk_name(one.unit, n) for one in self.rebuilt for n in (*one.numbers, *one.empty)}
        intact = (name for name, chunk in self._log.chunks.items() if chunk.part not in self._checked.lost_parts)
        return rebuilt.union(intact)

    def describe(self) -> list[str]:
        """Return a sentence about each file that `run` writes."""
        sentences = []
        for one in self.rebuilt:
            if one.parts:
                source = f"from its {len(one.parts):,} parts, which are intact"
            elif one.numbers or one.empty:
                source = f"from the data files of {len(one.numbers):,} chunks"
            else:
                source = "without chunks, since none of its chunks is encoded"
            without_pairs = f"; {len(one.empty):,} chunks without a data file have no pairs any more" * bool(one.empty)
            sentences.append(f"write {self._log.marker_path(one.unit, one.revision)} {source}{without_pairs}")
        if self.rebuilt and self._slices:
            unit = self._last_unit + 1
            sentences.append(
                f"write {self._log.marker_path(unit, 0)}, which makes the next run read the whole source: what the "
                "plan has lost is planned as new"
            )
        return sentences

    @property
    def _last_unit(self) -> int:
        return max([len(self._log.units) - 1, *(one.unit for one in self.rebuilt)])

    @property
    def _slices(self) -> tuple[Slice, ...]:
        """Slices with which no file of the source is known."""
        return tuple(Slice(file, "", 0, 0, is_last=False) for file in self._log.last_slices())

    def run(self) -> PlanLog:
        """Write parts, then markers; return the plan.

        Raises:
            JobFailed: another run has taken the lease, or has written one of the markers.
            OSError: the store fails.
        """
        log, writes = PlanLog(self._state, self._log.schema), []
        rebuilt = {(one.unit, one.revision): one for one in self.rebuilt}
        for at in sorted({**self._checked.intact, **rebuilt}):
            if at in rebuilt:
                marker = self._marker(log, rebuilt[at])
                data = marker.encode()
                writes.append((marker, data, rebuilt[at].lost.version))
            else:
                marker, data = self._checked.intact[at]
            log.add(marker, data)
        if self._slices and writes:
            unit = len(log.units)
            marker = Marker.without_pairs(unit, 0, log.previous(unit, 0), slices=self._slices)
            data = marker.encode()
            writes.insert(0, (marker, data, storage.ABSENT))
            log.add(marker, data)
        for marker, data, version in writes:
            self._state.check_lease()
            uri = self._state.uri(log.marker_path(marker.unit, marker.revision))
            try:
                storage.write_once(uri, data, expect=version)
            except storage.Conflict:
                raise JobFailed(f"another run has written {uri}; run verify again") from None
        return log

    def _find(self) -> Iterator[Rebuilt]:
        """Yield the lost markers, and for each unit with lost parts a further revision."""
        for unit in range(max([len(self._log.units), *(1 + unit for unit in self._committed)])):
            committed = self._committed.get(unit, {})
            known = len(self._log.units[unit].revisions) if unit < len(self._log.units) else 0
            last = max([known - 1, 0, *(one.revision for one in committed.values())])
            for revision in range(last + 1):
                lost = self._checked.lost.get((unit, revision))
                if lost or revision >= known:
                    of_it = {number: one.hash for number, one in committed.items() if one.revision == revision}
                    yield self._find_marker(unit, revision, lost or LostMarker(storage.ABSENT, ""), of_it)
            numbers, empty = self._find_unplanned(unit, known)
            if numbers or empty:
                yield Rebuilt(unit, last + 1, LostMarker(storage.ABSENT, ""), numbers=numbers, empty=empty)

    def _find_marker(self, unit: int, revision: int, lost: LostMarker, committed: Mapping[int, str]) -> Rebuilt:
        """Return how to rebuild a marker; ``committed`` are the hashes of its data files."""
        for paths in self._groups[unit, revision].values():
            if not committed or [path[-13:-8] for path in paths] != [f"{n:05d}" for n in range(len(paths))]:
                continue
            try:
                tables = [table for _, _, table in self._read_parts(paths)]
            except JobFailed:
                continue  # damaged
            hashes = {one.number: one.hash for table in tables for one in plan.summarize(table)}
            if committed.items() <= hashes.items():
                return Rebuilt(unit, revision, lost, tuple(paths), tuple(hashes))
        return Rebuilt(unit, revision, lost, numbers=tuple(sorted(committed)))

    def _find_unplanned(self, unit: int, known: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return chunks that no intact part has as their data files have them, and lost chunks without a data file."""
        committed, numbers = self._committed.get(unit, {}), set()
        lost = {
            number
            for number in (self._log.units[unit].chunks if known else ())
            if self._log.chunks[plan.chunk_name(unit, number)].part in self._checked.lost_parts
        }
        for number, one in committed.items():
            planned = self._log.chunks.get(plan.chunk_name(unit, number))
            if one.revision >= known or (unit, one.revision) in self._checked.lost:
                continue  # in the marker that is rebuilt
            if planned is None or (planned.revision == one.revision and not planned.has_hash(one.hash)):
                numbers.add(number)
        numbers |= lost & committed.keys()
        return tuple(sorted(numbers)), tuple(sorted(lost - committed.keys()))

    def _marker(self, log: PlanLog, one: Rebuilt) -> Marker:
        """Write the parts of a marker, if it has new ones, and return it."""
        if one.parts:
            read = list(self._read_parts(one.parts))
            parts = tuple(Part(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data, _ in read)
            tables = [table for _, _, table in read]
        else:
            self._state.check_lease()
            parts, tables = log.write_parts(one.unit, one.revision, self._table(one))
        chunks = []
        for part, table in enumerate(tables):
            for chunk in plan.summarize(table):
                found = None if one.parts else self._committed[one.unit].get(chunk.number)
                footer_hash = found.hash if found and found.hash != chunk.hash else ""
                chunks.append(MarkedChunk(*chunk, part, found.revision if found else one.revision, footer_hash))
        return Marker(
            unit=one.unit,
            revision=one.revision,
            previous=log.previous(one.unit, one.revision),
            slices=(),
            parts=parts,
            chunks=tuple(chunks),
            replaces=one.lost.replaces,
        )

    def _read_parts(self, paths: Collection[str]) -> Iterator[tuple[str, bytes, pa.Table]]:
        for path, data in zip(paths, map_concurrently(self._state.read, paths), strict=True):
            yield path, data, read_parquet(self._state.uri(path), data, self._log.schema)

    def _make_table(self, one: Rebuilt) -> pa.Table:
        """Return the planned pairs of a rebuilt marker, `inpaint_encode.schema.PAIRS`."""
        schema = self._log.schema
        if one.parts:
            return pa.concat_tables([table for _, _, table in self._read_parts(one.parts)])
        tables = list(map_concurrently(lambda number: self._read_chunk(one.unit, number), one.numbers))
        tables = self._with_planned_versions(one, tables)
        empty = pa.Table.from_pylist([{"chunk": number, "line": 0, "encode": True} for number in one.empty], schema)
        return plan.sorted_by_chunk(pa.concat_tables([schema.empty_table(), *tables, empty]))

    def _read_chunk(self, unit: int, number: int) -> pa.Table:
        """Return the pairs of a data file as a plan has them, with the versions in the rows."""
        uri, schema = self._state.data_uri(plan.chunk_name(unit, number)), self._log.schema
        extra = list(schema.field(EXTRA_COLUMNS).type) if EXTRA_COLUMNS in schema.names else []
        with translate_errors(uri):
            file = ParquetFile(RangedFile(uri, storage.DEFAULT_ACCESS))
            rejects = parse_chunk_footer(file.schema.metadata).rejected
            table = file.read([field.name for field in (*PAIR_FIELDS, *extra)])
            rows = table.select([field.name for field in PAIR_FIELDS])
            if extra:
                own = pa.schema(extra)
                rows = rows.append_column(EXTRA_COLUMNS, table.select(own.names).cast(own).to_struct_array())
        constant = {"chunk": number, "line": 0, "encode": True, "error": None}
        for name, value in constant.items():
            rows = rows.append_column(name, pa.repeat(pa.scalar(value, schema.field(name).type), rows.num_rows))
        numbers = _mask_numbers([str(one["key"]) for one in rejects], [one["image_uri"] or "" for one in rejects])
        nothing = {EXTRA_COLUMNS: {field.name: None for field in extra}} if extra else {}
        others = [
            {
                **{name: one[name] for name in ("key", "image_uri", "mask_uri")},
                **{**constant, **nothing, "image_version": "", "mask_version": "", "mask_index": mask},
                "error": one["message"] if one["error"] == DUPLICATE_KEY else None,
            }
            for one, mask in zip(rejects, numbers, strict=True)
        ]
        return pa.concat_tables([rows.select(schema.names).cast(schema), pa.Table.from_pylist(others, schema)])

    def _with_planned_versions(self, one: Rebuilt, tables: list[pa.Table]) -> list[pa.Table]:
        """Return the tables of chunks with the versions that their hashes prove.

        A source without a listing plans empty versions, but rows have the versions that were read. Chunks whose hash
        proves nothing, such as those with rejects, have the versions that others have.
        """
        blank = [_without_versions(table) for table in tables]
        hashes = [self._committed[one.unit][number].hash for number in one.numbers]
        listed = [plan.chunk_hash(table) == wanted for table, wanted in zip(tables, hashes, strict=True)]
        unlisted = [plan.chunk_hash(table) == wanted for table, wanted in zip(blank, hashes, strict=True)]
        use_blank = any(unlisted) or (not any(listed) and self._plans_no_versions())
        return [
            blank[at] if unlisted[at] or (use_blank and not listed[at]) else table for at, table in enumerate(tables)
        ]

    def _plans_no_versions(self) -> bool:
        """Return whether the first intact unit with pairs has empty versions only."""
        for unit in self._log.units:
            rows = self._checked.rows(unit.number)
            if rows.num_rows - rows["key"].null_count:
                return not pc.any(pc.not_equal(rows["image_version"], "")).as_py()
        return False

    def _read_rows_after(self, unit: int) -> pa.Table:
        """Return the rows of a unit as they are after the repair."""
        newest: dict[int, Rebuilt | None] = {}
        markers: dict[int, Rebuilt | tuple[int, ...]] = {
            revision: tuple(chunk.number for chunk in marker.chunks)
            for (number, revision), (marker, _) in self._checked.intact.items()
            if number == unit
        }
        markers |= {one.revision: one for one in self._by_unit.get(unit, ())}
        for _, marker in sorted(markers.items(), key=lambda item: item[0]):
            if isinstance(marker, Rebuilt):
                newest |= dict.fromkeys((*marker.numbers, *marker.empty), marker)
            else:
                newest |= dict.fromkeys(marker)
        tables = [self._checked.rows(unit)] if unit < len(self._log.units) else []
        owners: list[Rebuilt | None] = [None] * len(tables)
        for one in self._by_unit.get(unit, ()):
            tables.append(self._table(one))
            owners.append(one)
        kept = [self._log.schema.empty_table()]
        for owner, table in zip(owners, tables, strict=True):
            numbers = [number for number, one in newest.items() if one is owner]
            kept.append(table.filter(pc.is_in(table["chunk"], value_set=pa.array(numbers, pa.int32()))))
        return pa.concat_tables(kept)

    def _find_repeated_key(self) -> PlanProblem | None:
        """Return a problem if a rebuilt unit has a key twice, or has a key of another unit."""
        rebuilt = KnownKeys()
        for unit, markers in self._by_unit.items():
            keys = self._rows_after(unit)["key"].drop_null()
            hashes = hash_keys(keys)
            path = self._log.marker_path(unit, markers[-1].revision)
            if pc.count_distinct(keys).as_py() < len(keys):
                return PlanProblem(path, "cannot be rebuilt: two of its data files have the same key")
            for known in (self._checked.keys.known, rebuilt):
                positions, units = known.find(hashes)
                for other in np.unique(units[units != unit]).tolist():
                    candidates = keys.take(np.unique(positions[units == other]))
                    both = candidates.filter(pc.is_in(candidates, value_set=self._rows_after(other)["key"]))
                    if len(both):
                        sentence = f"cannot be rebuilt: unit {other} of the plan has its key {both[0].as_py()}, too"
                        return PlanProblem(path, sentence)
            rebuilt.add(hashes, unit)
        return None


def _mask_numbers(keys: list[str], image_uris: list[str]) -> list[int]:
    """Return the mask numbers of rejected pairs, which their rejects do not have: 2 of the key ``a/2`` of ``a.png``."""
    stems = without_suffix(pa.chunked_array([pa.array(image_uris, pa.string())])).to_pylist()
    found = []
    for key, stem in zip(keys, stems, strict=True):
        numbered = re.fullmatch(r"(?P<base>.*)/(?P<number>[1-9]\d{0,8})", key, re.DOTALL)
        is_numbered = numbered and stem.endswith(numbered["base"]) and not stem.endswith(key)
        found.append(int(numbered["number"]) if numbered and is_numbered else 0)
    return found


def _without_versions(table: pa.Table) -> pa.Table:
    for name in ("image_version", "mask_version"):
        blank = pa.repeat(pa.scalar("", pa.string()), table.num_rows)
        table = table.set_column(table.column_names.index(name), name, blank)
    return table
