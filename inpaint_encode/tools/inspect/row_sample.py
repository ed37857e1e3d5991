"""A random sample of an output's rows, of limited size: files are drawn first, then row groups, then rows.

Every data file is equally likely. Only the footers and the requested columns of the drawn files are read. Rows of one
row group are neighbors by key.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.core.geometry import Sizing
from inpaint_encode.output.parquet import translate_errors
from inpaint_encode.parquet_file import leaf_paths
from inpaint_encode.reader import DataFile, Output, as_rows
from inpaint_encode.stores import storage

MAX_FILES = 100
"""Data files that are opened."""

MAX_ROWS = 100_000
"""Rows whose plain columns are read."""

MAX_LATENT_BYTES = 2**29
"""Compressed bytes of the row groups whose latents are read; one group is always read."""

_MAX_NEIGHBORS = 32
"""Rows of one group whose latents are read, as long as there are enough groups."""

THREADS = 16
"""Files and row groups that are read concurrently."""

_PLAIN = {"source_height": pa.int32(), "source_width": pa.int32(), "mask_coverage": pa.float32()}
_PLAIN |= {"precision": pa.string(), "tiled": pa.bool_()}

_R = TypeVar("_R")


class RowLocation(NamedTuple):
    """The place of a row in an output."""

    file: DataFile
    group: int
    row: int
    """Number in the row group."""


class RowGroup(NamedTuple):
    """A row group of a data file."""

    file: DataFile
    number: int
    rows: int
    latent_bytes: int
    """Compressed."""


@dataclass(frozen=True)
class PlainColumns:
    """Columns of many rows, value by value in the order of ``locations``."""

    locations: list[RowLocation]
    height: NDArray[np.int32]
    """Of the crop, in pixels."""
    width: NDArray[np.int32]
    coverage: NDArray[np.float32]
    """Share of the image that the grown mask covers."""
    precision: list[str]
    tiled: int
    """Number of rows that were encoded in tiles."""


class RowSample:
    """Randomly drawn data files of an output, and their row groups in random order.

    Args:
        output: the output.
        seed: the same seed draws the same rows of the same output.

    Raises:
        JobFailed: a file is damaged; the methods raise it too.
        PermissionError, OSError: from the store.
    """

    def __init__(self, output: Output, seed: int) -> None:
        self.output, self.seed = output, seed
        self.random = random.Random(seed)  # noqa: S311 - not a secret
        self.files = self.random.sample(output.files, min(MAX_FILES, len(output.files)))
        with ThreadPoolExecutor(THREADS) as pool:
            footers = list(pool.map(output.footer, self.files))
        self.groups = [
            RowGroup(file, number, footer.row_group(number).num_rows, _latent_bytes(footer, number))
            for file, footer in zip(self.files, footers, strict=True)
            for number in range(footer.num_row_groups)
        ]
        self.random.shuffle(self.groups)
        self.rows = sum(group.rows for group in self.groups)

    @property
    def is_whole(self) -> bool:
        """Whether every data file of the output was drawn."""
        return len(self.files) == len(self.output.files)

    def read_plain_columns(self) -> PlainColumns:
        """Read the plain columns of whole row groups, until the limit of rows is reached."""
        ends = np.cumsum([group.rows for group in self.groups])
        groups = self.groups[: int(np.searchsorted(ends, MAX_ROWS)) + 1]
        tables = self._read(groups, list(_PLAIN), lambda _, table: table)
        table = pa.concat_tables(tables) if tables else pa.schema(_PLAIN).empty_table()
        fit = lru_cache(maxsize=2**16)(Sizing.of(self.output.metadata).fit)
        sides = zip(table["source_height"].to_pylist(), table["source_width"].to_pylist(), strict=True)
        crops = [fit(*size).crop for size in sides]
        return PlainColumns(
            locations=[RowLocation(one.file, one.number, row) for one in groups for row in range(one.rows)],
            height=np.array([crop.height for crop in crops], np.int32),
            width=np.array([crop.width for crop in crops], np.int32),
            coverage=table["mask_coverage"].to_numpy(),
            precision=table["precision"].to_pylist(),
            tiled=sum(table["tiled"].to_pylist()) if "tiled" in table.column_names else 0,
        )

    def draw(self, count: int) -> dict[RowGroup, list[int]]:
        """Draw ``count`` rows for reading their latents, or fewer if limits or files end first."""
        most = max(_MAX_NEIGHBORS, -(-count // max(1, len(self.groups))))
        drawn: dict[RowGroup, list[int]] = {}
        rows_left, bytes_left = count, MAX_LATENT_BYTES
        for group in self.groups:
            if rows_left <= 0 or (drawn and group.latent_bytes > bytes_left):
                break
            if group.rows:
                drawn[group] = sorted(self.random.sample(range(group.rows), min(group.rows, most, rows_left)))
                rows_left -= len(drawn[group])
            bytes_left -= group.latent_bytes
        return drawn

    def map_rows(
        self,
        drawn: Mapping[RowGroup, Sequence[int]],
        columns: list[str],
        function: Callable[[RowLocation, dict[str, Any]], _R],
    ) -> list[_R]:
        """Call ``function`` with these columns of every drawn row, in several threads; return its results."""

        def convert(group: RowGroup, table: pa.Table) -> list[_R]:
            places = [RowLocation(group.file, group.number, number) for number in drawn[group]]
            return [function(place, _row_of(table, place.row)) for place in places]

        return list(chain.from_iterable(self._read(drawn, columns, convert)))

    def _read(
        self, groups: Iterable[RowGroup], columns: list[str], convert: Callable[[RowGroup, pa.Table], _R]
    ) -> list[_R]:
        """Read row groups in several threads; return what ``convert`` returns of each."""

        def read(group: RowGroup) -> _R:
            uri = storage.join(self.output.uri, group.file.path)
            with translate_errors(uri), self.output.parquet(group.file) as parquet:
                return convert(group, parquet.read_row_group(group.number, columns=columns))

        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(read, groups))


def read_row(output: Output, location: RowLocation) -> dict[str, Any]:
    """Read all columns of one row, as `as_rows` returns it; its whole row group is fetched.

    Raises:
        JobFailed: the file is damaged.
        PermissionError, OSError: from the store.
    """
    with translate_errors(storage.join(output.uri, location.file.path)), output.parquet(location.file) as file:
        return _row_of(file.read_row_group(location.group), location.row)


def _row_of(table: pa.Table, number: int) -> dict[str, Any]:
    return next(as_rows(table.slice(number, 1)))


def _latent_bytes(footer: pq.FileMetaData, number: int) -> int:
    group, paths = footer.row_group(number), leaf_paths(footer)
    return sum(group.column(at).total_compressed_size for at, path in enumerate(paths) if path.startswith("samples."))
