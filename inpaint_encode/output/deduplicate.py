"""Compares the pairs of a source with each other and with the plan: which are new, and which have a key that is taken.

The first pair with a key has it. A later line with the same contents is dropped. A later line with the same key and
other contents becomes a pair with a key of its own, which is rejected. The keys of an image's second and further masks
are numbered here, if the source leaves that to the plan.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.schema import EXTRA_COLUMNS

from .known_pairs import COMPARED

Row = Mapping[str, Any]


class Deduplicated(NamedTuple):
    """The pairs of a batch, by what they are to the plan."""

    fresh: pa.Table
    """Pairs to add to the plan, with their final keys and a column ``error``; pairs of one image are neighbors."""
    changed: pa.Table
    """Pairs that the plan has with other contents, with the plan's keys and mask numbers."""
    changed_hashes: NDArray[np.uint64]
    """Hashes of their contents, not 0."""
    met: NDArray[np.int64]
    """Rows of ``planned`` that the batch has, changed or not."""
    superseded: NDArray[np.int64]
    """Rows of ``planned`` that are rejected, and whose contents another planned pair has now."""
    repeated: NDArray[np.int64]
    """Positions in the batch of pairs that were dropped, because an earlier line has the same contents."""
    postponed: pa.Table
    """Pairs that may replace a planned pair, with the source's keys; only if they were to be postponed."""


class NewPairs(Enum):
    """What becomes of a pair that the plan does not have, if its key is that of a planned pair."""

    ADD = "add"
    """A further mask of the same image gets a number; a pair of another image is rejected."""
    POSTPONE = "postpone"
    """That is known when all of the source has been read."""
    REPLACE = "replace"
    """It replaces a pair with its key that the source does not have any more; if there is none, it is added."""


def base_keys(planned: pa.Table, *, numbers_masks: bool) -> pa.ChunkedArray:
    """Return the keys of planned pairs as the source gave them: without mask numbers and marks of rejected pairs."""
    keys = planned["key"]
    if planned["error"].null_count < planned.num_rows:
        keys = pc.if_else(pc.is_valid(planned["error"]), pc.replace_substring_regex(keys, "#[0-9a-f]{16}$", ""), keys)
    if not numbers_masks:
        return keys
    numbered = pc.and_(pc.greater(planned["mask_index"], 0), pc.is_null(planned["error"]))
    return pc.if_else(numbered, pc.replace_substring_regex(keys, r"/\d+$", ""), keys)


def deduplicate(
    pairs: pa.Table,
    planned: pa.Table,
    *,
    numbers_masks: bool,
    describe: Callable[[Row], str],
    new_pairs: NewPairs = NewPairs.ADD,
) -> Deduplicated:
    """Compare a batch with the planned pairs that have its keys.

    Args:
        pairs: `inpaint_encode.schema.SOURCE_PAIRS` of a batch, in the source's order.
        planned: rows of `inpaint_encode.schema.PAIRS`, all whose keys or `base_keys` are keys of the batch. A column
            ``met`` says which of them this reading of the source has had already, and ``changed_hash`` is the hash of
            the contents that it had, 0 for those of the plan.
        numbers_masks: see `inpaint_encode.sources.pairs.PairSource`.
        describe: returns where the source has a pair, for the message about a repeated key; called with rows of both
            tables.
        new_pairs: see `NewPairs`.
    """
    counts = pairs["key"].value_counts()
    doubtful = pc.is_in(pairs["key"], value_set=counts.filter(pc.greater(counts.field("counts"), 1)).field("values"))
    if planned.num_rows:
        taken = pa.chunked_array(base_keys(planned, numbers_masks=numbers_masks).chunks + planned["key"].chunks)
        doubtful = pc.or_(doubtful, pc.is_in(pairs["key"], value_set=taken))
    new = _with_error(pairs)
    if not pc.any(doubtful).as_py():
        nothing, no_hash, no_rows = new.slice(0, 0), np.empty(0, np.uint64), np.empty(0, np.int64)
        return Deduplicated(_with_neighbors(new), nothing, no_hash, no_rows, no_rows, no_rows, nothing)
    if numbers_masks:  # a numbered key may be that of an image, a/1 of a/1.png
        images = pc.replace_substring_regex(pairs["key"], r"/\d+$", "")
        doubtful = pc.or_(doubtful, pc.is_in(images, value_set=pairs["key"].filter(doubtful)))
    decisions = _Decisions(numbers_masks, describe, new_pairs)
    decisions.add_planned(planned)
    at = np.flatnonzero(doubtful.to_numpy())
    for position, row in zip(at.tolist(), pairs.take(at).to_pylist(), strict=True):
        decisions.decide(position, row)
    certain = np.flatnonzero(~doubtful.to_numpy())
    fresh = decisions.rows(new, decisions.fresh, certain)
    changed = decisions.rows(new, decisions.changed)
    return Deduplicated(
        fresh=_with_neighbors(fresh),
        changed=changed,
        changed_hashes=np.array(decisions.changed_hashes, np.uint64),
        met=np.array(decisions.met, np.int64),
        superseded=np.array(decisions.superseded, np.int64),
        repeated=np.array(decisions.repeated, np.int64),
        postponed=new.take(pa.array(decisions.postponed, pa.int64())),
    )


