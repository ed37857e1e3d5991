"""Writes the index of an output: of each unit when its last chunk is committed, of the whole output when a run ends.

The index is a cache, see `index_files`. What is missing is made from receipts, or from the data files.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from inpaint_encode.schema import FILE_INDEX, KEY_INDEX, RECEIPT, UNIT_INDEX
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import RangedFile
from inpaint_encode.stores.redaction import get_logger

from . import plan
from .index_files import (
    KEYS_PER_BUCKET,
    NOTE,
    IndexNote,
    encode_index_file,
    newest_unit_indexes,
    parse_note,
    read_index_file,
    read_note,
    unit_index_path,
    unit_keys_path,
)
from .notes import DamagedNote
from .plan_log import PlanLog
from .state import ChunkResult, Inventory, OutputState, RowGroups, read_row_groups, unit_of_receipts

_KEYS_IN_MEMORY = 2**22
"""Keys from which they are moved to temporary files."""

_KEY = np.dtype([("hash", np.uint64), ("file", np.uint32), ("group", np.uint16)])

_Receipt = Mapping[str, Any]

_LOG = get_logger(__name__)


class _UnitIndex(NamedTuple):
    """The index of a unit: `UNIT_INDEX` and `KEY_INDEX`."""

    files: pa.Table
    keys: pa.Table


class IndexWriter:
    """Writes the index of an output while a run commits its chunks.

    Args:
        state: of the output.
        log: its plan.
        receipts: paths of the files of receipts of earlier runs.
    """

    def __init__(self, state: OutputState, log: PlanLog, receipts: Sequence[str]) -> None:
        self._state, self._log = state, log
        self._old_receipts: defaultdict[int, list[str]] = defaultdict(list)
        for path in receipts:
            if (unit := unit_of_receipts(path)) is not None:
                self._old_receipts[unit].append(path)
        self._receipts: defaultdict[int, dict[int, _Receipt]] = defaultdict(dict)
        """Receipts of units that are not finished."""
        self._left: dict[int, set[int]] = {}
        """Chunks that are not committed, by unit; of unfinished units."""
        self._pool = ThreadPoolExecutor(1, "index")
        self._writes: list[Future[None]] = []

    def add(self, receipt: _Receipt, results: Mapping[str, ChunkResult]) -> None:
        """Note a committed chunk; if it is the last of its unit, write the unit's index in a thread.

        Args:
            receipt: a row of `RECEIPT`.
            results: of all committed chunks.
        """
        unit, number = plan.split_chunk_name(receipt["chunk"])
        if unit not in self._left:
            chunks = self._log.units[unit].chunks
            self._left[unit] = {chunk for chunk in chunks if plan.chunk_name(unit, chunk) not in results}
        self._receipts[unit][number] = receipt
        self._left[unit].discard(number)
        if not self._left[unit]:
            self._writes.append(self._pool.submit(self._write_finished, unit, self._results_of(unit, results)))

    def complete(self, results: Mapping[str, ChunkResult], inventory: Inventory) -> None:
        """Write what the index of the output lacks, and at last the note; call it when the run ends.

        Args:
            results: of all committed chunks.
            inventory: the files of the output now; outdated files of the index are deleted.

        Raises:
            JobFailed: another run has taken the lease.
            OSError: the store or the disk for temporary files fails.
        """
        self._pool.shutdown()
        for write in self._writes:
            write.result()
        digest = digest_versions({chunk: result.version for chunk, result in results.items()})
        note = read_note(self._state.output)
        indexes = [self._unit_path(unit.number) for unit in self._log.units]
        used = {*indexes, *map(unit_keys_path, indexes)}
        if note and (note.job, note.digest) == (self._state.job, digest) and used | note.paths <= set(inventory.index):
            return
        stem = f"_index/{self._state.job}"
        rows = sum(result.encoded for result in results.values())
        note = IndexNote(
            job=self._state.job,
            files=f"{stem}-files-{self._state.token[:8]}.parquet",
            keys=f"{stem}-keys-{self._state.token[:8]}",
            key_bits=key_bits(rows),
            data_files=len(results),
            rows=rows,
            rejected=sum(result.rejected for result in results.values()),
            data_bytes=sum(result.data_bytes for result in results.values()),
            digest=digest,
        )
        write_merged_index(note, self._unit_indexes(results), self._write)
        self._state.check_lease()
        try:
            storage.write(self._state.uri(NOTE), note.to_json(), expect=storage.ABSENT)
        except storage.Conflict:  # a note of other data files, or of a run that has lost its lease since
            self._state.check_lease()
            storage.write(self._state.uri(NOTE), note.to_json())
        if read_note(self._state.output) == note:  # else another run has written one, which may name these files
            self._state.delete(path for path in inventory.index if path not in used | note.paths)

    def _unit_path(self, unit: int) -> str:
        return unit_index_path(self._state.job, unit, len(self._log.units[unit].revisions) - 1)

    def _results_of(self, unit: int, results: Mapping[str, ChunkResult]) -> dict[int, ChunkResult]:
        """Return the results of a unit's committed chunks by number, sorted."""
        names = ((chunk, plan.chunk_name(unit, chunk)) for chunk in sorted(self._log.units[unit].chunks))
        return {chunk: results[name] for chunk, name in names if name in results}

    def _unit_indexes(self, results: Mapping[str, ChunkResult]) -> Iterator[tuple[pa.Table, pa.Table]]:
        """Yield the `FILE_INDEX` and the `KEY_INDEX` of each unit; writes indexes that units lack."""

        def unit_index(unit: int) -> _UnitIndex:
            own = self._results_of(unit, results)
            return self._read_unit(self._unit_path(unit), own) or self._write_unit(unit, own)

        units = [unit.number for unit in self._log.units]
        for unit, (table, keys) in zip(units, map_concurrently(unit_index, units), strict=True):
            number = pa.repeat(pa.scalar(unit, pa.int32()), table.num_rows)
            yield table.append_column("unit", number).select(FILE_INDEX.names), keys

    def _read_unit(self, path: str, results: Mapping[int, ChunkResult]) -> _UnitIndex | None:
        """Return the index of a unit; None if it is missing, damaged, or does not describe these results."""
        files = read_index_file(self._state.uri(path), UNIT_INDEX)
        keys = read_index_file(self._state.uri(unit_keys_path(path)), KEY_INDEX)
        if files is None or keys is None:
            return None
        described = dict(zip(files["chunk"].to_pylist(), files["version"].to_pylist(), strict=True))
        same = described == {chunk: result.version for chunk, result in results.items()}
        return _UnitIndex(files, keys) if same and keys.num_rows == pc.sum(files["encoded"]).as_py() else None

    def _write_finished(self, unit: int, results: Mapping[int, ChunkResult]) -> None:
        try:
            self._write_unit(unit, results)
        except OSError as error:
            _LOG.warning("the index of unit %d cannot be written (%s); it is written when the run ends", unit, error)

    def _write_unit(self, unit: int, results: Mapping[int, ChunkResult]) -> _UnitIndex:
        """Write the index of a unit's committed chunks and return it."""
        groups = self._row_groups(unit, results)
        rows: list[dict[str, Any]] = []
        for chunk, result in results.items():
            planned = self._log.chunks[plan.chunk_name(unit, chunk)]
            row = {**result.to_receipt(), **groups[chunk]._asdict()}
            rows.append({**row, "chunk": chunk, "revision": planned.revision, "hash": planned.hash})
        index = _UnitIndex(
            pa.Table.from_pylist([{name: row[name] for name in UNIT_INDEX.names} for row in rows], UNIT_INDEX),
            unit_key_index([(row["key_hashes"], row["group_rows"]) for row in rows]),
        )
        path = self._unit_path(unit)
        self._write(unit_keys_path(path), index.keys)  # first, so that no index lacks its keys
        self._write(path, index.files)
        self._receipts.pop(unit, None)
        return index

    def _write(self, path: str, table: pa.Table) -> None:
        storage.write(self._state.uri(path), encode_index_file(table))

    def _row_groups(self, unit: int, results: Mapping[int, ChunkResult]) -> dict[int, RowGroups]:
        """Return the row groups of chunks: from receipts of this run or of earlier ones, or from the data files."""
        found: dict[int, RowGroups] = {}

        def add(receipts: Mapping[int, _Receipt]) -> None:
            for chunk, receipt in receipts.items():
                version = results[chunk].version if chunk in results else None
                if receipt["version"] != version or None in (groups := [receipt[name] for name in RowGroups._fields]):
                    continue
                if sum(receipt["group_rows"]) * 8 == len(receipt["key_hashes"]) == results[chunk].encoded * 8:
                    found[chunk] = RowGroups(*groups)

        add(self._receipts[unit])
        if len(found) < len(results) and (paths := self._old_receipts[unit]):
            columns = ["chunk", "version", *RowGroups._fields]
            for table in map_concurrently(lambda path: read_index_file(self._state.uri(path), RECEIPT, columns), paths):
                rows = table.to_pylist() if table else []
                add({plan.split_chunk_name(row["chunk"])[1]: row for row in rows})
        others = [chunk for chunk in results if chunk not in found]
        read = map_concurrently(lambda chunk: self._read_file(unit, chunk, results[chunk]), others)
        return found | dict(zip(others, read, strict=True))

    def _read_file(self, unit: int, chunk: int, result: ChunkResult) -> RowGroups:
        uri = self._state.data_uri(plan.chunk_name(unit, chunk))
        stat = storage.Stat(result.data_bytes, result.version)
        return read_row_groups(RangedFile(uri, storage.DEFAULT_ACCESS, stat))


