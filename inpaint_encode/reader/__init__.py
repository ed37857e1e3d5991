"""Reads an output, without Ray or any other package of the job: rows as plain values and numpy arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from inpaint_encode.output.parquet import translate_errors
from inpaint_encode.stores import storage

from .files import DataFile
from .output import Output, as_rows

__all__ = ["DataFile", "Output", "as_rows", "iter_rows"]


def iter_rows(output: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of an output in file order, as dicts of plain values and numpy arrays. Packed masks are unpacked.

    Needs neither torch nor Ray. One file is in memory at a time.

    Args:
        output: folder or URI prefix that a job wrote. The job may be unfinished: every file is complete.

    Raises:
        UsageError: the URI is invalid, or the output has no rows.
        JobFailed: a file is damaged.
        PermissionError, OSError: the store's error.

    Example::

        for row in iter_rows("s3://bucket/latents"):
            row["key"], row["samples"].shape  # "a/042", (4, 64, 64)
    """
    opened = Output.open(output)
    for file in opened.files:
        with translate_errors(storage.join(opened.uri, file.path)):
            for batch in opened.read(file).iter_batches(batch_size=16):
                yield from as_rows(batch)
