"""The format ``parquet``: the small data files of an output become a few large ones with the same rows.

A unit of the plan is finished if each of its chunks has a data file at its newest revision. The data files of a
finished unit, in the order of their chunks, are divided into groups of about ``--file-bytes``, and each group becomes
one file. No file has rows of two units, so a unit that is revised changes its own files only. While a revision is being
encoded, the unit is not finished, and an export removes its files, which have outdated rows.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.json_files import parse_object
from inpaint_encode.output.index import digest_versions, key_bits, unit_key_index, write_merged_index
from inpaint_encode.output.index_files import (
    NOTE,
    IndexNote,
    encode_index_file,
    read_index_file,
    read_note,
)
from inpaint_encode.output.known_keys import hash_keys
from inpaint_encode.output.notes import CHUNK_KEY
from inpaint_encode.output.parquet import open_writer, translate_errors, write_row_group
from inpaint_encode.output.plan_log import PlanLog
from inpaint_encode.output.resume import LAYOUT
from inpaint_encode.output.state import Inventory, OutputState
from inpaint_encode.parquet_file import ParquetFile
from inpaint_encode.reader import Output
from inpaint_encode.reader.files import DataFile
from inpaint_encode.schema import FILE_INDEX, FOOTER_KEY, KEY_INDEX
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.tools import pluralize
from inpaint_encode.tools.inspect.summary import list_paths

from .destination import Destination, ExportRecord, ExportTotals

CHUNKS_KEY = b"inpaint_encode.chunks"
"""Key of JSON in the footer of an exported file: its data files, in order, see `_describe`."""

ROW_GROUP_BYTES = 2**20
"""Compressed bytes up to which neighboring row groups are joined. Larger row groups stay as they are."""

MEMORY_FACTOR = 3
"""Memory of a task in bytes per byte of its file: the file itself, and what the store's client copies of it."""

_MAX_NAMED = 10
"""Unfinished units that are named."""

_READ_AHEAD = 2
"""Threads that read the next data files of a group; at most four files wait."""


class Group(NamedTuple):
    """Data files that become one file."""

    path: str
    """Of the new file, relative to the destination."""
    version: str
    """Hash of the paths and versions of the data files."""
    files: tuple[tuple[str, str], ...]
    """Path in the output and version of each data file, in order."""


class Grouping(NamedTuple):
    """The groups of an output."""

    groups: list[Group]
    units: int
    """Number of planned units."""
    unfinished: list[int]
    """Units that are left out."""

    def about_unfinished(self) -> str:
        """Return a sentence about the units that are left out; empty if there are none."""
        if not self.unfinished:
            return ""
        named = ", ".join(f"{unit}" for unit in self.unfinished[:_MAX_NAMED])
        named += ", ..." if len(self.unfinished) > _MAX_NAMED else ""
        verb = "is" if len(self.unfinished) == 1 else "are"
        return (
            f"{len(self.unfinished):,} of {pluralize(self.units, 'unit')} {verb} not finished yet ({named}); run this "
            "command again later"
        )


def group_files(output: Output, file_bytes: int) -> Grouping:
    """Divide the data files of an output's finished units into groups. The output is only read.

    An output of version 0.1, whose plan has no units, counts as one unit.

    Args:
        output: finished or not.
        file_bytes: approximate maximum size of a group.

    Raises:
        UsageError: the output has files of another tool; or it is of version 0.1 and not finished.
        JobFailed: the plan is damaged.
        OSError: from the store.
    """
    job = output.job.get("job", "")
    files = {file.path.removesuffix(".parquet").removeprefix(f"{job}-"): file for file in output.files}
    if output.job.get("layout") != LAYOUT:
        if not output.is_reported:
            raise UsageError(
                f"--to parquet exports finished units, and {output.uri} has no plan with units and no report of a "
                "finished job; finish the job first, or choose another --to"
            )
        units = {0: list(output.files)}
        unfinished: list[int] = []
    else:
        if unknown := [file.path for name, file in files.items() if not re.fullmatch(r"\d{6}-\d{5}", name)]:
            raise UsageError(
                f"{output.uri} contains {unknown[0]}, which is no data file of its job; move it out of the output, or "
                "give the output that encode wrote"
            )
        units, unfinished = _finished_units(output, files)
    groups = []
    for unit, members in units.items():
        for number, part in enumerate(divide(members, file_bytes)):
            sources = tuple((file.path, file.version) for file in part)
            digest = hashlib.sha256(json.dumps(sources).encode()).hexdigest()
            groups.append(Group(f"{export_id(job)}-{unit:06d}-{number:05d}.parquet", digest, sources))
    return Grouping(groups, len(units) + len(unfinished), unfinished)


