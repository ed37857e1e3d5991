"""Read the files of an output that may be damaged: wrong bytes raise `Unreadable`, failures of a store `OSError`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.state import CHUNK_KEY
from inpaint_encode.reader.output import Row
from inpaint_encode.schema import FOOTER_KEY, RECEIPT, REJECTS, TENSORS, is_packed
from inpaint_encode.stores import storage

__all__ = ["DataFile", "StoredTensor", "Unreadable", "read_receipts", "translate_errors"]

_ROWS_PER_BATCH = 16


class Unreadable(Exception):
    """A file is damaged; the message has the reader's error."""


class StoredTensor(NamedTuple):
    """A value of a tensor column; the number of values and the shape may disagree."""

    values: NDArray[Any]
    """Flat."""
    shape: list[int] | None


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise `Unreadable` for what Arrow and JSON raise on wrong bytes; no other code may run inside."""
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error


class DataFile:
    """A data file: its footer, and its rows in small batches, so that large masks need little memory.

    Raises:
        Unreadable: here or while rows are read.
    """

    def __init__(self, data: bytes) -> None:
        with translate_errors():
            self._file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            self.rows: int = self._file.metadata.num_rows
            self.schema: pa.Schema = self._file.schema_arrow
            footer = self.schema.metadata or {}
            for key in (FOOTER_KEY, CHUNK_KEY):
                if key not in footer:
                    raise ValueError(f"its footer has no {key.decode()}")
            self.metadata = RowMetadata.from_dict(json.loads(footer[FOOTER_KEY]))
            chunk = json.loads(footer[CHUNK_KEY])
            self.chunk, self.generation = int(chunk["chunk"]), int(chunk["generation"])
            self.rejects: pa.Table = pa.Table.from_pylist(chunk["rejected"], REJECTS)
            if self.rejects["error"].null_count:
                raise ValueError("its footer has rejects without an error")

    def read_rows(self) -> Iterator[Row]:
        """Yield the rows in order: plain values, and a `StoredTensor` for each column of `schema.TENSORS`."""
        batches = self._file.iter_batches(batch_size=_ROWS_PER_BATCH)
        while True:
            with translate_errors():
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            tensors = {name: columns.pop(name) for name in TENSORS if name in columns}
            for index, row in enumerate(pa.table(columns).to_pylist()):
                yield {**row, **{name: _stored_tensor(column, index) for name, column in tensors.items()}}


def _stored_tensor(column: pa.Array, index: int) -> StoredTensor:
    value = (column.storage if isinstance(column, pa.ExtensionArray) else column)[index]
    stored = value[0] if value.is_valid else value
    if not stored.is_valid:
        return StoredTensor(np.empty(0), None)
    shape = value["shape"].as_py()
    if not is_packed(value.type):
        return StoredTensor(stored.values.to_numpy(zero_copy_only=False), shape)
    bits, size = np.unpackbits(np.frombuffer(stored.as_buffer(), np.uint8)), math.prod(shape or [])
    return StoredTensor(bits[:size] if 0 <= bits.size - size < 8 else bits, shape)  # without the last byte's padding


def read_receipts(uri: str) -> pa.Table:
    """Return a file of `schema.RECEIPT`.

    Raises:
        Unreadable: the file is damaged.
        OSError: the store fails.
    """
    data = storage.read(uri).data
    with translate_errors():
        table = pq.read_table(pa.BufferReader(data), schema=RECEIPT)
        table.validate(full=True)
    return table
