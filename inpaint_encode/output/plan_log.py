"""The plan of an output: a log of units. Runs add files to it, and replace none; `rebuild` replaces damaged ones.

``_plan/<job>-<unit>.<revision>.json``                    a marker: makes a revision of a unit valid
``_plan/<job>-<unit>.<revision>-<token>-<part>.parquet``  a part: pairs of some chunks, `inpaint_encode.schema.PAIRS`

Parts are written first, under names with the token of the run. The marker's name has no token, and it is written only
if it does not exist. So of two runs that plan the same unit, one succeeds, and the parts of the other are never read. A
marker names its parts with their hashes, and the hash of the marker before it: a marker or a part that is lost, or
belongs to another plan, is noticed. Revision 0 of a unit follows revision 0 of the unit before; later revisions follow
the revision before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from inpaint_encode.errors import JobFailed
from inpaint_encode.schema import PAIRS, with_extra_columns
from inpaint_encode.sources.pairs import Slice
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently

from . import plan
from .notes import MAX_NOTE_BYTES
from .parquet import parquet_bytes, read_parquet
from .state import OutputState

MARKER = re.compile(r"_plan/(?P<job>[0-9a-f]{8})-(?P<unit>\d{6})\.(?P<revision>\d{1,5})\.json")
PART = re.compile(r"_plan/[0-9a-f]{8}-(?P<unit>\d{6})\.(?P<revision>\d{1,5})-[0-9a-f]{8}-\d{5}\.parquet")


_CHECKSUM = b',"sha256":"'


class Part(NamedTuple):
    """A part, as its marker describes it."""

    path: str
    """Relative to the output."""
    sha256: str
    size: int
    """Bytes."""


class MarkedChunk(NamedTuple):
    """A chunk, as a marker describes it."""

    number: int
    pairs: int
    hash: str
    part: int
    """Index of its part."""
    revision: int
    """The marker's own, or that of the chunk's data file if the marker was rebuilt from it."""
    footer_hash: str = ""
    """Of a chunk that was rebuilt from its data file: the hash in the file's footer, if its rows have another one."""


class Marker(BaseModel):
    """The contents of a marker."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    unit: int
    revision: int
    previous: str
    """SHA-256 of the marker that it follows; empty for the first."""
    slices: tuple[Slice, ...]
    """The pieces of the source that are planned with it; also those without a new pair."""
    parts: tuple[Part, ...]
    chunks: tuple[MarkedChunk, ...]
    replaces: str = ""
    """SHA-256 of a lost marker that this one was rebuilt for: the one that the next marker names."""

    @model_validator(mode="after")
    def _check_names_and_numbers(self) -> Self:
        """Refuse what `PlanLog` never writes: files of another unit, and numbers outside their range."""
        for part in self.parts:
            name = PART.fullmatch(part.path)
            if name is None or (int(name["unit"]), int(name["revision"])) != (self.unit, self.revision):
                raise ValueError(f"{part.path[:100]!r} is no name of a part of this revision")
        numbers = [number for one in self.slices for number in (one.start, one.end, *one.left_out, one.repeated)]
        numbers += [number for one in self.chunks for number in (one.pairs, one.revision)]
        if any(not 0 <= number < 2**62 for number in numbers) or any(
            not (0 <= one.number < 10**5 and 0 <= one.part < len(self.parts)) for one in self.chunks
        ):
            raise ValueError("a number is outside its range")
        return self

    def encode(self) -> bytes:
        """Return the JSON of the marker; its last field is the SHA-256 of the JSON of all others."""
        body = self.model_dump_json().encode()
        return body[:-1] + _CHECKSUM + hashlib.sha256(body).hexdigest().encode() + b'"}'

    @classmethod
    def without_pairs(
        cls, unit: int, revision: int, previous: str, *, slices: tuple[Slice, ...] = (), replaces: str = ""
    ) -> Marker:
        """Return a marker without chunks."""
        return cls(
            unit=unit,
            revision=revision,
            previous=previous,
            slices=slices,
            parts=(),
            chunks=(),
            replaces=replaces,
        )


class Unit:
    """A unit of the log."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.slices: tuple[Slice, ...] = ()
        self.first_digest = self.digest = ""
        """SHA-256 of the markers of revision 0 and of the newest revision."""
        self.revisions: list[tuple[Part, ...]] = []
        """The parts of each revision."""
        self.chunks: set[int] = set()
        """Numbers of its chunks."""


