"""A row by its key: in the row group whose least and largest key it lies between, as the files' footers say."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode import rows, storage
from inpaint_encode.errors import UsageError
from inpaint_encode.ledger import damage_named
from inpaint_encode.reader import DataFile, Output

from .sample import Place

__all__ = ["find_row"]

_THREADS = 16
_NEAR = 3
"""Keys that are named where one is not there."""


class _Range(NamedTuple):
    """The keys of one row group."""

    least: str
    largest: str
    file: DataFile
    group: int


def find_row(output: Output, key: str) -> Place:
    """Return where the row of this key is; the footers of all files may be read for that.

    Raises:
        UsageError: there is none: it was rejected, or it is not known, and others are near.
        PermissionError, OSError: by what the store said.
    """
    ranges: list[_Range] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for found in pool.map(lambda file: list(_ranges(output, file)), output.files):
            for one in found:
                if one.least <= key <= one.largest and (row := _index(output, one, key)) >= 0:
                    pool.shutdown(wait=False, cancel_futures=True)
                    return Place(one.file, one.group, row)
            ranges += found
    neighbours = _neighbours(ranges, key)
    _refuse_rejected(output, key, {one.file for one in neighbours})
    raise UsageError(f"{output.uri} has no row {key!r}{_near(output, neighbours, key)}")


def _ranges(output: Output, file: DataFile) -> Iterator[_Range]:
    with damage_named(storage.join(output.uri, file.path)), output.parquet(file) as opened:
        for group in range(opened.num_row_groups):
            about = opened.metadata.row_group(group).column(opened.schema_arrow.names.index("key")).statistics
            if about is None or not about.has_min_max:
                keys = _keys(opened, group).to_pylist()
                if keys:
                    yield _Range(min(keys), max(keys), file, group)
            else:
                yield _Range(about.min, about.max, file, group)


def _keys(opened: pq.ParquetFile, group: int) -> pa.ChunkedArray:
    return opened.read_row_group(group, columns=["key"])["key"]


def _index(output: Output, at: _Range, key: str) -> int:
    with output.parquet(at.file) as opened:
        return int(_keys(opened, at.group).index(key).as_py())


def _neighbours(ranges: list[_Range], key: str) -> list[_Range]:
    """Groups that the key could be in, and those before and after."""
    around = [one for one in ranges if one.least <= key <= one.largest][:_NEAR]
    before = max((one for one in ranges if one.largest < key), key=lambda one: one.largest, default=None)
    after = min((one for one in ranges if one.least > key), key=lambda one: one.least, default=None)
    return [*around, *(one for one in (before, after) if one)]


def _near(output: Output, neighbours: list[_Range], key: str) -> str:
    keys = set()
    for one in neighbours:
        with output.parquet(one.file) as opened:
            keys.update(_keys(opened, one.group).to_pylist())
    near = difflib.get_close_matches(key, sorted(keys), n=_NEAR, cutoff=0.5)
    names = near or [*sorted(one for one in keys if one < key)[-1:], *sorted(one for one in keys if one > key)[:1]]
    return f"; near it are {', '.join(map(repr, names))}" if names else ""


def _refuse_rejected(output: Output, key: str, files: set[DataFile]) -> None:
    """Of the chunks that the key would be in, if it were a row."""
    for file in files:
        try:
            data = storage.read(storage.join(output.uri, "_rejected", file.path)).data
        except FileNotFoundError:
            continue
        table = pq.read_table(pa.BufferReader(data), columns=rows.REJECTS.names)
        at = table["key"].index(key).as_py()
        if at >= 0:
            found = table.slice(at, 1).to_pylist()[0]
            raise UsageError(f"{key!r} is no row, it was rejected: {found['error']}: {found['message']}")