def identities(keys: pa.ChunkedArray, pairs: pa.Table, *, numbers_masks: bool) -> pa.ChunkedArray:
    """Return what tells the pairs of a source apart, before masks are numbered; no URI contains a NUL."""
    if not numbers_masks:
        return keys
    return pc.binary_join_element_wise(keys, pairs["image_uri"], pairs["mask_uri"], "\0")


def _with_error(pairs: pa.Table) -> pa.Table:
    return pairs.append_column("error", pa.nulls(pairs.num_rows, pa.string()))


def _with_neighbors(pairs: pa.Table) -> pa.Table:
    """Move all pairs of an image behind its first one, in their order."""
    numbers = pairs["image_uri"].combine_chunks().dictionary_encode().indices.to_numpy()
    if (np.diff(numbers) >= 0).all():
        return pairs
    return pairs.take(np.argsort(numbers, kind="stable"))


@dataclass
class _Member:
    """A pair that has a key, in the plan or in the batch."""

    row: Row
    planned_row: int = -1
    """Number in the plan's table; -1: it is from the batch."""
    met: bool = True
    changed_hash: int = 0
    """Of the contents that the source has now; 0: those of the row."""
    groups: list[_Group] = field(default_factory=list)
    """The groups that wait for it, if it is not met."""

    def equals(self, row: Row) -> bool:
        """Return whether a line repeats this pair as the source has it."""
        return _hash(row) == self.changed_hash if self.changed_hash else _contents(row) == _contents(self.row)


@dataclass
class _Group:
    """The pairs with one key of the source: one, or those of an image whose masks are numbered."""

    image_uri: str
    members: dict[str, _Member] = field(default_factory=dict)
    """By mask URI if masks are numbered, else by an empty string."""
    next_number: int = 0
    has_new_image: bool = False
    """Whether another image has replaced the one of the plan."""
    has_met: bool = False
    """Whether the source has had one of the pairs."""
    unmet: list[tuple[int, int, _Member]] = field(default_factory=list)
    """Heap of planned pairs that the source may not have had, by mask number and planned row: an image may have a
    million masks, and each asks for the first one."""

    def first_unmet(self) -> _Member | None:
        """Return the first planned pair that the source has not had so far."""
        while self.unmet and self.unmet[0][2].met:
            heapq.heappop(self.unmet)
        return self.unmet[0][2] if self.unmet else None


