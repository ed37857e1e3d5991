"""Which rows of an output are looked at: files, row groups and rows are drawn, so that no output is too large.

Data files are drawn first, each as likely as any other, and only their footers and what is wanted of their row groups
is read. Rows of a group are neighbours in the order of their keys.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.core.geometry import Sizing
from inpaint_encode.output.parquet import damage_named
from inpaint_encode.reader import DataFile, Output, as_rows
from inpaint_encode.stores import storage

__all__ = ["Drawn", "Facts", "Limits", "Place", "Sample", "read_place"]

_THREADS = 16
_NEIGHBOURS = 32
"""Rows that one group adds to the latents at most, as long as there are groups enough."""
_PLAIN = ("source_height", "source_width", "mask_coverage", "precision")

_T = TypeVar("_T")
_R = TypeVar("_R")


class Limits(NamedTuple):
    """What is read at most, whatever the output has."""

    files: int = 100
    """Data files that are opened."""
    facts: int = 100_000
    """Rows whose plain columns are read."""
    latent_bytes: int = 2**29
    """Bytes of row groups whose latents are read, as they are stored; one group is read in any case."""


class Place(NamedTuple):
    """Where a row is."""

    file: DataFile
    group: int
    row: int
    """In its row group."""


class Drawn(NamedTuple):
    """Some rows of one row group."""

    file: DataFile
    group: int
    rows: list[int]


@dataclass(frozen=True)
class Facts:
    """What is read of many rows: plain columns, value by value in the order of ``places``."""

    places: list[Place]
    height: NDArray[np.int32]
    """Of the crop, in pixels."""
    width: NDArray[np.int32]
    coverage: NDArray[np.float32]
    """Share of the grown mask that is 1."""
    precision: list[str]
    tiled: int
    """Rows among them that were encoded in tiles."""

    def __len__(self) -> int:
        return len(self.places)


class _Group(NamedTuple):
    at: int
    """Which of the opened files."""
    number: int
    rows: int
    latent_bytes: int


class Sample:
    """Files of an output, drawn and opened: what they hold, and their groups in the order they were drawn in.

    Args:
        output: whose files.
        seed: the same seed draws the same of the same output.
        limits: what is read at most.

    Raises:
        JobFailed: a file is damaged; this and what follows here and while rows are read.
        PermissionError, OSError: by what the store said.
    """

    def __init__(self, output: Output, seed: int, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._metadata = output.metadata
        self._uri = output.uri
        self._random = random.Random(seed)  # noqa: S311 - not a secret
        self.of_files = len(output.files)
        self.files = self._random.sample(output.files, min(self._limits.files, len(output.files)))
        self._opened = list(_at_once(lambda file: _opened(output, file), self.files))
        self._groups = [group for at, file in enumerate(self._opened) for group in _groups(at, file)]
        self._random.shuffle(self._groups)

    @property
    def rows(self) -> int:
        """Rows of the opened files."""
        return sum(group.rows for group in self._groups)

    @property
    def is_whole(self) -> bool:
        """Whether every file of the output is opened."""
        return len(self.files) == self.of_files

    def rng(self) -> random.Random:
        """Go on with the numbers by which all is drawn."""
        return self._random

    def facts(self) -> Facts:
        """Read the plain columns of whole row groups, in the order they were drawn in, up to the limit."""
        wanted = self._up_to(self._limits.facts)
        by_file = _by(wanted, lambda group: group.at)
        tables = _at_once(lambda item: self._plain_tables(*item), by_file.items())
        found = {group: table for part in tables for group, table in part.items()}
        return _facts_of([(group, self.files[group.at], found[group]) for group in wanted], Sizing.of(self._metadata))

    def _plain_tables(self, at: int, groups: list[_Group]) -> dict[_Group, pa.Table]:
        file = self._opened[at]
        names = [*_PLAIN, *(["tiled"] if "tiled" in file.schema_arrow.names else [])]
        with damage_named(storage.join(self._uri, self.files[at].path)):
            return {group: file.read_row_group(group.number, columns=names) for group in groups}

    def _up_to(self, most: int) -> list[_Group]:
        """The first groups that make ``most`` rows, or all; one at least."""
        wanted: list[_Group] = []
        total = 0
        for group in self._groups:
            if wanted and total >= most:
                break
            wanted.append(group)
            total += group.rows
        return wanted

    def draw_latents(self, count: int) -> list[Drawn]:
        """Draw ``count`` rows whose latents are to be read, or as many as the limits and the files give."""
        most = max(_NEIGHBOURS, -(-count // max(1, len(self._groups))))
        drawn: list[Drawn] = []
        left, bytes_left = count, self._limits.latent_bytes
        for group in self._groups:
            if left <= 0 or (drawn and group.latent_bytes > bytes_left):
                break
            picked = sorted(self._random.sample(range(group.rows), min(group.rows, most, left)))
            if picked:
                drawn.append(Drawn(self.files[group.at], group.number, picked))
            left, bytes_left = left - len(picked), bytes_left - group.latent_bytes
        return drawn

    def latents(self, drawn: Iterable[Drawn], take: Callable[[Drawn, Iterator[dict[str, Any]]], _R]) -> Iterator[_R]:
        """Let ``take`` look at the rows of each of ``drawn``, with ``key`` and ``samples``; yield what it returns.

        Groups are read by several threads, in each of which ``take`` is called: what it returns should be small.
        """
        opened = dict(zip(self.files, self._opened, strict=True))
        by_file = _by(drawn, lambda one: one.file)

        def read(file: DataFile) -> list[_R]:
            with damage_named(storage.join(self._uri, file.path)):
                return [take(one, _rows_of(opened[file], one, ["key", "samples"])) for one in by_file[file]]

        for results in _at_once(read, by_file):
            yield from results


def read_place(output: Output, place: Place) -> dict[str, Any]:
    """Read one whole row, as `as_rows` gives it, and with it the row group that it is in.

    Raises:
        JobFailed: the file is damaged.
        PermissionError, OSError: by what the store said.
    """
    with damage_named(storage.join(output.uri, place.file.path)), output.parquet(place.file) as file:
        return next(_rows_of(file, Drawn(place.file, place.group, [place.row]), None))


def _opened(output: Output, file: DataFile) -> pq.ParquetFile:
    with damage_named(storage.join(output.uri, file.path)):
        return output.parquet(file)


def _rows_of(file: pq.ParquetFile, drawn: Drawn, columns: list[str] | None) -> Iterator[dict[str, Any]]:
    table = file.read_row_group(drawn.group, columns=columns)
    for row in drawn.rows:
        yield from as_rows(table.slice(row, 1))


def _groups(at: int, file: pq.ParquetFile) -> Iterator[_Group]:
    for number in range(file.num_row_groups):
        group = file.metadata.row_group(number)
        columns = map(group.column, range(group.num_columns))
        latent_bytes = sum(one.total_compressed_size for one in columns if one.path_in_schema.startswith("samples."))
        yield _Group(at, number, group.num_rows, latent_bytes)


def _facts_of(parts: list[tuple[_Group, DataFile, pa.Table]], sizing: Sizing) -> Facts:
    table = pa.concat_tables([part for _, _, part in parts]) if parts else _no_facts()
    places = [Place(file, group.number, row) for group, file, _ in parts for row in range(group.rows)]
    fit = lru_cache(maxsize=2**16)(sizing.fit)
    crops = [fit(*size).crop for size in zip(*(table[name].to_pylist() for name in _PLAIN[:2]), strict=True)]
    return Facts(
        places,
        np.array([crop.height for crop in crops], np.int32),
        np.array([crop.width for crop in crops], np.int32),
        table["mask_coverage"].to_numpy(),
        table["precision"].to_pylist(),
        sum(table["tiled"].to_pylist()) if "tiled" in table.column_names else 0,
    )


def _no_facts() -> pa.Table:
    return pa.table({"source_height": [], "source_width": [], "mask_coverage": [], "precision": []})


def _by(items: Iterable[_T], key: Callable[[_T], _R]) -> dict[_R, list[_T]]:
    found: defaultdict[_R, list[_T]] = defaultdict(list)
    for item in items:
        found[key(item)].append(item)
    return dict(found)


def _at_once(call: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """``map`` by some threads, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        yield from pool.map(call, items)
