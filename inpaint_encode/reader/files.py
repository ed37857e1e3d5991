"""The data files of an output and where their keys are: from the output's index, or from one listing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError
from inpaint_encode.output.index_files import (
    IndexNote,
    is_hidden,
    newest_unit_indexes,
    read_index_file,
    read_note,
    unit_keys_path,
)
from inpaint_encode.output.known_keys import hash_keys
from inpaint_encode.schema import FILE_INDEX, KEY_INDEX, UNIT_INDEX
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently

_LISTED = pa.schema([("path", pa.string()), ("size", pa.int64()), ("version", pa.string())])
_INDEXED = ["rejected", "data_bytes", "version", "footer_bytes", "group_rows"]
"""Columns of `FILE_INDEX` and `UNIT_INDEX` that are read."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A Parquet file of rows. Files are written atomically, so every file is complete."""

    path: str
    """Relative to the output."""
    size: int
    """Bytes."""
    version: str
    """ETag; on a disk, size and modification time."""
    footer_bytes: int = 0
    """Size of the Parquet footer; 0 if the file is not in the output's index."""


@dataclass(frozen=True)
class DataFiles(Sequence[DataFile]):
    """Data files, sorted by name, which is the order of their chunks. A file takes about 120 bytes of memory."""

    paths: pa.StringArray
    sizes: NDArray[np.int64]
    versions: pa.StringArray
    footer_bytes: NDArray[np.int32]
    group_rows: pa.ListArray
    """Rows of each row group; null if the file is not in the output's index."""
    rejected: NDArray[np.int64]
    """Rejected pairs of the file's chunk; 0 if the file is not in the output's index."""

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, index: int) -> DataFile: ...
    @overload
    def __getitem__(self, index: slice) -> list[DataFile]: ...
    def __getitem__(self, index: int | slice) -> DataFile | list[DataFile]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]  # raises IndexError
        path, version = self.paths[number].as_py(), self.versions[number].as_py()
        return DataFile(path, int(self.sizes[number]), version, int(self.footer_bytes[number]))

    def __iter__(self) -> Iterator[DataFile]:
        return map(self.__getitem__, range(len(self)))


class UnitKeys(NamedTuple):
    """The keys of a unit in an output without a note."""

    path: str
    """Of the unit's `KEY_INDEX`, relative to the output."""
    files: NDArray[np.int32]
    """Number of each file of the unit's index in `Output.files`; -1 if the file has changed since."""


@dataclass(frozen=True)
class KeyIndex:
    """Finds the row group of a key by its hash."""

    uri: str
    """Of the output."""
    note: IndexNote | None = None
    """Names the keys of all files; None if only finished units have an index."""
    units: tuple[UnitKeys, ...] = field(default=(), repr=False)

    def find(self, key: str) -> list[tuple[int, int]] | None:
        """Return where a key may be: numbers of data files, and of row groups in them.

        The key itself must be compared. Reads one file of the index if the output has a note, else one of each unit.

        Returns:
            None if a file of the index is missing or damaged.

        Raises:
            PermissionError, OSError: the store's error.
        """
        key_hash = int(hash_keys(pa.chunked_array([[key]], pa.string()))[0])
        if self.note:
            keys = _read_keys(self.uri, self.note.buckets[self.note.bucket_of(key_hash)])
            return None if keys is None else keys.find(key_hash)
        found = []
        tables = map_concurrently(lambda unit: _read_keys(self.uri, unit.path), self.units)
        for unit, keys in zip(self.units, tables, strict=True):
            if keys is None:
                return None
            known = ((int(unit.files[file]), group) for file, group in keys.find(key_hash))
            found += [(file, group) for file, group in known if file >= 0]
        return found


@dataclass(frozen=True)
class _Keys:
    """A `KEY_INDEX` in memory."""

    hashes: NDArray[np.uint64]
    files: NDArray[np.uint32]
    groups: NDArray[np.uint16]

    def find(self, key_hash: int) -> list[tuple[int, int]]:
        start, end = (np.searchsorted(self.hashes, np.uint64(key_hash), side) for side in ("left", "right"))
        return list(zip(self.files[start:end].tolist(), self.groups[start:end].tolist(), strict=True))


@lru_cache(maxsize=64)
def _read_keys(uri: str, path: str) -> _Keys | None:
    table = read_index_file(storage.join(uri, path), KEY_INDEX)
    return None if table is None else _Keys(*(column.to_numpy() for column in table.columns))


def open_files(uri: str) -> tuple[DataFiles, KeyIndex | None]:
    """Return the data files of an output and the index of their keys.

    A finished output is read from its index, in two requests. Any other output is listed, and the row groups of
    finished units come from their indexes.

    Raises:
        UsageError: the folder has no data files, or holds other outputs.
        PermissionError, OSError: the store's error.
    """
    if (note := read_note(uri)) and (files := _files_of_note(uri, note)):
        pa.default_memory_pool().release_unused()  # for 390,625 files, what decoding leaves is 75 MB
        return files, KeyIndex(uri, note)
    listed, indexes = _list(uri)
    return _with_unit_indexes(uri, listed, indexes)


