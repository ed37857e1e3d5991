"""A row by its key, or what is known of a key that is no row's."""

from __future__ import annotations

import difflib

import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.reader import Output
from inpaint_encode.reader.groups import RowGroupReader
from inpaint_encode.stores import storage

from .rejects import read_file
from .sample import Place

__all__ = ["find_row"]

_NEAR = 3
"""Keys that are named where one is not there."""


def find_row(output: Output, key: str) -> Place:
    """Return where the row of this key is; the footers of all files are read for that.

    Raises:
        UsageError: there is none: it was rejected, or it is not known, and others are near.
        JobFailed: a file is damaged.
        PermissionError, OSError: by what the store said.
    """
    groups = RowGroupReader(output)
    if found := groups.find(key):
        group, row = found
        return Place(output.files[groups.index.files[group]], int(groups.index.groups[group]), row)
    neighbours = _neighbours(groups, key)
    near = {int(groups.index.files[group]) for group in neighbours}
    rowless = sorted(set(range(len(output.files))).difference(groups.index.files.tolist()))
    _refuse_rejected(output, key, [output.files[number].path for number in [*near, *rowless]])
    raise UsageError(f"{output.uri} has no row {key!r}{_near(groups, neighbours, key)}")


def _neighbours(groups: RowGroupReader, key: str) -> list[int]:
    """Row groups that the key could be in, and those whose keys are next before and after it."""
    least, greatest = groups.index.min_keys, groups.index.max_keys
    before = pc.index(greatest, pc.max(greatest.filter(pc.less(greatest, key)))).as_py()
    after = pc.index(least, pc.min(least.filter(pc.greater(least, key)))).as_py()
    return [*groups.index.candidates(key)[:_NEAR], *(one for one in (before, after) if one >= 0)]


def _near(groups: RowGroupReader, neighbours: list[int], key: str) -> str:
    keys = sorted({one for group in neighbours for one in groups.keys(group).to_pylist()})
    near = difflib.get_close_matches(key, keys, n=_NEAR, cutoff=0.5)
    names = near or [*[one for one in keys if one < key][-1:], *[one for one in keys if one > key][:1]]
    return f"; near it are {', '.join(map(repr, names))}" if names else ""


def _refuse_rejected(output: Output, key: str, paths: list[str]) -> None:
    """Of chunks that the key would be in, if it were a row, and of those without rows, whose keys nothing tells."""
    for path in paths:
        try:
            table = read_file(storage.join(output.uri, "_rejected", path))
        except FileNotFoundError:
            continue
        at = table["key"].index(key).as_py()
        if at >= 0:
            found = table.slice(at, 1).to_pylist()[0]
            raise UsageError(f"{key!r} is no row, it was rejected: {found['error']}: {found['message']}")
