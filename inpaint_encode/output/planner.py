"""Plans a source: reads it batch by batch, and adds units of new pairs and revisions of changed ones to the log."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.schema import SOURCE_PAIRS, extra_columns_schema, with_extra_columns
from inpaint_encode.settings import Chunks, RunOptions
from inpaint_encode.sources.pairs import BATCH_PAIRS, PairBatch, PairSource, Slice

from . import plan
from .deduplicate import Deduplicated, NewPairs, Row, base_keys, deduplicate, identities
from .known_keys import KnownKeys, hash_keys
from .known_pairs import KnownPairs, contents_digests
from .plan_log import PlanLog

_SLICES_PER_UNIT = 4_096
"""Slices in a unit without pairs."""

_CHANGED_IN_MEMORY = 262_144
"""Changed pairs from which they are kept in temporary files until the source is read."""


class Planner:
    """Adds what a source has to the plan of an output.

    Args:
        log: of the output; units are added to it.
        source: read once.
        chunks: sizes of chunks.
        run: ``refresh`` and ``drop_vanished``.
        undecided: returns the chunks of a unit that are not committed at their newest revision, by number.
        on_unit: called with the pairs of each new unit before it is written: `inpaint_encode.schema.SOURCE_PAIRS` with
            a column ``error``.
    """

    def __init__(
        self,
        log: PlanLog,
        source: PairSource,
        chunks: Chunks,
        run: RunOptions,
        undecided: Callable[[int], Collection[int]],
        on_unit: Callable[[pa.Table], None] | None = None,
    ) -> None:
        self.complete = False
        """Whether the whole source is planned."""
        self.changed = 0
        """Planned pairs that the source has with other contents."""
        self._log, self._source, self._chunks, self._run, self._undecided = log, source, chunks, run, undecided
        self._on_unit = on_unit
        self.old_units = len(log.units)
        """Units that were planned before."""
        self._keys, self._pairs = KnownKeys(), KnownPairs()
        self._is_read = not log.units
        """Whether the planned pairs are in the two above; they are read when a pair is first looked up."""
        self._changed_hashes: dict[int, NDArray[np.uint64]] = {}
        schema = with_extra_columns(SOURCE_PAIRS, extra_columns_schema(source.extra_columns))
        self._no_pairs = schema.append(pa.field("error", pa.string())).empty_table()
        self._waiting = self._no_pairs
        """New pairs of the next unit."""
        self._postponed = self._no_pairs
        self._superseded: defaultdict[int, list[str]] = defaultdict(list)
        """Keys, by unit, of rejected pairs that are not rejected any more."""
        self._slices: tuple[Slice, ...] = ()
        self._refreshed: dict[str, Slice] = {}
        """With ``refresh``, an empty slice at the end of each file that was read."""
        self._last_slice: tuple[Slice, ...] = ()
        """Empty if the source has no slices."""
        self._changes = _ChangedPairs()

    def plan(self) -> Iterator[list[str]]:
        """Read the source, and yield the names of the chunks of each unit and revision when it is planned.

        Raises:
            UsageError: the source cannot be read; what was yielded is planned.
            JobFailed: another run plans this output, or the plan is damaged.
            OSError: the store fails.
        """
        size = max(BATCH_PAIRS, self._chunks.chunk_rows)
        with closing(self._source.batches({} if self._run.refresh else self._log.last_slices())) as batches:
            for batch in batches:
                self._add(batch, NewPairs.POSTPONE if self._run.refresh else NewPairs.ADD)
                if self._waiting.num_rows >= size // 2:
                    yield self._write_unit()
        for batch in self._postponed_batches(size):
            self._add(batch, NewPairs.REPLACE)
            if self._waiting.num_rows >= size // 2:
                yield self._write_unit()
        if self._waiting.num_rows or self._slices:
            yield self._write_unit()
        if self._run.refresh:
            yield from self._revise()
            yield from self._write_versions()
        self.complete = True

    @property
    def unchanged(self) -> frozenset[str]:
        """Files of the source that are planned already and were not read again."""
        return self._source.unchanged

    def retry(self, rejected_keys: Callable[[int], pa.Array]) -> Iterator[list[str]]:
        """Write revisions that encode rejected pairs again; yield the names of their chunks.

        Args:
            rejected_keys: returns the keys of the rejected pairs of a unit's committed chunks.
        """
        for unit in range(len(self._log.units)):
            keys = rejected_keys(unit)
            if len(keys):
                current = self._log.read_unit(unit)
                retried = current.filter(pc.is_in(current["key"], value_set=keys))
                yield self._write_revision(unit, current, retried, pa.array([], pa.string()))

    def _postponed_batches(self, size: int) -> Iterator[PairBatch]:
        """Yield the postponed pairs in batches of about ``size``; the masks of an image are in one batch."""
        end_of_source = tuple(one._replace(start=one.end, left_out=(0, 0, 0)) for one in self._last_slice)
        pairs = self._postponed.drop_columns("error")
        pairs = pairs.take(pc.sort_indices(pairs.select(["key"]), [("key", "ascending")]))
        keys = pairs["key"].combine_chunks()
        others = pc.not_equal(keys.slice(1), keys.slice(0, max(0, len(keys) - 1))).to_numpy(zero_copy_only=False)
        ends = np.append(np.flatnonzero(others) + 1, len(keys))
        start = 0
        while start < len(keys):
            end = int(ends[min(int(np.searchsorted(ends, start + size)), len(ends) - 1)])
            yield PairBatch(pairs.slice(start, end - start), end_of_source)
            start = end

    def _write_unit(self) -> list[str]:
        if self._on_unit:
            self._on_unit(self._waiting)
        table = plan.split_into_chunks(self._waiting, self._chunks.chunk_rows, self._chunks.chunk_bytes)
        names = self._log.append(table, self._slices)
        self._waiting, self._slices = self._no_pairs, ()
        return names

    def _write_revision(self, unit: int, current: pa.Table, revised: pa.Table, dropped: pa.Array) -> list[str]:
        names = [name for name in current.column_names if name not in ("chunk", "line", "encode", "error")]
        undecided = pa.array(sorted(self._undecided(unit)), pa.int32())
        return self._log.revise(unit, plan.revise(current, revised.select(names), dropped, undecided))

    def _revise(self) -> Iterator[list[str]]:
        """Write revisions of the units with changed pairs and, with ``drop_vanished``, with pairs that were not met.

        Rejected pairs that became planned pairs are dropped last, so that they are always in the plan.
        """
        self._read_plan()
        for unit in range(self.old_units):
            changed, current = self._changes.of(unit), self._log.read_unit(unit)
            vanished = self._accepted_later(current)
            if self._run.drop_vanished:
                vanished |= ~self._pairs.met(self._digests(current))
            dropped = current["key"].filter(pa.array(vanished)).drop_null().combine_chunks()
            if changed is not None or len(dropped):
                yield self._write_revision(unit, current, current.slice(0, 0) if changed is None else changed, dropped)
        for unit, keys in sorted(self._superseded.items()):
            current = self._log.read_unit(unit)
            yield self._write_revision(unit, current, current.slice(0, 0), pa.array(keys, pa.string()))

    def _accepted_later(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Return which rejected pairs have another key now, in a plan of a refresh that was killed.

        A planned pair that this refresh changes had the contents of the rejected pair only before.
        """
        rejected = np.flatnonzero(pc.and_(rows["error"].is_valid(), rows["key"].is_valid()))
        keys = base_keys(rows, numbers_masks=self._source.numbers_masks).take(rejected)
        digests = contents_digests(keys, rows.take(rejected))
        at = np.flatnonzero(self._pairs.contains(digests))
        found = np.zeros(rows.num_rows, np.bool_)
        if len(at):
            planned = self._planned_pairs(keys.take(at))
            kept = planned.filter(
                pc.and_(planned["error"].is_null(), pc.equal(planned["changed_hash"], pa.scalar(0, pa.uint64())))
            )
            own = {tuple(one) for one in self._digests(kept).tolist()}
            found[rejected[at]] = [tuple(one) in own for one in digests[at].tolist()]
        return found

    def _write_versions(self) -> Iterator[list[str]]:
        """Write units without pairs, which say which versions of the files a refresh has read."""
        if self._run.drop_vanished:
            gone = [one for one in self._log.last_slices().values() if one.file not in self._refreshed and one.end]
            self._refreshed |= {one.file: Slice(one.file, "", 0, 0, is_last=True) for one in gone}
        slices = list(self._refreshed.values())
        for start in range(0, len(slices), _SLICES_PER_UNIT):
            self._slices = tuple(slices[start : start + _SLICES_PER_UNIT])
            yield self._write_unit()

    def _add(self, batch: PairBatch, new_pairs: NewPairs) -> None:
        """Add the new pairs of a batch to the next unit, and note which planned pairs it has."""
        self._read_plan()
        pairs = self._without_unchanged(batch.pairs) if self.old_units else batch.pairs
        found, planned = self._deduplicate(pairs, batch.slices, new_pairs)
        unit_of, row_of = planned["unit"].to_numpy(), planned["row"].to_numpy()
        self._pairs.meet(self._digests(planned.take(np.concatenate([found.met, found.superseded]))))
        for at in found.superseded.tolist():
            self._superseded[int(unit_of[at])].append(planned["key"][at].as_py())
        if found.changed.num_rows:
            self.changed += found.changed.num_rows
            where = pc.index_in(found.changed["key"], value_set=planned["key"]).to_numpy()
            units, rows = unit_of[where], row_of[where]
            for unit in np.unique(units).tolist():
                self._changed_hashes_of(unit)[rows[units == unit]] = found.changed_hashes[units == unit]
            if self._run.refresh:
                self._changes.add(found.changed, units)
        fresh = found.fresh
        lines = pc.add(fresh["line"], pa.scalar(sum(one.end - one.start for one in self._slices), pa.int32()))
        fresh = fresh.set_column(fresh.column_names.index("line"), "line", lines)
        slices = _with_repeated(batch.slices, pairs["line"].to_numpy()[found.repeated])
        self._slices += self._without_versions(slices) if self._run.refresh else slices
        self._last_slice = batch.slices[-1:]
        if found.postponed.num_rows:
            before = self._postponed["line"][-1].as_py() + 1 if self._postponed.num_rows else 0
            lines = pc.add(found.postponed["line"], pa.scalar(before, pa.int32()))
            postponed = found.postponed.set_column(found.postponed.column_names.index("line"), "line", lines)
            self._postponed = pa.concat_tables([self._postponed, postponed.select(self._postponed.column_names)])
        if fresh.num_rows:
            self._keys.add(self._hashes(fresh), len(self._log.units))
            self._waiting = pa.concat_tables([self._waiting, fresh.select(self._waiting.column_names)])

    def _without_versions(self, slices: tuple[Slice, ...]) -> tuple[Slice, ...]:
        """Note the versions of a batch's slices for `_write_versions`, and return the slices without them.

        A refresh that is killed has not planned all that it has read, so these files must be read once more.
        """
        for one in slices:
            before = self._refreshed.get(one.file, one._replace(left_out=(0, 0, 0)))
            images, masks, ignored = (sum(counts) for counts in zip(before.left_out, one.left_out, strict=True))
            self._refreshed[one.file] = one._replace(start=one.end, left_out=(images, masks, ignored), repeated=0)
        return tuple(one._replace(version="", left_out=(0, 0, 0)) for one in slices)

    def _without_unchanged(self, pairs: pa.Table) -> pa.Table:
        """Remove the pairs that are planned with the same contents, and note that they are met.

        Pairs that occur twice in the batch, or were met before, are not removed.
        """
        own = identities(pairs["key"], pairs, numbers_masks=self._source.numbers_masks)
        counts = own.value_counts()
        once = pc.is_in(own, value_set=counts.filter(pc.equal(counts.field("counts"), 1)).field("values"))
        candidates = np.flatnonzero(once)
        unchanged = np.zeros(pairs.num_rows, np.bool_)
        unchanged[candidates] = self._pairs.meet(contents_digests(pairs["key"], pairs)[candidates])
        return pairs.filter(pa.array(~unchanged))

    def _deduplicate(
        self, pairs: pa.Table, slices: Sequence[Slice], new_pairs: NewPairs
    ) -> tuple[Deduplicated, pa.Table]:
        """Return what `deduplicate` finds in a batch, and the planned pairs that it was compared with."""
        planned = self._planned_pairs(pairs["key"])
        describe = partial(self._describe, slices=slices)
        numbers_masks = self._source.numbers_masks
        compare = partial(deduplicate, numbers_masks=numbers_masks, describe=describe, new_pairs=new_pairs)
        found = compare(pairs, planned)
        made = found.fresh["key"].filter(pc.invert(pc.is_in(found.fresh["key"], value_set=pairs["key"])))
        others = self._planned_pairs(made)
        others = others.filter(pc.invert(pc.is_in(others["key"], value_set=planned["key"])))
        if others.num_rows:  # a key with the number of a mask, or of a rejected pair, is planned already
            planned = pa.concat_tables([planned, others])
            found = compare(pairs, planned)
        return found, planned

    def _planned_pairs(self, keys: pa.ChunkedArray) -> pa.Table:
        """Return the planned and waiting pairs with these keys or base keys.

        Columns of `inpaint_encode.schema.PAIRS`; ``unit``, for a waiting pair the next unit's number; ``row``, the
        pair's row in its unit; ``met`` and ``changed_hash``, see `deduplicate`.
        """
        positions, units = self._keys.find(hash_keys(keys))
        candidates = keys.take(np.unique(positions))
        found = [self._pairs_of(len(self._log.units), pa.nulls(0, pa.string()))]
        found += [self._pairs_of(unit, candidates) for unit in np.unique(units).tolist()]
        return pa.concat_tables(found)

    def _pairs_of(self, unit: int, keys: pa.Array) -> pa.Table:
        """Return the pairs of one unit with these keys or base keys, with the columns of `_planned_pairs`."""
        if unit == len(self._log.units):
            rows = plan.split_into_chunks(self._waiting, 1, 1)
        else:
            rows = self._log.read_unit(unit)
        bases = base_keys(rows, numbers_masks=self._source.numbers_masks)
        found = np.flatnonzero(pc.or_(pc.is_in(rows["key"], value_set=keys), pc.is_in(bases, value_set=keys)))
        changed_hashes = self._changed_hashes.get(unit, np.zeros(rows.num_rows, np.uint64))[found]
        rows = rows.take(found)
        met = self._pairs.met(self._digests(rows)) if unit < self.old_units else np.ones(len(found), np.bool_)
        columns = {"unit": np.full(len(found), unit), "row": found, "met": met, "changed_hash": changed_hashes}
        for name, column in columns.items():
            rows = rows.append_column(name, pa.array(column))
        return rows

    def _changed_hashes_of(self, unit: int) -> NDArray[np.uint64]:
        if unit not in self._changed_hashes:
            self._changed_hashes[unit] = np.zeros(self._log.read_unit(unit).num_rows, np.uint64)
        return self._changed_hashes[unit]

    def _read_plan(self) -> None:
        """Read the planned pairs, if this has not been done. Those of files that are not read again are met."""
        if self._is_read:
            return
        last = self._log.last_slices()
        for unit, rows in self._log.read_units():
            rows = rows.filter(pc.is_valid(rows["key"]))
            slices = self._log.units[unit].slices
            ends = np.cumsum([one.end - one.start for one in slices])
            unchanged = [one.file in self._source.unchanged and one.version == last[one.file].version for one in slices]
            postponed = False  # their lines are behind those of the slices
            met = np.array([*unchanged, postponed])[np.searchsorted(ends, rows["line"].to_numpy(), "right")]
            self._keys.add(self._hashes(rows), unit)
            self._pairs.add(self._digests(rows), met)
        self._is_read = True

    def _digests(self, planned: pa.Table) -> NDArray[np.uint64]:
        """Return the digests of planned pairs; no pair of a source has that of a rejected pair."""
        bases = base_keys(planned, numbers_masks=self._source.numbers_masks)
        keys = pc.if_else(pc.is_valid(planned["error"]), planned["key"], bases)
        return contents_digests(pc.fill_null(keys, ""), planned)

    def _hashes(self, pairs: pa.Table) -> NDArray[np.uint64]:
        """Return the hashes under which pairs are found: of their keys, and of their base keys."""
        hashes = hash_keys(pairs["key"])
        bases = base_keys(pairs, numbers_masks=self._source.numbers_masks)
        others = bases.filter(pc.not_equal(bases, pairs["key"]))
        return np.concatenate([hashes, hash_keys(others)]) if len(others) else hashes

    def _describe(self, pair: Row, slices: Sequence[Slice]) -> str:
        """Return where the source has a pair: ``slices`` are those of the batch, ``unit`` is a planned pair's unit."""
        if "unit" in pair:
            slices = self._log.units[pair["unit"]].slices if pair["unit"] < len(self._log.units) else self._slices
        line = pair["line"]
        for one in slices:
            if line < one.end - one.start:
                return f"row {one.start + line + 1:,} of {one.file}"
            line -= one.end - one.start
        return str(pair["image_uri"])