def export_id(job: str) -> str:
    """Return what the names of an export's files begin with; a job never takes them for its data files.

    Args:
        job: name of the exported job.
    """
    return hashlib.sha256(f"export of {job}".encode()).hexdigest()[:8]


def _finished_units(output: Output, files: Mapping[str, DataFile]) -> tuple[dict[int, list[DataFile]], list[int]]:
    """Return the data files of each finished unit that has any, and the numbers of the unfinished units.

    Args:
        output: with a plan of units.
        files: its data files by chunk.
    """
    state = OutputState(output.uri, output.job["job"], token="")
    inventory = Inventory({chunk: file.version for chunk, file in files.items()})
    for folder, paths in (("_receipts", inventory.receipts), ("_index", inventory.index)):
        found = list_paths(state.uri(folder))
        paths += sorted(f"{folder}/{path}" for path in found if path.startswith(f"{state.job}-"))
    # Listed after the data files, so that each of them is planned even if a job is running.
    pages = storage.list_objects(state.uri("_plan"))
    sizes = {f"_plan/{path}": size for page in pages for path, size in zip(page.paths, page.sizes, strict=True)}
    log = PlanLog.read(state, sizes, pa.schema([]))
    committed = state.committed_chunks(inventory, log.chunks, read_only=True).keys()
    finished, unfinished = {}, []
    for unit in log.units:
        names = log.names(unit.number)
        if not committed >= set(names):
            unfinished.append(unit.number)
        elif names:
            finished[unit.number] = [files[name] for name in names]
    return finished, unfinished