class _Decisions:
    """What becomes of the pairs whose key occurs more than once; in the order of the source."""

    def __init__(self, numbers_masks: bool, describe: Callable[[Row], str], new_pairs: NewPairs) -> None:
        self.fresh: list[tuple[int, str, int, str | None]] = []
        """Position in the batch, key, mask number and error."""
        self.changed: list[tuple[int, str, int, str | None]] = []
        self.changed_hashes: list[int] = []
        self.met: list[int] = []
        self.superseded: list[int] = []
        self.repeated: list[int] = []
        self.postponed: list[int] = []
        self._numbers_masks, self._describe, self._new_pairs = numbers_masks, describe, new_pairs
        self._groups: dict[str, _Group] = {}

    def add_planned(self, planned: pa.Table) -> None:
        """Add the planned pairs."""
        bases = base_keys(planned, numbers_masks=self._numbers_masks).to_pylist()
        for number, (base, row) in enumerate(zip(bases, planned.to_pylist(), strict=True)):
            member = _Member(row, number, row["met"], row["changed_hash"])
            self._add(row["key"], row, member, 1 if row["key"] != base else row["mask_index"] + 1)
            if row["error"] is not None:  # it took a number, but not the key
                if base in self._groups:
                    self._groups[base].next_number = max(self._groups[base].next_number, row["mask_index"] + 1)
            elif row["key"] != base:
                self._add(base, row, member, row["mask_index"] + 1)

    def decide(self, position: int, row: Row) -> None:
        """Decide about one pair of the batch."""
        group = self._groups.get(row["key"])
        if group is None:
            self._add(row["key"], row, _Member(row), row["mask_index"] + 1)
            self.fresh.append((position, row["key"], row["mask_index"], None))
            return
        mask = row["mask_uri"] if self._numbers_masks else ""
        has_image = not self._numbers_masks or group.image_uri == row["image_uri"]
        member = group.members.get(mask) if has_image else None
        rejected = _rejected_key(row) in self._groups
        if member and (member.equals(row) or not rejected):
            self._decide_known(position, row, member, group)
        elif has_image and not member and (not rejected or self._may_accept(group)):
            self._decide_new_mask(position, row, group)
        elif self._new_pairs is NewPairs.ADD or (member.met if member else has_image or group.has_met):
            self._reject(position, row, row["key"], group, row["mask_index"])
        elif self._new_pairs is NewPairs.POSTPONE:
            self.postponed.append(position)
        else:
            gone = member or group.members.get(mask) or group.first_unmet()
            assert gone  # the source has had none of the pairs
            group.image_uri, group.members[mask], group.has_new_image = row["image_uri"], gone, True
            self._decide_known(position, row, gone, group)

    def _may_accept(self, group: _Group) -> bool:
        """Return whether a mask of the group's image, which was rejected before, may have a key now."""
        return group.has_new_image or bool(self._new_pairs is not NewPairs.ADD and group.first_unmet())

    def _decide_new_mask(self, position: int, row: Row, group: _Group) -> None:
        """Decide about a mask that the image does not have so far."""
        gone = group.first_unmet()
        if gone and self._new_pairs is NewPairs.POSTPONE:
            self.postponed.append(position)
        elif gone and self._new_pairs is NewPairs.REPLACE:
            group.members[row["mask_uri"]] = gone  # so that a repeated line is found
            self._decide_known(position, row, gone, group)
        elif taken := self._groups.get(key := f"{row['key']}/{group.next_number}"):
            self._reject(position, row, key, taken, group.next_number)
            group.next_number += 1
        else:
            number, member = group.next_number, _Member(row)
            self._supersede(row)
            self._add(row["key"], row, member, number + 1)
            self._add(key, row, member, 1)
            self.fresh.append((position, key, number, None))

    def _decide_known(self, position: int, row: Row, member: _Member, group: _Group) -> None:
        if not member.met:
            self._meet(member)
            if not member.equals(row):
                self._supersede(row)
                member.changed_hash = _hash(row)
                self.changed.append((position, member.row["key"], member.row["mask_index"], None))
                self.changed_hashes.append(member.changed_hash)
        elif member.equals(row):
            self.repeated.append(position)
        elif self._new_pairs is not NewPairs.ADD or _contents(row) != _contents(member.row):
            self._reject(position, row, row["key"], group, row["mask_index"])

    def _supersede(self, row: Row) -> None:
        """Note that a pair is not rejected any more, if it was."""
        if rejected := self._groups.get(_rejected_key(row)):
            self.superseded += [one.planned_row for one in rejected.members.values() if one.planned_row >= 0]

    def _meet(self, member: _Member) -> None:
        member.met = True
        for group in member.groups:
            group.has_met = True
        self.met.append(member.planned_row)

    def _reject(self, position: int, row: Row, taken: str, owner: _Group, number: int) -> None:
        """Add the pair under a key of its own, which the same line gets again in a later reading of the source."""
        key = _rejected_key(row)
        if rejected := self._groups.get(key):
            member = next(iter(rejected.members.values()))
            if member.met:
                self.repeated.append(position)
            else:
                self._meet(member)
            return
        self._add(key, row, _Member(row), 1)
        first = next(iter(owner.members.values())).row
        sentence = (
            f"{self._describe(row)} has the key {taken}, which {self._describe(first)} has; keys must be unique: "
            "remove one of the two, or give a column with unique keys (--key-column)"
        )
        self.fresh.append((position, key, number, sentence))

    def _add(self, key: str, row: Row, member: _Member, next_number: int) -> None:
        group = self._groups.setdefault(key, _Group(row["image_uri"]))
        group.members[row["mask_uri"] if self._numbers_masks else ""] = member
        if member.met:
            group.has_met = True
        else:
            member.groups.append(group)
            heapq.heappush(group.unmet, (row["mask_index"], member.planned_row, member))
        group.next_number = max(group.next_number, next_number)

    def rows(
        self, pairs: pa.Table, decided: list[tuple[int, str, int, str | None]], certain: NDArray[np.int64] | None = None
    ) -> pa.Table:
        """Return rows of ``pairs`` with the keys, mask numbers and errors that were decided, in the source's order.

        Args:
            pairs: the batch.
            decided: `fresh` or `changed`.
            certain: positions of further rows, whose values stay.
        """
        positions, keys, numbers, errors = zip(*decided, strict=True) if decided else ((), (), (), ())
        at = np.array(positions, np.int64)
        table = pairs.take(at)
        for name, values in (("key", keys), ("mask_index", numbers), ("error", errors)):
            place = table.schema.get_field_index(name)
            table = table.set_column(place, table.schema.field(place), pa.array(values, table.schema.field(place).type))
        if certain is None or not len(certain):
            return table
        table = pa.concat_tables([table, pairs.take(certain)])
        return table.take(np.argsort(np.concatenate([at, certain]), kind="stable"))


def _contents(row: Row) -> tuple[str, ...]:
    """Return the values that make two lines with one key the same line; by ``repr``, since NaN is not equal to NaN."""
    return (*(row[name] for name in COMPARED), repr(row.get(EXTRA_COLUMNS)))


def _hash(row: Row) -> int:
    """Return a hash of the contents, not 0."""
    contents = repr(_contents(row)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(contents, digest_size=8).digest(), "big") or 1


def _rejected_key(row: Row) -> str:
    """Return the key of a pair whose key is taken: its key and a hash of its contents."""
    return f"{row['key']}#{_hash(row):016x}"
