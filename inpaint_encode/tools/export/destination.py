"""The destination of an export, whose own files say what is done.

``_export.json``               the exported output and the format, which a later run must have too
``_export/<data file>.json``   an `ExportRecord`: written before the files of a data file, and again after them; with
                               ``--to parquet``, of each exported file, beside the index of its keys
``_index.json``, ``_index/``   with ``--to parquet``, the index, see `inpaint_encode.output.index_files`
``_lease.json``                the run that is exporting now

The files of a data file that has changed or was deleted are removed before any file is written. A row that moved to
another data file is therefore never removed after it was written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from typing import Any, Literal, NamedTuple, TypedDict

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.json_files import convert_json, parse_object
from inpaint_encode.output.index_files import NOTE
from inpaint_encode.output.lease import check_lease_token
from inpaint_encode.output.notes import Count, DamagedNote, read_parsed
from inpaint_encode.stores import storage
from inpaint_encode.stores.names import validate_name
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.tools import pluralize
from inpaint_encode.tools.inspect.summary import list_paths

from .formats import SUFFIXES, is_file_of_row

_FILES_PER_CHECK = 16
"""Files that are deleted between two checks of the lease."""

_TEMPORARY = re.compile(rf"/{storage.TEMPORARY}[0-9a-f]{{32}}$")
_EXPORT, _RECORDS, _DATA_SUFFIX = "_export.json", "_export", ".parquet"
JOB_FILE = "_job.json"
"""Copy of the output's file, written with ``--to parquet``: readers find the settings of the rows in it."""

_SUFFIXES = {**SUFFIXES, "parquet": (_DATA_SUFFIX, JOB_FILE)}

_ROW_SUFFIXES = {to: SUFFIXES[to] for to in ("comfyui", "safetensors")}
_ROW_SUFFIXES[""] = tuple(chain.from_iterable(_ROW_SUFFIXES.values()))
"""Suffixes of the files of rows, by format; the other formats write one file for each data file."""

_INDEX_FILE = re.compile(r"_index/[0-9a-f]{8}-[0-9a-z-]+\.parquet")
_DATA_FILE = re.compile(r"[0-9a-f]{8}-(?:\d{6}-\d{5}|\d{8})\.parquet")
_ADVICE = "use --overwrite to export again, or export to another folder"

_DIFFERENCES = {"to": "in another format", "file_bytes": "with another --file-bytes"}
"""What differs in an existing export, by the only name in ``_export.json`` with another value."""


class ExportTotals(NamedTuple):
    """Rows of some data files, and the files and bytes that they became."""

    rows: int = 0
    files: int = 0
    bytes: int = 0

    @classmethod
    def sum_of(cls, totals: Iterable[ExportTotals]) -> ExportTotals:
        """Return the sum of several totals."""
        return cls(*map(sum, zip(*totals, strict=True)))


@dataclass(frozen=True, slots=True)
class ExportRecord:
    """The files that one data file became; or one file of ``--to parquet``."""

    version: str
    """Version of the data file; or of `compaction.Group`."""
    done: bool
    """Whether all files were written."""
    rows: Count
    bytes: Count
    files: tuple[str, ...]
    """Paths relative to the destination."""
    unit: Count | None = None
    """The unit of the plan that the rows are from; only with ``--to parquet``."""
    group_rows: Sequence[Count] | None = None
    """Rows of each row group."""
    footer_bytes: Count | None = None
    """Size of the Parquet footer."""
    keys: str | None = None
    """Path of the `inpaint_encode.schema.KEY_INDEX` of the file."""

    @property
    def totals(self) -> ExportTotals:
        """Its rows, files and bytes."""
        return ExportTotals(self.rows, len(self.files), self.bytes)