def key_bits(rows: int) -> int:
    """Return `IndexNote.key_bits` of an output with this number of rows."""
    return max(0, (rows - 1) // KEYS_PER_BUCKET).bit_length()


def write_merged_index(
    note: IndexNote, parts: Iterable[tuple[pa.Table, pa.Table]], write: Callable[[str, pa.Table], object]
) -> None:
    """Write the files that a note names, and not the note itself.

    Args:
        note: of the output.
        parts: `FILE_INDEX` and `KEY_INDEX` of consecutive data files; file numbers of each begin at 0.
        write: writes a table at a path relative to the output.
    """
    tables, files = [FILE_INDEX.empty_table()], 0
    with tempfile.TemporaryDirectory(prefix="inpaint-encode-index-") as folder:
        buckets = _KeyBuckets(Path(folder), note)
        for table, keys in parts:
            tables.append(table)
            buckets.add(keys, files)
            files += table.num_rows
        buckets.flush()
        write(note.files, pa.concat_tables(tables))
        for _ in map_concurrently(lambda one: write(*one), zip(note.buckets, buckets.tables(), strict=True)):
            pass


def unit_key_index(files: Sequence[tuple[bytes, Sequence[int]]]) -> pa.Table:
    """Return the `KEY_INDEX` of consecutive data files.

    Args:
        files: hashes of the keys, as `RowGroups.key_hashes`, and number of rows of each row group.
    """
    parts = [np.empty(0, _KEY)]
    for number, (hashes, group_rows) in enumerate(files):
        part = np.empty(sum(group_rows), _KEY)
        part["hash"] = np.frombuffer(hashes, np.uint64)
        part["file"] = number
        part["group"] = np.repeat(np.arange(len(group_rows)), group_rows)
        parts.append(part)
    return _key_table(_sorted_by_hash(np.concatenate(parts)))


def digest_versions(versions: Mapping[str, str]) -> str:
    """Return the digest of an `IndexNote`.

    Args:
        versions: of the data files, by chunk.
    """
    lines = (f"{chunk} {version}\n" for chunk, version in sorted(versions.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def index_problems(state: OutputState, inventory: Inventory, rows: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Compare the index with the data files. To repair a problem, delete the file.

    Args:
        state: of the output.
        inventory: its files.
        rows: number of rows of each readable data file, by chunk.

    Yields:
        The path of a file of the index, relative to the output, and what is wrong with it; the file is the subject.

    Raises:
        OSError: the store fails.
    """
    for (_, unit), path in newest_unit_indexes(inventory.index).items():
        table = read_index_file(state.uri(path), UNIT_INDEX)
        keys = read_index_file(state.uri(unit_keys_path(path)), KEY_INDEX)
        if table is None:
            yield path, "cannot be read"
        elif keys is None or keys.num_rows != (pc.sum(table["encoded"]).as_py() or 0):
            yield unit_keys_path(path), "cannot be read, or has other keys than the index of its unit"
        else:
            yield from ((path, sentence) for sentence in _wrong_rows(table, unit, inventory, rows))
    try:
        note = parse_note(state.output).value
    except FileNotFoundError:
        return
    except DamagedNote as error:
        yield NOTE, f"cannot be read ({error.reason})"
        return
    files = read_index_file(state.uri(note.files), FILE_INDEX)
    if files is None or files.num_rows != note.data_files:
        yield note.files, "cannot be read, or has another number of data files than _index.json"
        return
    if note.files not in inventory.index:  # a run has ended since the output was listed
        return
    yield from ((note.files, sentence) for sentence in _wrong_rows(files, None, inventory, rows))
    indexed = map(plan.chunk_name, files["unit"].to_pylist(), files["chunk"].to_pylist())
    if others := inventory.versions.keys() - set(indexed):
        yield (
            NOTE,
            f"lacks {len(others):,} data files, so readers do not find them; the first is of chunk {min(others)}",
        )
    tables = map_concurrently(lambda path: read_index_file(state.uri(path), KEY_INDEX), note.buckets)
    found = 0
    for bucket, (path, keys) in enumerate(zip(note.buckets, tables, strict=True)):
        hashes = np.empty(0, np.uint64) if keys is None else keys["hash"].to_numpy()
        found += len(hashes)
        ends = [int(hashes[0]), int(hashes[-1])] if len(hashes) else []
        if keys is None or (hashes[1:] < hashes[:-1]).any() or any(note.bucket_of(end) != bucket for end in ends):
            yield path, "cannot be read, or has keys that are not sorted"
    if found != note.rows:
        yield NOTE, f"has {note.rows:,} rows, but its files of keys have {found:,}"


def _wrong_rows(table: pa.Table, unit: int | None, inventory: Inventory, rows: Mapping[str, int]) -> Iterator[str]:
    """Yield a sentence for each data file that a table describes with its present version and other rows."""
    for row in table.select([*(["unit"] if unit is None else []), "chunk", "version", "group_rows"]).to_pylist():
        chunk = plan.chunk_name(row["unit"] if unit is None else unit, row["chunk"])
        described = sum(row["group_rows"])
        if inventory.versions.get(chunk) == row["version"] and rows.get(chunk, described) != described:
            yield f"has {described:,} rows for chunk {chunk}, but its file has {rows[chunk]:,}"


class _KeyBuckets:
    """The keys of an output by bucket, in temporary files.

    Args:
        folder: for the files.
        note: says how many buckets there are.
    """

    def __init__(self, folder: Path, note: IndexNote) -> None:
        self._folder, self._note = folder, note
        self._waiting: list[NDArray[Any]] = []

    def add(self, keys: pa.Table, files: int) -> None:
        """Add the keys of a unit whose first file has the number ``files`` in the output's index."""
        added = np.empty(keys.num_rows, _KEY)
        for name in KEY_INDEX.names:
            added[name] = keys[name].to_numpy()
        added["file"] += np.uint32(files)
        self._waiting.append(added)
        if sum(map(len, self._waiting)) >= _KEYS_IN_MEMORY:
            self.flush()

    def flush(self) -> None:
        """Move keys in memory to the files."""
        if not self._waiting:
            return
        keys = _sorted_by_hash(np.concatenate(self._waiting))
        self._waiting = []
        bits = self._note.key_bits
        firsts = np.arange(2**bits, dtype=np.uint64) << np.uint64(64 - bits) if bits else np.zeros(1, np.uint64)
        starts = [*np.searchsorted(keys["hash"], firsts), len(keys)]
        for bucket, (start, end) in enumerate(pairwise(starts)):
            if end > start:
                with (self._folder / str(bucket)).open("ab") as file:
                    keys[start:end].tofile(file)

    def tables(self) -> Iterator[pa.Table]:
        """Yield the `KEY_INDEX` of each bucket."""
        for bucket in range(2**self._note.key_bits):
            path = self._folder / str(bucket)
            keys = np.fromfile(path, _KEY) if path.exists() else np.empty(0, _KEY)
            yield _key_table(_sorted_by_hash(keys))


def _sorted_by_hash(keys: NDArray[Any]) -> NDArray[Any]:
    return keys[np.argsort(keys["hash"], kind="stable")]


def _key_table(keys: NDArray[Any]) -> pa.Table:
    return pa.table([np.ascontiguousarray(keys[name]) for name in KEY_INDEX.names], schema=KEY_INDEX)
