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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.index_files import NOTE
from inpaint_encode.output.lease import check_lease_token
from inpaint_encode.stores import storage
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.tools import pluralize
from inpaint_encode.tools.inspect.summary import list_paths

from .formats import SUFFIXES

_FILES_PER_CHECK = 16
"""Files that are deleted between two checks of the lease."""

_TEMPORARY = re.compile(rf"/{storage.TEMPORARY}[0-9a-f]{{32}}$")
_EXPORT, _RECORDS, _DATA_SUFFIX = "_export.json", "_export", ".parquet"
JOB_FILE = "_job.json"
"""Copy of the output's file, written with ``--to parquet``: readers find the settings of the rows in it."""

_SUFFIXES = {**SUFFIXES, "parquet": (_DATA_SUFFIX, JOB_FILE)}

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
    rows: int
    bytes: int
    files: tuple[str, ...]
    """Paths relative to the destination."""
    unit: int | None = None
    """The unit of the plan that the rows are from; only with ``--to parquet``."""
    group_rows: Sequence[int] | None = None
    """Rows of each row group."""
    footer_bytes: int | None = None
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

    def start(self, export: Mapping[str, Any], *, overwrite: bool) -> None:
        """Write ``_export.json``, or check that the one at the destination is the same.

        Args:
            export: which output is exported, its format and the format's options.
            overwrite: remove the files of an earlier export.

        Raises:
            UsageError: the destination has an export of another output or in another format, or files that export did
                not write and whose names end like those of this format.
        """
        with _translate_damage(uri := self._uri(_EXPORT)):
            try:
                existing = {**json.loads(storage.read(uri).data)}
            except FileNotFoundError:
                existing = {}
        if existing and overwrite:
            self.remove_note()
            self.remove_outdated({})
            if existing.get("to") == "parquet":
                for path in (JOB_FILE, *(f"_index/{path}" for path in list_paths(self._uri("_index")))):
                    storage.delete(self._uri(path))
            storage.delete(uri)
            existing = {}
        if not existing:
            if others := [path for path in list_paths(self.uri) if path.endswith(_SUFFIXES[export["to"]])]:
                # They would be overwritten, or removed later as files of this export.
                raise UsageError(
                    f"--output {self.uri} contains {pluralize(len(others), 'file')} ending in "
                    f"{' or '.join(_SUFFIXES[export['to']])} that export did not write, for example {min(others)}; "
                    "choose another folder"
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

    def remove_outdated(self, versions: Mapping[str, str]) -> tuple[set[str], ExportTotals]:
        """Remove the files of data files that changed or were deleted.

        Few records are in memory at a time: a record has the names of all its files.

        Args:
            versions: current versions by data file.

        Returns:
            The data files that are done, and their totals.
        """
        files = [f"{path.removesuffix('.json')}{_DATA_SUFFIX}" for path in list_paths(self._uri(_RECORDS), ".json")]
        done, totals, outdated = set(), ExportTotals(), []
        folders = {self._uri(_RECORDS), self._uri("_index"), self.uri}
        for file, record in zip(files, map_concurrently(self.read_record, files), strict=True):
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
        for _ in map_concurrently(self._remove_files, outdated):
            pass
        return done, totals

    def _remove_files(self, file: str) -> None:
        """Remove the files of a data file, its record last."""
        record = self.read_record(file)
        if record.done:
            self.write_record(file, replace(record, done=False))
        files = (*record.files, record.keys) if record.keys else record.files
        for start in range(0, len(files), _FILES_PER_CHECK):
            self.check_lease()
            for path in files[start : start + _FILES_PER_CHECK]:
                storage.delete(self._uri(path))
        storage.delete(self._uri(_record_path(file)))

    def remove_note(self) -> None:
        """Remove the note of the index; call it before a file of ``--to parquet`` changes."""
        self.check_lease()
        storage.delete(self._uri(NOTE))

    def read_record(self, file: str) -> ExportRecord:
        """Read the record of a data file.

        Raises:
            JobFailed: it is damaged.
        """
        with _translate_damage(uri := self._uri(_record_path(file))):
            record = json.loads(storage.read(uri).data)
            return ExportRecord(**{**record, "files": tuple(record["files"])})

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


@contextmanager
def _translate_damage(uri: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise JobFailed(
            f"{uri} is damaged ({error}), so it is unknown what has been exported; export to another folder"
        ) from error