@dataclass(frozen=True)
class Destination:
    """A folder or prefix, and the token of the lease on it; workers receive a copy."""

    uri: str
    token: str
    to: str = ""
    """Format of the export, which limits the files that a record may name; empty: any format."""

    def start(self, export: Mapping[str, Any], *, overwrite: bool) -> None:
        """Write ``_export.json``, or check that the one at the destination is the same.

        Args:
            export: which output is exported, its format and the format's options.
            overwrite: remove the files of an earlier export.

        Raises:
            UsageError: the destination has an export of another output or in another format, or files that export did
                not write and whose names end like those of this format.
        """
        existing = self._read_export(overwrite=overwrite)
        if existing is None or overwrite:
            if others := [path for path in list_paths(self.uri) if path.endswith(_SUFFIXES[export["to"]])]:
                # They would be overwritten, or removed later as files of this export.
                raise UsageError(
                    f"--output {self.uri} contains {pluralize(len(others), 'file')} ending in "
                    f"{' or '.join(_SUFFIXES[export['to']])} that export did not write, for example {min(others)}; "
                    "move them away, or choose another folder"
                )
            self.write(_EXPORT, json.dumps(export, indent=2).encode())
            return
        different = {name: value for name, value in export.items() if existing.get(name) != value}
        if different:
            which = _DIFFERENCES.get(min(different) if len(different) == 1 else "", "of another output")
            values = "; ".join(f"{name}: {existing.get(name)} there, {value} now" for name, value in different.items())
            raise UsageError(
                f"--output {self.uri} contains an export {which} ({values}); choose another --output, or use "
                "--overwrite to remove the existing export"
            )

    def _read_export(self, *, overwrite: bool) -> Mapping[str, Any] | None:
        """Return the contents of ``_export.json``; None if there is none. With ``overwrite``, remove the export."""
        try:
            existing = read_parsed(self._uri(_EXPORT), _parse_export, _ADVICE).value
        except FileNotFoundError:
            if not overwrite or not self._record_files():
                return None
            existing = {}
        except DamagedNote:
            if not overwrite:
                raise
            existing = {}
        if overwrite:
            self.remove_note()
            present = replace(self, to=existing.get("to", ""))
            present.remove_outdated({}, overwrite=True)
            if present.to in ("", "parquet"):
                self.delete_index_files(f"_index/{path}" for path in list_paths(self._uri("_index")))
            self._delete([JOB_FILE, _EXPORT] if present.to == "parquet" else [_EXPORT])
        return existing

    def _record_files(self) -> list[str]:
        """Return the data files that have a record."""
        files = [f"{path.removesuffix('.json')}{_DATA_SUFFIX}" for path in list_paths(self._uri(_RECORDS), ".json")]
        return [file for file in files if _is_name(file)]

    def remove_outdated(self, versions: Mapping[str, str], *, overwrite: bool = False) -> tuple[set[str], ExportTotals]:
        """Remove the files of data files that changed or were deleted.

        Few records are in memory at a time: a record has the names of all its files.

        Args:
            versions: current versions by data file.
            overwrite: also remove damaged records, and the files that are named after their data files.

        Returns:
            The data files that are done, and their totals.

        Raises:
            DamagedNote: a record is damaged, without ``overwrite``.
            JobFailed: another run has taken the lease.
        """
        files = self._record_files()
        done, totals, outdated = set(), ExportTotals(), []
        folders = {self._uri(_RECORDS), self._uri("_index"), self.uri}
        read = self._read_or_guess_record if overwrite else self.read_record
        for file, record in zip(files, map_concurrently(read, files), strict=True):
            if not record.done:
                folders |= {self._uri(path).rpartition("/")[0] for path in record.files}
            if record.version != versions.get(file):
                outdated.append(file)
            elif record.done:
                done.add(file)
                totals = ExportTotals.sum_of([totals, record.totals])
        # Temporary files of a killed run, only in its folders: other jobs may run below the destination.
        for uri in filter(_TEMPORARY.search, storage.temporary_files(self.uri)):
            if uri.rpartition("/")[0] in folders:
                storage.delete(uri)
        if outdated:
            self.remove_note()
        for _ in map_concurrently(lambda file: self._remove_files(file, read(file)), outdated):
            pass
        return done, totals

    def _read_or_guess_record(self, file: str) -> ExportRecord:
        """Read the record of a data file; if it is damaged, return one with the files that have the file's name."""
        try:
            return self.read_record(file)
        except DamagedNote:
            tar, parquet = _files_named_after(file) if _DATA_FILE.fullmatch(file) else ("", "")
            by_format = {"webdataset": (tar,), "parquet": (parquet,), "": (tar, parquet)}
            files = tuple(filter(None, by_format.get(self.to, ())))
            return ExportRecord("", done=False, rows=0, bytes=0, files=files, keys=_keys_path(file))

    def _remove_files(self, file: str, record: ExportRecord) -> None:
        """Remove the files of a data file, its record last."""
        if record.done:
            self.write_record(file, replace(record, done=False))
        files = (*record.files, record.keys) if record.keys else record.files
        for start in range(0, len(files), _FILES_PER_CHECK):
            self.check_lease()
            self._delete(files[start : start + _FILES_PER_CHECK])
        self._delete([_record_path(file)])

    def _delete(self, paths: Iterable[str]) -> None:
        """Delete files of the export.

        Raises:
            ValueError: a path is no name, see `validate_name`. Nobody can get here with one: records are validated.
        """
        for path in paths:
            storage.delete(self._uri(validate_name(path)))

    def delete_index_files(self, paths: Iterable[str]) -> None:
        """Delete those of these paths that are files of an index with ``--to parquet``."""
        self._delete(path for path in paths if _INDEX_FILE.fullmatch(path))

    def remove_note(self) -> None:
        """Remove the note of the index; call it before a file of ``--to parquet`` changes."""
        self.check_lease()
        self._delete([NOTE])

    def read_record(self, file: str) -> ExportRecord:
        """Read the record of a data file.

        Raises:
            DamagedNote: it is damaged, or names files that export does not write.
        """
        return read_parsed(self._uri(_record_path(file)), partial(self._parse_record, file), _ADVICE).value

    def _parse_record(self, file: str, data: bytes) -> ExportRecord:
        record = convert_json(ExportRecord, parse_object(data))
        suffixes = _ROW_SUFFIXES.get(self.to, ())
        for path in record.files:
            if path not in _files_named_after(file) and not is_file_of_row(path, suffixes):
                raise ValueError(f"{ascii(path)[:100]} is no name of a file that export writes")
        if record.keys not in (None, _keys_path(file)):
            raise ValueError(f"{ascii(record.keys)[:100]} is no name of a file of keys")
        is_indexed = self.to == "parquet" and record.done and record.files
        lacks = None in (record.unit, record.footer_bytes) or sum(record.group_rows or ()) != record.rows
        if is_indexed and lacks:
            raise ValueError("it lacks what the index needs, or its counts differ")
        return record

    def write_record(self, file: str, record: ExportRecord) -> None:
        """Write the record of a data file.

        Raises:
            JobFailed: another run has taken the lease.
        """
        self.check_lease()
        values = {name: value for name, value in asdict(record).items() if value is not None}
        self.write(_record_path(file), json.dumps(values).encode())

    def check_lease(self) -> None:
        """Raise JobFailed if another run has taken the lease."""
        check_lease_token(self._uri("_lease.json"), self.token)

    def write(self, path: str, data: bytes) -> int:
        """Write a file; return its size in bytes.

        Raises:
            JobFailed: the store refused it; the message names the file.
        """
        uri = self._uri(path)
        try:
            storage.write(uri, data)
        except OSError as error:
            raise JobFailed(f"{uri} cannot be written: {error}") from error
        return len(data)

    def _uri(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)


def _record_path(file: str) -> str:
    return f"{_RECORDS}/{file.removesuffix(_DATA_SUFFIX)}.json"


def _keys_path(file: str) -> str:
    """Return the path of the `inpaint_encode.schema.KEY_INDEX` of a file of ``--to parquet``."""
    return f"{_RECORDS}/{file.removesuffix(_DATA_SUFFIX)}-keys.parquet"


def _files_named_after(file: str) -> tuple[str, str]:
    """Return the only file of a data file with ``--to webdataset``, and with ``--to parquet``."""
    return f"{file.removesuffix(_DATA_SUFFIX)}.tar", file


class _Export(TypedDict):
    source: str
    to: Literal["comfyui", "webdataset", "safetensors", "parquet"]


def _parse_export(data: bytes) -> Mapping[str, Any]:
    return convert_json(_Export, parse_object(data))


def _is_name(path: str) -> bool:
    try:
        return bool(validate_name(path))
    except ValueError:
        return False
