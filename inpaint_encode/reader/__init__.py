"""Reading an output back, without Ray: rows as plain values and numpy arrays, whichever way masks are stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inpaint_encode.output.parquet import damage_named
from inpaint_encode.stores import storage

from .output import DataFile, Output, as_rows

__all__ = ["DataFile", "Output", "as_rows", "damage_named", "iter_rows"]


def iter_rows(output: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an output, file by file, one whole file in memory at a time; see `as_rows`.

    Args:
        output: folder or prefix that a job wrote, finished or not: a file that is there is whole.

    Raises:
        UsageError: no output can be there, or it holds no rows.
        JobFailed: a file is damaged.
        PermissionError, OSError: by what the store said.
    """
    opened = Output.open(output)
    for file in opened.files:
        with damage_named(storage.join(opened.uri, file.path)):
            for batch in opened.read(file).iter_batches(batch_size=16):
                yield from as_rows(batch)