class PlanTaken(JobFailed):
    """Another run has planned the same unit."""


class DamagedPlan(JobFailed):
    """A file of the plan is damaged."""

    sentence = ""
    """What is wrong; the file is the subject."""


class PlanLog:
    """The units of an output, as this run knows them.

    Args:
        state: of the output.
        extra: a schema with the `inpaint_encode.schema.EXTRA_COLUMNS` of the source.
    """

    def __init__(self, state: OutputState, extra: pa.Schema) -> None:
        self.units: list[Unit] = []
        self.chunks: dict[str, plan.PlannedChunk] = {}
        """Every chunk by its name."""
        self.pairs = 0
        self._state = state
        self.schema = with_extra_columns(PAIRS, extra)
        self._read_unit = lru_cache(maxsize=4)(self._read_unit_uncached)

    @classmethod
    def read(cls, state: OutputState, files: Mapping[str, int], extra: pa.Schema) -> PlanLog:
        """Read all markers of an output.

        Args:
            state: of the output.
            files: sizes of the files below ``_plan/`` by path, from a listing.
            extra: see the class.

        Raises:
            JobFailed: a marker or a part is missing, damaged, or belongs to another plan.
        """
        log = cls(state, extra)
        names = {(int(name["unit"]), int(name["revision"])): name[0] for name in map(MARKER.fullmatch, files) if name}
        # While another run plans, a listing of a disk may have a unit and lack files that were written before it.
        first_revisions = {(unit, 0): log.marker_path(unit, 0) for unit in range(max(names, default=(0, 0))[0])}
        paths = [path for _, path in sorted((first_revisions | names).items())]
        uris = map(state.uri, paths)
        for uri, data in zip(map(state.uri, paths), map_concurrently(_read_known_marker, uris), strict=True):
            log.add(parse_marker(uri, data), data)
        for unit in log.units:
            for part in log.used_parts(unit.number):
                if part.size != (files[part.path] if part.path in files else log._size_of(part)):
                    raise _damaged(state.uri(part.path), "is missing or cut")
        return log

    def _size_of(self, part: Part) -> int | None:
        try:
            return storage.stat(self.part_uri(part)).size
        except FileNotFoundError:
            return None

    def read_on(self) -> Iterator[list[str]]:
        """Read the units that other runs have planned since, and yield the names of each one's chunks.

        Raises:
            JobFailed: a marker is damaged, or belongs to another plan.
        """
        while True:
            uri = self._state.uri(self.marker_path(len(self.units), 0))
            try:
                data = read_marker(uri)
            except FileNotFoundError:
                return
            unit = self.add(parse_marker(uri, data), data)
            yield self.names(unit.number)

    def add(self, marker: Marker, data: bytes) -> Unit:
        """Add the next marker of the log, after it was written or when it is read."""
        uri = self._state.uri(self.marker_path(marker.unit, marker.revision))
        if marker.unit == len(self.units) and marker.revision == 0:
            self.units.append(Unit(marker.unit))
        if marker.unit >= len(self.units):
            raise _damaged(self._state.uri(self.marker_path(len(self.units), 0)), "is missing")
        unit = self.units[marker.unit]
        if marker.revision != len(unit.revisions):
            raise _damaged(self._state.uri(self.marker_path(marker.unit, len(unit.revisions))), "is missing")
        if marker.previous != self.previous(marker.unit, marker.revision):
            raise _damaged(uri, "does not follow the marker before it")
        unit.digest = marker.replaces or hashlib.sha256(data).hexdigest()
        unit.first_digest = unit.first_digest or unit.digest
        unit.revisions.append(marker.parts)
        unit.slices += marker.slices
        unit.chunks |= {chunk.number for chunk in marker.chunks}
        uris = [self._state.uri(part.path) for part in marker.parts]
        for number, pairs, chunk_hash, part, revision, footer_hash in marker.chunks:
            name = plan.chunk_name(marker.unit, number)
            before = self.chunks.get(name)
            self.pairs += pairs - (before.pairs if before else 0)
            self.chunks[name] = plan.PlannedChunk(revision, chunk_hash, uris[part], pairs, footer_hash)
        return unit

    def append(self, table: pa.Table, slices: tuple[Slice, ...]) -> list[str]:
        """Write a new unit, and return the names of its chunks.

        Args:
            table: of `plan.split_into_chunks`; may be empty if there are slices to remember.
            slices: what the unit covers of the source.

        Raises:
            PlanTaken: another run has planned this unit.
            OSError: the store fails.
        """
        return self._write(len(self.units), 0, table, slices)

    def revise(self, unit: int, table: pa.Table) -> list[str]:
        """Write a further revision of a unit, and return the names of its chunks; ``table`` is of `plan.revise`.

        Raises:
            PlanTaken, OSError: as `append`.
        """
        return self._write(unit, len(self.units[unit].revisions), table, ())

    def _write(self, unit: int, revision: int, table: pa.Table, slices: tuple[Slice, ...]) -> list[str]:
        parts, tables = self.write_parts(unit, revision, table)
        marker = Marker(
            unit=unit,
            revision=revision,
            previous=self.previous(unit, revision),
            slices=slices,
            parts=parts,
            chunks=tuple(
                MarkedChunk(*chunk, part, revision)
                for part, table in enumerate(tables)
                for chunk in plan.summarize(table)
            ),
        )
        data = marker.encode()
        uri = self._state.uri(self.marker_path(unit, revision))
        try:
            storage.write_once(uri, data)
        except storage.Conflict:
            raise PlanTaken(
                f"another run has written {uri}; this run stops planning, and its finished chunks are kept; run the "
                "same command again to continue"
            ) from None
        self.add(marker, data)
        return [plan.chunk_name(unit, chunk.number) for chunk in marker.chunks]

    def write_parts(self, unit: int, revision: int, table: pa.Table) -> tuple[tuple[Part, ...], list[pa.Table]]:
        """Write the parts of a revision; return what its marker says about them, and the rows of each."""
        tables = [part for part in plan.parts(table) if part.num_rows]
        encoded = [parquet_bytes(part.cast(self.schema)) for part in tables]
        stem = f"_plan/{self._state.job}-{unit:06d}.{revision}-{self._state.token[:8]}"
        paths = [f"{stem}-{number:05d}.parquet" for number in range(len(encoded))]
        list(map_concurrently(self._write_part, zip(paths, encoded, strict=True)))
        parts = zip(paths, encoded, strict=True)
        return tuple(Part(path, hashlib.sha256(data).hexdigest(), len(data)) for path, data in parts), tables

    def _write_part(self, part: tuple[str, bytes]) -> None:
        path, data = part
        try:
            storage.write_once(self._state.uri(path), data)
        except storage.Conflict:  # although only this run has its token, which is in the name
            raise JobFailed(f"{self._state.uri(path)} has other contents than this run wrote") from None

    def previous(self, unit: int, revision: int) -> str:
        """Return the hash of the marker that a new one follows."""
        if revision:
            return self.units[unit].digest
        return self.units[unit - 1].first_digest if unit else ""

    def marker_path(self, unit: int, revision: int) -> str:
        """Return the path of a marker relative to the output."""
        return f"_plan/{self._state.job}-{unit:06d}.{revision}.json"

    def read_unit(self, unit: int) -> pa.Table:
        """Return the newest rows of a unit's chunks, `inpaint_encode.schema.PAIRS`; the last few units are cached.

        Raises:
            JobFailed: a part is damaged.
            OSError: the store fails.
        """
        return self._read_unit(unit, len(self.units[unit].revisions))

    def part_uri(self, part: Part) -> str:
        """Return the URI of a part."""
        return self._state.uri(part.path)

    def used_parts(self, unit: int) -> list[Part]:
        """Return the parts with the newest revision of a chunk."""
        used = {self.chunks[name].part for name in self.names(unit)}
        parts = (part for parts in self.units[unit].revisions for part in parts)
        return [part for part in parts if self._state.uri(part.path) in used]

    def _read_unit_uncached(self, unit: int, _revisions: int) -> pa.Table:
        return self.read_parts(unit, self.used_parts(unit))

    def read_parts(self, unit: int, parts: Sequence[Part]) -> pa.Table:
        """Return those rows of a unit's parts that are the newest of their chunks.

        Raises:
            JobFailed: a part is damaged.
            OSError: the store fails.
        """
        tables = [self.schema.empty_table()]
        for part, table in zip(parts, map_concurrently(self._read_part, parts), strict=True):
            tables.append(
                table.filter(pc.is_in(table["chunk"], value_set=pa.array(self.newest(unit, part), pa.int32())))
            )
        return plan.sorted_by_chunk(pa.concat_tables(tables))

    def newest(self, unit: int, part: Part) -> list[int]:
        """Return the numbers of the unit's chunks whose newest rows are in a part."""
        uri, numbers = self._state.uri(part.path), self.units[unit].chunks
        return [number for number in numbers if self.chunks[plan.chunk_name(unit, number)].part == uri]

    def _read_part(self, part: Part) -> pa.Table:
        data = self._state.read(part.path)
        if hashlib.sha256(data).hexdigest() != part.sha256:
            raise _damaged(self._state.uri(part.path), "has other contents than its marker says")
        return read_parquet(self._state.uri(part.path), data, self.schema)

    def read_units(self) -> Iterator[tuple[int, pa.Table]]:
        """Yield the number and the newest rows of every unit, without keeping them."""
        for unit in self.units:
            yield unit.number, self._read_unit_uncached(unit.number, 0)

    def names(self, unit: int) -> list[str]:
        """Return the names of a unit's chunks."""
        return [plan.chunk_name(unit, number) for number in sorted(self.units[unit].chunks)]

    def last_slices(self) -> dict[str, Slice]:
        """Return the last slice of each file of the source, by its URI."""
        return {one.file: one for unit in self.units for one in unit.slices}

    @property
    def repeated(self) -> int:
        """Lines that are not planned because an earlier line has the same contents; of each file's last reading."""
        found: dict[str, int] = {}
        for one in (one for unit in self.units for one in unit.slices):
            found[one.file] = one.repeated + (found.get(one.file, 0) if one.start else 0)
        return sum(found.values())

    def unused_parts(self, paths: Iterable[str]) -> list[str]:
        """Return the parts that a run wrote for a revision that another run then planned, or that it wrote twice."""
        used = {part.path for unit in self.units for parts in unit.revisions for part in parts}
        found = []
        for path in paths:
            name = PART.fullmatch(path)
            if name is None or path in used or int(name["unit"]) >= len(self.units):
                continue
            if int(name["revision"]) < len(self.units[int(name["unit"])].revisions):
                found.append(path)
        return found


