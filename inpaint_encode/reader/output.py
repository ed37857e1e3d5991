"""An output as its readers see it: how its rows were made, which files it has, and the rows in them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode import rows, storage
from inpaint_encode.errors import UsageError
from inpaint_encode.ranged import RangedFile

__all__ = ["DataFile", "Output", "as_rows"]


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
            uri = storage.normalise(output)
        except ValueError as error:
            raise UsageError(str(error)) from None
        files = sorted(_data_files(uri), key=lambda file: file.path)
        if not files:
            raise UsageError(f"{uri} holds no rows; name the folder or prefix that was the --output of an encode job")
        return cls(uri, tuple(files))

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """How the rows were made: the VAE's facts, `inpaint_encode.settings.RowSettings`, versions; one set for all.

        Raises:
            UsageError: the first data file is none of encode's, or is damaged.
        """
        first = self.files[0]
        try:
            with self.parquet(first) as file:
                return made_by(file)
        except (pa.ArrowException, KeyError) as error:
            raise UsageError(
                f"{storage.join(self.uri, first.path)} is no data file of encode, or is damaged "
                f"({type(error).__name__}: {error}); `inpaint-encode verify` tells which"
            ) from error

    @cached_property
    def job(self) -> dict[str, Any]:
        """``_job.json``: what the job was told; empty where only the data files were copied."""
        return self._json("_job.json")

    @cached_property
    def report(self) -> dict[str, Any]:
        """``_report.json``: counts that add up; empty until a run has finished."""
        return self._json("_report.json")

    def parquet(self, file: DataFile) -> pq.ParquetFile:
        """Open a data file: its footer is read now, anything else by ranges when it is asked for."""
        uri = storage.join(self.uri, file.path)
        source = RangedFile(uri, storage.DIRECT) if "://" in uri else uri
        return pq.ParquetFile(source, pre_buffer=True)

    def read(self, file: DataFile) -> pq.ParquetFile:
        """Fetch a whole data file in one request, and open it."""
        return pq.ParquetFile(pa.BufferReader(storage.read(storage.join(self.uri, file.path)).data))

    def _json(self, name: str) -> dict[str, Any]:
        try:
            return dict(json.loads(storage.read(storage.join(self.uri, name)).data))
        except FileNotFoundError:
            return {}


def made_by(file: pq.ParquetFile) -> dict[str, Any]:
    """How the rows of one data file were made, as its footer says; a `KeyError` if it says nothing."""
    return dict(json.loads((file.schema_arrow.metadata or {})[rows.FOOTER_KEY]))


def as_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[dict[str, Any]]:
    """Yield plain values and numpy arrays by column; masks are unpacked, whichever way they are stored.

    ``samples`` and ``original_samples`` are float16 or float32 ``[C, h, w]``, or ``[2C, h, w]`` of moments,
    ``noise_mask`` is uint8 ``[1, H, W]``, 0 or 1, and ``latent_mask`` ``[1, h, w]`` of the type of ``samples``.
    Arrays share the batch's memory where nothing had to be unpacked, and cannot be written to then.
    """
    for piece in batch.to_batches() if isinstance(batch, pa.Table) else [batch]:
        columns = dict(zip(piece.schema.names, piece.columns, strict=True))
        arrays = {name: rows.tensors(columns.pop(name)) for name in rows.TENSORS if name in columns}
        plain = pa.table(columns).to_pylist() if columns else [{}] * piece.num_rows
        for values in plain:
            yield {**values, **{name: next(its_arrays) for name, its_arrays in arrays.items()}}


def _data_files(uri: str) -> Iterator[DataFile]:
    for listed in storage.list_objects(uri):
        for path, size, version in zip(listed.paths, listed.sizes, listed.versions, strict=True):
            if path.endswith(".parquet") and not path.startswith("_"):
                yield DataFile(path, size, version)
