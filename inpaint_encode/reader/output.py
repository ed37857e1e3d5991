"""An output: its data files, the metadata of its rows, the job's own files, and rows of Arrow data as numpy arrays."""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.notes import RESTORE_JOB, parse_job, parse_metadata_footer, parse_report, read_parsed
from inpaint_encode.output.parquet import translate_errors
from inpaint_encode.parquet_file import ParquetFile, check_plain, is_tensor, read_footer
from inpaint_encode.schema import FOOTER_KEY, TENSORS, is_packed, unpack_mask
from inpaint_encode.stores import storage
from inpaint_encode.stores.ranged_file import Changed, RangedFile

from .files import DataFile, DataFiles, KeyIndex, list_files, open_files


@dataclass(frozen=True)
class Output:
    """The data files of an output, as its index or a listing had them. Picklable, for use in workers."""

    uri: str
    files: Sequence[DataFile]
    """Sorted by name, which is the order of their chunks."""
    keys: KeyIndex | None = None
    """Where the keys of indexed files are; None if no file is indexed."""
    opened: str = field(default_factory=lambda: uuid.uuid4().hex, compare=False, repr=False)
    """Changes when an output is opened again, so that changed files are noticed then."""

    @classmethod
    def open(cls, output: str) -> Output:
        """Find the data files of ``output``, a folder or URI prefix that a job wrote.

        A finished output is read from its index in two requests. Any other output is listed; the row groups of its
        finished units come from their indexes.

        Raises:
            UsageError: the URI is invalid, it has no data files, or it holds the files of other outputs.
            PermissionError, OSError: the store's error.
        """
        uri = _normalized(output)
        return cls(uri, *open_files(uri))

    @classmethod
    def list(cls, output: str) -> Output:
        """List the data files of ``output`` without its index.

        Raises:
            UsageError, PermissionError, OSError: as `open`.
        """
        uri = _normalized(output)
        return cls(uri, list_files(uri))

    @property
    def data_bytes(self) -> int:
        """Size of all data files."""
        return int(self.files.sizes.sum()) if isinstance(self.files, DataFiles) else sum(one.size for one in self.files)

    @cached_property
    def metadata(self) -> RowMetadata:
        """How the rows were made, from the first data file.

        Raises:
            UsageError: an encode job did not write that file.
            JobFailed: the file is damaged.
        """
        first = self.files[0]
        where = storage.join(self.uri, first.path)
        with self.parquet(first) as file:
            if FOOTER_KEY not in (file.schema.metadata or {}):
                raise UsageError(f"{where} is not a data file of an encode job; move it out of the output")
            with translate_errors(where):
                return footer_metadata(file)

    @cached_property
    def job(self) -> dict[str, Any]:
        """``_job.json``: the options of the job. Empty if the file does not exist, as in a copy of the data files.

        Raises:
            DamagedNote: it is damaged.
        """
        return self._read("_job.json", parse_job, RESTORE_JOB)

    @cached_property
    def report(self) -> dict[str, Any]:
        """``_report.json``: the job's report. Empty until a run has finished.

        Raises:
            DamagedNote: it is damaged.
        """
        return self._read("_report.json", parse_report, "run the same encode command again to write it again")

    @property
    def is_reported(self) -> bool:
        """Whether number and size of the files are those in the report. If not, a later run has begun."""
        files = len(self.files), self.data_bytes
        return bool(self.report) and (self.report["files"], self.report["data_bytes"]) == files

    def footer(self, file: DataFile) -> pq.FileMetaData:
        """Return the Parquet footer of a data file: one request. 256 footers are cached.

        If a file has another version than in the output's index, the footer is that of the present file.
        """
        return _footer(self.uri, file, self.opened)[1]

    def parquet(self, file: DataFile) -> ParquetFile:
        """Open a data file: reads the footer now, and columns by range requests later.

        Raises:
            Changed: now or later, if the file was replaced after the output was listed, or after its footer was read.
            FileNotFoundError, PermissionError, OSError: the store's error.
        """
        present, footer = _footer(self.uri, file, self.opened)
        source, on_disk = _open_source(self.uri, present), "://" not in self.uri
        return ParquetFile(source, footer, memory_map=on_disk, pre_buffer=not on_disk)

    def read(self, file: DataFile) -> ParquetFile:
        """Read a data file into memory with one request, and open it."""
        return ParquetFile(storage.read(storage.join(self.uri, file.path)).data)

    def _read(self, name: str, parse: Callable[[bytes], dict[str, Any]], advice: str) -> dict[str, Any]:
        try:
            return read_parsed(storage.join(self.uri, name), parse, advice).value
        except FileNotFoundError:
            return {}


