"""An output as its readers see it: how its rows were made, which files it has, and the rows in them."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import damage_named
from inpaint_encode.schema import FOOTER_KEY
from inpaint_encode.stores import storage
from inpaint_encode.stores.ranged_file import Changed, RangedFile

from .columns import Row, Rows

__all__ = ["DataFile", "Output", "as_rows", "footer_metadata"]


@dataclass(frozen=True, slots=True)
class DataFile:
    """One Parquet file of rows; a file that is there is whole."""

    path: str
    """Relative to the output."""
    size: int
    """In bytes."""
    version: str


@dataclass(frozen=True)
class Output:
    """What one listing found at an output; small and plain, so that every worker can carry it."""

    uri: str
    files: tuple[DataFile, ...]
    """In the order of their names, which is that of their chunks."""

    @classmethod
    def open(cls, output: str) -> Output:
        """List ``output``, a folder or prefix that a job wrote, finished or not.

        Raises:
            UsageError: no output can be there, or it holds no rows.
            PermissionError, OSError: by what the store said.
        """
        try:
            uri = storage.normalize_uri(output)
        except ValueError as error:
            raise UsageError(str(error)) from None
        files = sorted(_data_files(uri), key=lambda file: file.path)
        if not files:
            raise UsageError(f"{uri} holds no rows; name the folder or prefix that was the --output of an encode job")
        return cls(uri, tuple(files))

    @cached_property
    def metadata(self) -> RowMetadata:
        """How the rows were made, read from the first data file.

        Raises:
            UsageError: the first data file is none of encode's.
            JobFailed: it is damaged.
        """
        first = self.files[0]
        with self.parquet(first) as file:
            try:
                return footer_metadata(file)
            except KeyError:
                where = storage.join(self.uri, first.path)
                raise UsageError(
                    f"{where} is no data file of encode: its footer does not say so; move it away"
                ) from None

    @cached_property
    def job(self) -> dict[str, Any]:
        """``_job.json``: what the job was told; empty where only the data files were copied."""
        return self._json("_job.json")

    @cached_property
    def report(self) -> dict[str, Any]:
        """``_report.json``: counts that add up; empty until a run has finished."""
        return self._json("_report.json")

    @property
    def is_reported(self) -> bool:
        """Whether the report tells of the files that are there, by their number and bytes; else another run began."""
        there = len(self.files), sum(file.size for file in self.files)
        return bool(self.report) and (self.report["files"], self.report["data_bytes"]) == there

    def footer(self, file: DataFile) -> pq.FileMetaData:
        """What a data file says of its row groups, by one request for its last 64 KiB; those asked last are kept."""
        return _footer(self.uri, file)

    def parquet(self, file: DataFile) -> pq.ParquetFile:
        """Open a data file: its footer is read now, anything else by ranges when it is asked for.

        Raises:
            Changed: now or when something is read, the file is not the one any more that was listed.
            FileNotFoundError, PermissionError, OSError: by what the store said.
        """
        source, on_disk = _source(self.uri, file), "://" not in self.uri
        return pq.ParquetFile(source, metadata=self.footer(file), memory_map=on_disk, pre_buffer=not on_disk)

    def read(self, file: DataFile) -> pq.ParquetFile:
        """Fetch a whole data file in one request, and open it."""
        return pq.ParquetFile(pa.BufferReader(storage.read(storage.join(self.uri, file.path)).data))

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(storage.read(storage.join(self.uri, name)).data))
        except FileNotFoundError:
            return {}


def footer_metadata(file: pq.ParquetFile) -> RowMetadata:
    """Return the metadata in a data file's footer.

    Raises:
        KeyError: the footer has none.
    """
    return RowMetadata.from_dict(json.loads((file.schema_arrow.metadata or {})[FOOTER_KEY]))


def as_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[Row]:
    """Yield plain values and numpy arrays by column; see `Rows`."""
    for piece in batch.to_batches() if isinstance(batch, pa.Table) else [batch]:
        yield from Rows(piece)


@lru_cache(maxsize=256)
def _footer(uri: str, file: DataFile) -> pq.FileMetaData:
    with damage_named(storage.join(uri, file.path)):
        return pq.read_metadata(_source(uri, file))


def _source(uri: str, file: DataFile) -> RangedFile | str:
    where = storage.join(uri, file.path)
    if "://" in where:
        return RangedFile(where, storage.DEFAULT_ACCESS, storage.Stat(file.size, file.version))
    if storage.stat(where).version != file.version:
        raise Changed(errno.ESTALE, f"{where} has changed since it was listed; open the output again")
    return where


def _data_files(uri: str) -> Iterator[DataFile]:
    for listed in storage.list_objects(uri):
        for path, size, version in zip(listed.paths, listed.sizes, listed.versions, strict=True):
            if path.endswith(".parquet") and not path.startswith("_"):
                yield DataFile(path, size, version)
