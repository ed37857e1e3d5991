"""The place that an output is exported to, which says itself what is done there.

``_export.json``               which output was exported, and as what; another one is refused
``_export/<data file>.json``   what one data file became: written before its rows' files, and once more after them
``_lease.json``                who is exporting now

A data file that has changed since, or has gone, is withdrawn before anything is written: all of its files are removed,
so that a row which moved to another data file is never removed after it was written there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.lease import check_lease_token
from inpaint_encode.stores import storage

from .formats import SUFFIXES

__all__ = ["Destination", "Mark", "Total"]

_THREADS = 16
_UNFINISHED = re.compile(rf"/{storage.TEMPORARY}[0-9a-f]{{32}}$")
_NOTE, _NOTES, _DATA = "_export.json", "_export", ".parquet"


@dataclass(frozen=True, slots=True)
class Mark:
    """What one data file has become."""

    version: str
    """Of the data file."""
    done: bool
    """Else some of the files may be missing."""
    rows: int
    bytes: int
    """Of all the files."""
    files: tuple[str, ...]
    """Relative to the destination."""

    @property
    def total(self) -> Total:
        """Their numbers."""
        return Total(self.rows, len(self.files), self.bytes)


class Total(NamedTuple):
    """What some data files have become."""

    rows: int = 0
    files: int = 0
    bytes: int = 0

    def plus(self, more: Total) -> Total:
        """Return both together."""
        return Total(*map(sum, zip(self, more, strict=True)))


@dataclass(frozen=True)
class Destination:
    """A folder or prefix and the lease on it; small and plain, so that every worker can carry it."""

    uri: str
    token: str

    def begin(self, record: Mapping[str, str], *, overwrite: bool) -> None:
        """Note what is exported here, or hold it against the note that is there.

        Args:
            record: which output, and as what.
            overwrite: remove what was exported here before.

        Raises:
            UsageError: something else is exported here, or files are here that would be taken for the export's.
        """
        there = self._note()
        if there and overwrite:
            self.settle({})
            storage.delete(self._uri(_NOTE))
            there = {}
        self._refuse_another(there, record)
        if not there:
            self._refuse_strangers(record["to"])
            self.write(_NOTE, json.dumps(record, indent=2).encode())

    def _refuse_another(self, there: Mapping[str, str], record: Mapping[str, str]) -> None:
        different = [
            f"{name}: {there.get(name)} there, {value} here"
            for name, value in record.items()
            if there and there.get(name) != value
        ]
        if different:
            raise UsageError(
                f"--output {self.uri} has another export ({'; '.join(different)}); choose another --output, or "
                "--overwrite to remove that and start anew"
            )

    def settle(self, versions: Mapping[str, str]) -> dict[str, Total]:
        """Withdraw what is not of the data files' versions; return what the others have become that are done.

        Args:
            versions: by data file, as they are in the output now.
        """
        notes = [path for listed in storage.list_objects(self._uri(_NOTES)) for path in listed.paths]
        files = [f"{path.removesuffix('.json')}{_DATA}" for path in notes]
        with ThreadPoolExecutor(_THREADS) as pool:
            marks = list(pool.map(self._mark, files))
            self._tidy(marks)
            totals = pool.map(lambda file, mark: self._settle(file, mark, versions.get(file)), files, marks)
            return {file: total for file, total in zip(files, totals, strict=True) if total is not None}

    def _tidy(self, marks: Iterable[Mark]) -> None:
        """Remove what a dead run left half written; only where it was writing, since other jobs may be below here."""
        begun = {self._uri(path).rpartition("/")[0] for mark in marks if not mark.done for path in mark.files}
        folders = begun | {self._uri(_NOTES), self.uri}
        for uri in filter(_UNFINISHED.search, storage.temporary_files(self.uri)):
            if uri.rpartition("/")[0] in folders:
                storage.delete(uri)

    def _settle(self, file: str, mark: Mark, version: str | None) -> Total | None:
        if mark.version != version:
            self._withdraw(file, mark)
            return None
        return mark.total if mark.done else None

    def _note(self) -> dict[str, str]:
        with _damage_named(uri := self._uri(_NOTE)):
            try:
                return {**json.loads(storage.read(uri).data)}
            except FileNotFoundError:
                return {}

    def _refuse_strangers(self, to: str) -> None:
        """What is named like this export's files would be written over, or removed with them one day."""
        paths = (path for listed in storage.list_objects(self.uri) for path in listed.paths)
        strangers = [path for path in paths if path.endswith(SUFFIXES[to])]
        if strangers:
            raise UsageError(
                f"--output {self.uri} holds {len(strangers):,} files that are named like those of --to {to} and are no "
                f"export's, such as {min(strangers)}; choose another folder"
            )

    def _mark(self, file: str) -> Mark:
        with _damage_named(uri := self._uri(_mark_path(file))):
            mark = json.loads(storage.read(uri).data)
            return Mark(**{**mark, "files": tuple(mark["files"])})

    def mark(self, file: str, mark: Mark) -> None:
        """Note what a data file is to become, or has become, if this run still holds the lease.

        Raises:
            JobFailed: another run has taken it.
        """
        self.still_mine()
        self.write(_mark_path(file), json.dumps(asdict(mark)).encode())

    def still_mine(self) -> None:
        """Make sure that this run holds the lease, or raise `JobFailed`."""
        check_lease_token(self._uri("_lease.json"), self.token)

    def write(self, path: str, data: bytes) -> int:
        """Write a file and return its size; errors name it."""
        uri = self._uri(path)
        try:
            storage.write(uri, data)
        except OSError as error:
            raise JobFailed(f"{uri} cannot be written: {error}") from error
        return len(data)

    def _withdraw(self, file: str, mark: Mark) -> None:
        """Remove what a data file has become, the mark last."""
        if mark.done:
            self.mark(file, replace(mark, done=False))
        for start in range(0, len(mark.files), _THREADS):
            self.still_mine()
            for path in mark.files[start : start + _THREADS]:
                storage.delete(self._uri(path))
        storage.delete(self._uri(_mark_path(file)))

    def _uri(self, *parts: str) -> str:
        return storage.join(self.uri, *parts)


def _mark_path(file: str) -> str:
    return f"{_NOTES}/{file.removesuffix(_DATA)}.json"


@contextmanager
def _damage_named(uri: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError) as error:
        raise JobFailed(f"{uri} is damaged ({error}), so that nobody knows what is done; export elsewhere") from error