def _with_repeated(slices: tuple[Slice, ...], lines: NDArray[np.int64]) -> tuple[Slice, ...]:
    """Return the slices of a batch with the numbers of their repeated lines; each line may have several pairs."""
    if not slices:
        return ()
    ends = np.cumsum([one.end - one.start for one in slices])
    where = np.searchsorted(ends, np.unique(lines), "right").clip(max=len(ends) - 1)  # postponed: behind the slices
    counts = np.bincount(where, minlength=len(ends)).tolist()
    return tuple(one._replace(repeated=count) for one, count in zip(slices, counts, strict=True))


class _ChangedPairs:
    """Changed pairs by unit; many of them are kept in temporary files."""

    def __init__(self) -> None:
        self._tables: defaultdict[int, list[pa.Table]] = defaultdict(list)
        self._files: defaultdict[int, list[str]] = defaultdict(list)
        self._rows = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, pairs: pa.Table, units: NDArray[np.int64]) -> None:
        """Add pairs with the number of each one's unit."""
        for unit in np.unique(units).tolist():
            self._tables[unit].append(pairs.filter(pa.array(units == unit)))
        self._rows += pairs.num_rows
        if self._rows > _CHANGED_IN_MEMORY:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="inpaint-encode-changed-")
            for unit, tables in self._tables.items():
                path = f"{self._folder.name}/{unit}-{len(self._files[unit])}.arrow"
                table = pa.concat_tables(tables)
                with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
                    writer.write_table(table)
                self._files[unit].append(path)
            self._tables.clear()
            self._rows = 0

    def of(self, unit: int) -> pa.Table | None:
        """Return the changed pairs of a unit; None if there are none."""
        tables = list(self._tables[unit])
        for path in self._files[unit]:
            with pa.memory_map(path) as file:
                tables.append(pa.ipc.open_file(file).read_all())  # noqa: TID251
        return pa.concat_tables(tables) if tables else None