def read_marker(uri: str) -> bytes:
    """Return the bytes of a marker.

    Raises:
        DamagedPlan: it is too large.
        FileNotFoundError, PermissionError, OSError: from the store.
    """
    try:
        return storage.read(uri, max_bytes=MAX_NOTE_BYTES).data
    except storage.TooLarge:
        raise _damaged(uri, f"has more than {MAX_NOTE_BYTES:,} bytes") from None


def _read_known_marker(uri: str) -> bytes:
    try:
        return read_marker(uri)
    except FileNotFoundError:
        raise _damaged(uri, "is missing") from None


def parse_marker(uri: str, data: bytes) -> Marker:
    """Return the contents of a marker.

    Raises:
        JobFailed: it is damaged.
    """
    body, _, checksum = data.rpartition(_CHECKSUM)
    body += b"}"
    if checksum != hashlib.sha256(body).hexdigest().encode() + b'"}':
        raise _damaged(uri, "is cut, or was changed after it was written")
    try:
        return Marker.model_validate_json(body)
    except ValidationError as error:
        raise _damaged(uri, f"cannot be read ({error.errors(include_input=False)[0]['msg']})") from error


def _damaged(uri: str, what: str) -> DamagedPlan:
    error = DamagedPlan(
        f"the plan of this output is damaged: {uri} {what}; nothing was changed; restore the file, or run "
        "`inpaint-encode verify --repair`"
    )
    error.sentence = what
    return error