def list_files(uri: str) -> DataFiles:
    """Return the data files of an output from a listing, without its index.

    Raises:
        UsageError, PermissionError, OSError: as `open_files`.
    """
    return _with_unit_indexes(uri, _list(uri)[0], {})[0]


def _files_of_note(uri: str, note: IndexNote) -> DataFiles | None:
    table = read_index_file(storage.join(uri, note.files), FILE_INDEX)
    if table is None or not table.num_rows:
        return None
    return DataFiles(
        paths=pa.concat_arrays([_paths(note.job, part["unit"], part["chunk"]) for part in table.to_batches(2**16)]),
        sizes=table["data_bytes"].to_numpy(),
        versions=table["version"].combine_chunks(),
        footer_bytes=table["footer_bytes"].to_numpy(),
        group_rows=table["group_rows"].combine_chunks(),
        rejected=table["rejected"].to_numpy(),
    )


def _paths(job: str, units: pa.Int32Array, chunks: pa.Int32Array) -> pa.StringArray:
    """Return the paths of data files."""
    numbers = [pc.utf8_lpad(units.cast(pa.string()), 6, "0"), pc.utf8_lpad(chunks.cast(pa.string()), 5, "0")]
    names = pc.binary_join_element_wise(pa.scalar(job), *numbers, "-")
    return pc.binary_join_element_wise(names, ".parquet", "")


def _list(uri: str) -> tuple[pa.Table, dict[tuple[str, int], str]]:
    """Return the data files of an output, sorted, and the indexes of its units; the output is listed once."""
    pages, hidden = [_LISTED.empty_table()], []
    for page in storage.list_objects(uri):
        wanted = [number for number, path in enumerate(page.paths) if path.endswith(".parquet") and not is_hidden(path)]
        columns = ([column[number] for number in wanted] for column in (page.paths, page.sizes, page.versions))
        pages.append(pa.table(list(columns), schema=_LISTED))
        hidden += [path for path in page.paths if path.startswith("_index/") or path.endswith("_job.json")]
    inner = {path.removesuffix("/_job.json") for path in hidden if path.endswith("/_job.json")}
    if outputs := [storage.join(uri, path) for path in sorted(inner) if not is_hidden(path)]:
        outputs = [uri, *outputs] if "_job.json" in hidden else outputs
        count = "several outputs" if outputs[1:] else "another output"
        raise UsageError(f"{uri} holds the files of {count}: {', '.join(outputs[:5])}; give the folder of one output")
    listed = pa.concat_tables(pages).combine_chunks()
    if not listed.num_rows:
        raise UsageError(f"{uri} has no rows; give the folder or prefix that was --output of encode")
    return listed.sort_by("path"), newest_unit_indexes(hidden)


def _with_unit_indexes(
    uri: str, listed: pa.Table, indexes: Mapping[tuple[str, int], str]
) -> tuple[DataFiles, KeyIndex | None]:
    """Return listed files, with what the indexes of units have of the files that have not changed since."""
    columns = ["chunk", *_INDEXED]
    paths = [pa.array([], pa.string())]
    tables, units, start = [pa.schema([UNIT_INDEX.field(name) for name in columns]).empty_table()], [], 0
    read = map_concurrently(
        lambda path: read_index_file(storage.join(uri, path), UNIT_INDEX, columns), indexes.values()
    )
    for ((job, unit), path), table in zip(indexes.items(), read, strict=True):
        if table is not None and table.num_rows:
            paths.append(_paths(job, pa.repeat(pa.scalar(unit), table.num_rows), table["chunk"].combine_chunks()))
            tables.append(table)
            units.append((unit_keys_path(path), slice(start, start + table.num_rows)))
            start += table.num_rows
    table = pa.concat_tables(tables).combine_chunks()
    files = pc.index_in(pa.concat_arrays(paths), value_set=listed["path"].combine_chunks())
    same = pc.equal(listed["version"].take(files), table["version"])
    files = pc.if_else(pc.fill_null(same, False), files, None)
    rows = pc.index_in(pa.array(np.arange(listed.num_rows, dtype=np.int32)), value_set=files.combine_chunks())
    numbers = pc.fill_null(files, -1).to_numpy()
    found = DataFiles(
        paths=listed["path"].combine_chunks(),
        sizes=listed["size"].to_numpy(),
        versions=listed["version"].combine_chunks(),
        footer_bytes=pc.fill_null(table["footer_bytes"].take(rows), 0).to_numpy(),
        group_rows=table["group_rows"].take(rows).combine_chunks(),
        rejected=pc.fill_null(table["rejected"].take(rows), 0).to_numpy(),
    )
    keys = tuple(UnitKeys(path, numbers[part]) for path, part in units)
    return found, KeyIndex(uri, None, keys) if keys else None
