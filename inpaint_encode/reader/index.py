"""Which row groups an output has, how many rows are in each, and between which keys they lie."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError

from .output import DataFile, Output

__all__ = ["Index"]

_THREADS = 32


@dataclass(frozen=True)
class Index:
    """The row groups of an output that have rows, in the order of its files.

    It is made of the files' footers, which are the truth and say where rows are besides: one request of at most 64 KiB
    for each file, `_THREADS` at once, and about a hundred bytes of memory for each row group.
    """

    files: NDArray[np.int32]
    """For each row group the number of its file."""
    groups: NDArray[np.int32]
    """Its own number in that file."""
    ends: NDArray[np.int64]
    """Rows of the output up to its end."""
    least: pa.StringArray
    """Its first key in the order of bytes; null where the file does not say."""
    greatest: pa.StringArray

    @classmethod
    def of(cls, output: Output) -> Index:
        """Read the footers of all files.

        Raises:
            UsageError: a file has no column ``key``.
            PermissionError, OSError: by what the store said.
        """
        with ThreadPoolExecutor(_THREADS) as pool:
            known = list(pool.map(lambda file: _groups_of(output.footer(file), file), output.files))
        groups = [group for its_groups in known for group in its_groups]
        return cls(
            files=np.repeat(np.arange(len(known), dtype=np.int32), [len(its_groups) for its_groups in known]),
            groups=np.array([group.number for group in groups], np.int32),
            ends=np.cumsum([group.rows for group in groups], dtype=np.int64),
            least=pa.array([group.least for group in groups], pa.string()),
            greatest=pa.array([group.greatest for group in groups], pa.string()),
        )

    def __len__(self) -> int:
        """Rows."""
        return int(self.ends[-1]) if len(self.ends) else 0

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Rows of each row group."""
        return np.diff(self.ends, prepend=0)

    def place(self, row: int) -> tuple[int, int]:
        """Return the row group of a row of the output, and its number there.

        Raises:
            IndexError: there is no such row; negative ones count from the end.
        """
        at = row + len(self) if row < 0 else row
        if not 0 <= at < len(self):
            raise IndexError(f"row {row:,} of an output of {len(self):,} rows")
        group = int(np.searchsorted(self.ends, at, side="right"))
        return group, at - int(self.ends[group] - self.sizes[group])

    def candidates(self, key: str) -> list[int]:
        """Row groups that may have ``key``: one in most outputs, since keys are sorted before they are cut."""
        inside = pc.and_kleene(pc.less_equal(self.least, key), pc.greater_equal(self.greatest, key))
        found: list[int] = np.flatnonzero(np.asarray(pc.fill_null(inside, True)) & (self.sizes > 0)).tolist()
        return found


class _Group(NamedTuple):
    number: int
    rows: int
    least: str | None = None
    greatest: str | None = None


def _groups_of(footer: pq.FileMetaData, file: DataFile) -> list[_Group]:
    """Those with rows: where all pairs of a chunk were rejected there are none."""
    key = next((number for number in range(footer.num_columns) if footer.schema.column(number).path == "key"), None)
    if key is None:
        raise UsageError(f"{file.path} has no column key: it was not written by an encode job, move it away")
    groups = [_group(number, footer.row_group(number), key) for number in range(footer.num_row_groups)]
    return [group for group in groups if group.rows]


def _group(number: int, about: pq.RowGroupMetaData, key: int) -> _Group:
    statistics = about.column(key).statistics
    if statistics is None or not statistics.has_min_max:
        return _Group(number, about.num_rows)
    return _Group(number, about.num_rows, statistics.min, statistics.max)