def divide(files: Sequence[DataFile], file_bytes: int) -> Iterator[list[DataFile]]:
    """Yield consecutive files as the smallest number of equal groups that have about ``file_bytes`` bytes at most."""
    total, end = sum(file.size for file in files), 0
    count = -(-total // file_bytes)
    groups = defaultdict(list)
    for file in files:
        end += file.size
        groups[(2 * end - file.size) * count // (2 * total)].append(file)  # by the middle of the file
    yield from groups.values()


def write_group(group: Group, *, source: str, destination: Destination) -> ExportTotals:
    """Write the file of a group, and return its totals. Without rows, no file is written.

    The new file is in memory until it is written in one request. Of the data files, at most five are in memory.

    Args:
        group: what to write.
        source: the output that contains the data files.
        destination: where the file is written.

    Raises:
        JobFailed: a data file has changed since it was listed, is damaged, or has other columns than the first; or
            another run has taken the lease.
        OSError: from the store.
    """
    unit = int(group.path.split("-")[1])
    keys = keys_path(group.path)
    record = ExportRecord(group.version, done=False, rows=0, bytes=0, files=(group.path,), unit=unit, keys=keys)
    destination.write_record(group.path, record)
    files = _read_files(source, group.files)
    first = next(files)
    schema = first.parquet.schema.with_metadata({FOOTER_KEY: first.metadata_json})
    described: list[dict[str, Any]] = []
    out, group_rows, hashes = io.BytesIO(), [], b""
    with open_writer(out, schema) as writer:
        for table in _join(_read_row_groups(chain([first], files), schema, described)):
            write_row_group(writer, table)
            group_rows.append(table.num_rows)
            hashes += hash_keys(table["key"]).tobytes()
        writer.add_key_value_metadata({CHUNKS_KEY: json.dumps(described)})
    destination.check_lease()
    record = replace(record, done=True, rows=sum(group_rows), group_rows=tuple(group_rows))
    if group_rows:
        data = out.getvalue()
        destination.write(keys, encode_index_file(unit_key_index([(hashes, group_rows)])))
        size, footer_bytes = destination.write(group.path, data), int.from_bytes(data[-8:-4], "little") + 8
        record = replace(record, bytes=size, footer_bytes=footer_bytes)
    else:
        record = replace(record, files=(), keys=None)
    destination.write_record(group.path, record)
    return record.totals


class _SourceFile(NamedTuple):
    """A data file in memory."""

    uri: str
    path: str
    version: str
    parquet: ParquetFile
    metadata_json: bytes
    """`RowMetadata` as JSON."""


def _read_files(source: str, files: Iterable[tuple[str, str]]) -> Iterator[_SourceFile]:
    """Read data files, given as (path, version), in order; each is one request."""

    def read(file: tuple[str, str]) -> _SourceFile:
        path, version = file
        uri = storage.join(source, path)
        blob = storage.read(uri)
        if blob.version != version:
            raise JobFailed(f"{uri} has changed since it was listed: an encode job is running; wait until it ends")
        with translate_errors(uri):
            parquet = ParquetFile(blob.data, page_checksum_verification=True)
            return _SourceFile(uri, path, version, parquet, parquet.schema.metadata[FOOTER_KEY])

    return map_concurrently(read, files, _READ_AHEAD)


def _read_row_groups(
    files: Iterable[_SourceFile], schema: pa.Schema, described: list[dict[str, Any]]
) -> Iterator[tuple[pa.Table, int]]:
    """Yield each row group that has rows, and its compressed size in bytes.

    Args:
        files: the data files.
        schema: that all files must have.
        described: the description of each file is appended.
    """
    for file in files:
        if not file.parquet.schema.equals(schema):
            raise JobFailed(f"{file.uri} has other columns than the data file before it; it cannot be exported")
        footer = file.parquet.metadata
        with translate_errors(file.uri):
            described.append(_describe(file, parse_object(schema.metadata[FOOTER_KEY])))
        for number in range(footer.num_row_groups):
            group = footer.row_group(number)
            if group.num_rows:  # a chunk whose pairs were all rejected has one empty group
                with translate_errors(file.uri):
                    columns = file.parquet.read_row_group(number, use_threads=False).combine_chunks().columns
                size = sum(group.column(at).total_compressed_size for at in range(group.num_columns))
                yield pa.table(columns, schema=schema), size


def _describe(file: _SourceFile, metadata: dict[str, Any]) -> dict[str, Any]:
    """Return what the footer of an exported file says about one of its data files.

    Args:
        file: the data file.
        metadata: `RowMetadata` of the exported file; only fields with other values, such as versions, are described.
    """
    chunk = parse_object(file.parquet.metadata.metadata.get(CHUNK_KEY, b"{}"))
    chunk.pop("rejected", None)
    others = {name: value for name, value in parse_object(file.metadata_json).items() if metadata.get(name) != value}
    about = {"path": file.path, "version": file.version, "rows": file.parquet.metadata.num_rows, **chunk}
    return {**about, "metadata": others} if others else about


def _join(row_groups: Iterable[tuple[pa.Table, int]]) -> Iterator[pa.Table]:
    """Join neighboring row groups that together have at most `ROW_GROUP_BYTES` compressed bytes."""
    waiting: list[pa.Table] = []
    size = 0
    for table, table_bytes in row_groups:
        if waiting and size + table_bytes > ROW_GROUP_BYTES:
            yield pa.concat_tables(waiting)
            waiting, size = [], 0
        waiting.append(table)
        size += table_bytes
    if waiting:
        yield pa.concat_tables(waiting)


def write_index(destination: Destination, job: str, paths: Collection[str]) -> None:
    """Write the index of the exported files, which readers open instead of all footers; nothing if it is there.

    Args:
        destination: with a done record of every file.
        job: name of the exported job.
        paths: of all exported files.

    Raises:
        JobFailed: another run has taken the lease, or a file is damaged.
        OSError: from the store.
    """
    pages = storage.list_objects(destination.uri)
    versions = {path: version for page in pages for path, version in zip(page.paths, page.versions, strict=True)}
    paths = sorted(versions.keys() & set(paths))
    digest = digest_versions({path: versions[path] for path in paths})
    if (note := read_note(destination.uri)) and note.digest == digest:
        return

    def describe(path: str) -> pa.Table:
        record = destination.read_record(path)
        unit, number = map(int, path.removesuffix(".parquet").split("-")[1:])
        values = (unit, number, 0, record.bytes, versions[path], record.footer_bytes, record.group_rows)
        return pa.Table.from_pylist([dict(zip(FILE_INDEX.names, values, strict=True))], FILE_INDEX)

    def read_keys(path: str) -> pa.Table:
        keys = read_index_file(uri := storage.join(destination.uri, keys_path(path)), KEY_INDEX)
        if keys is None:
            raise JobFailed(f"{uri} is missing or damaged; run the command with --overwrite to export again")
        return keys

    files = list(map_concurrently(describe, paths))
    rows, stem = sum(pc.sum(pc.list_flatten(file["group_rows"])).as_py() for file in files), f"_index/{export_id(job)}"
    note = IndexNote(
        job=export_id(job),
        files=f"{stem}-files-{digest[:8]}.parquet",
        keys=f"{stem}-keys-{digest[:8]}",
        key_bits=key_bits(rows),
        data_files=len(files),
        rows=rows,
        rejected=0,
        data_bytes=sum(file["data_bytes"][0].as_py() for file in files),
        digest=digest,
    )
    parts = zip(files, map_concurrently(read_keys, paths), strict=True)
    write_merged_index(note, parts, lambda path, table: destination.write(path, encode_index_file(table)))
    destination.check_lease()
    destination.write(NOTE, note.to_json())
    destination.delete_index_files(versions.keys() - note.paths)


def keys_path(path: str) -> str:
    """Return the path of the `KEY_INDEX` of an exported file."""
    return f"_export/{path.removesuffix('.parquet')}-keys.parquet"
