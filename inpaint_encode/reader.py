"""Reading an output back, without Ray: rows as plain values and numpy arrays, whichever way masks are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from . import rows, storage

__all__ = ["iter_rows"]


def iter_rows(output: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an output, file by file, in no order that means anything.

    Args:
        output: folder or prefix that a job wrote, finished or not: a file that is there is whole.

    Yields:
        Values by column; ``samples`` and ``original_samples`` are float16 or float32 ``[C, h, w]``, or ``[2C, h, w]``
        of moments, ``noise_mask`` is uint8 ``[1, H, W]``, 0 or 1, unpacked where the job stored it packed, and
        ``latent_mask`` ``[1, h, w]`` of the type of ``samples``.

    Raises:
        FileNotFoundError, PermissionError, OSError: by what the store said.
    """
    prefix = storage.normalise(output)
    for listed in storage.list_objects(prefix):
        for path in listed.paths:
            if path.endswith(".parquet") and not path.startswith("_"):
                yield from _rows(storage.read(storage.join(prefix, path)).data)


def _rows(data: bytes) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(batch_size=16):
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        arrays = {name: rows.tensors(columns.pop(name)) for name in rows.TENSORS if name in columns}
        for values in pa.table(columns).to_pylist():
            yield {**values, **{name: next(its_arrays) for name, its_arrays in arrays.items()}}