def footer_metadata(file: ParquetFile) -> RowMetadata:
    """Return the metadata of the rows from a data file's footer.

    Raises:
        ValueError: the footer has no metadata of encode, or it is damaged.
    """
    return parse_metadata_footer(file.schema.metadata)


def _normalized(output: str) -> str:
    try:
        return storage.normalize_uri(output)
    except ValueError as error:
        raise UsageError(str(error)) from None


@lru_cache(maxsize=256)
def _footer(uri: str, file: DataFile, _opened: str) -> tuple[DataFile, pq.FileMetaData]:
    """Return a data file as it is now, and its footer."""
    where = storage.join(uri, file.path)
    with translate_errors(where):
        try:
            return file, _read_footer(uri, file)
        except Changed:
            if not file.footer_bytes:
                raise
            present = DataFile(file.path, *storage.stat(where))
            return present, _read_footer(uri, present)


def _read_footer(uri: str, file: DataFile) -> pq.FileMetaData:
    where = storage.join(uri, file.path)
    if not file.footer_bytes or "://" not in where:
        footer = read_footer(_open_source(uri, file))
    else:
        data, version = storage.read_range(where, file.size - file.footer_bytes, file.footer_bytes)
        if version != file.version:
            raise Changed(errno.ESTALE, f"{where} has changed since its index was written")
        footer = read_footer(data)
    _check_tensors(footer.schema.to_arrow_schema())
    return footer


def _check_tensors(schema: pa.Schema) -> None:
    """Check the types of the columns with tensors.

    Raises:
        ValueError: a column has a type that encode never writes.
    """
    for one in schema:
        if one.name in TENSORS and not (is_packed(one.type) or is_tensor(one.type)):
            raise ValueError(f"its column {one.name} has the type {str(one.type)[:60]}, which is no tensor")


def _open_source(uri: str, file: DataFile) -> RangedFile | str:
    where = storage.join(uri, file.path)
    if "://" in where:
        return RangedFile(where, storage.DEFAULT_ACCESS, storage.Stat(file.size, file.version))
    if storage.stat(where).version != file.version:
        raise Changed(errno.ESTALE, f"{where} has changed since it was listed; open the output again")
    return where


Row = dict[str, Any]
"""One row: values by column name."""


class RowBatch:
    """The rows of one record batch. Each row is created on access; packed masks are unpacked then.

    ``samples`` and ``original_samples`` are float16 or float32 ``[C, h, w]``, or ``[2C, h, w]`` for moments.
    ``noise_mask`` is uint8 ``[1, H, W]``, 0 or 1. ``latent_mask`` is ``[1, h, w]``, in the type of ``samples``.
    Arrays that need no unpacking are read-only views of the batch's memory.

    Raises:
        UnsafeColumn: a column that is no tensor has an extension type: reading its values could run code.
    """

    def __init__(self, batch: pa.RecordBatch) -> None:
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        tensors = {name: TensorColumn(columns.pop(name)) for name in TENSORS if name in columns}
        check_plain(batch.schema.field(name) for name in columns)
        self._columns: dict[str, Any] = {name: column.to_pylist() for name, column in columns.items()} | tensors
        self._count: int = batch.num_rows

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Row:
        return {name: values[index] for name, values in self._columns.items()}

    def __iter__(self) -> Iterator[Row]:
        return map(self.__getitem__, range(len(self)))


class TensorColumn:
    """The arrays of a tensor column, each in its own shape. Each is created on access; packed masks are unpacked then.

    Arrays that need no unpacking are read-only views of the column's memory.
    """

    def __init__(self, column: pa.Array) -> None:
        plain = column.storage if isinstance(column, pa.ExtensionArray) else column
        self._packed = is_packed(plain.type)
        if not self._packed and not is_tensor(plain.type):
            raise pa.ArrowInvalid(f"a tensor column has the type {plain.type}")
        data = plain.field("bits" if self._packed else "data")
        _, offsets, *values = data.buffers()
        self._offsets = np.frombuffer(offsets or b"", np.int64)[data.offset :]
        self._values: NDArray[Any] = (
            np.frombuffer(values[0] or b"", np.uint8) if self._packed else data.values.to_numpy(zero_copy_only=False)
        )
        self._shapes = plain.field("shape").to_pylist()

    def __len__(self) -> int:
        return len(self._shapes)

    def __getitem__(self, index: int) -> NDArray[Any]:
        shape = self._shapes[index]
        values = self._values[self._offsets[index] : self._offsets[index + 1]]
        return (unpack_mask(values, *shape[1:]) if self._packed else values).reshape(shape)

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return map(self.__getitem__, range(len(self)))


def as_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[Row]:
    """Yield rows as dicts of plain values and numpy arrays; see `RowBatch`."""
    for one in batch.to_batches() if isinstance(batch, pa.Table) else [batch]:
        yield from RowBatch(one)
