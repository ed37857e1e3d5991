"""One data file, exported by a Ray task: whole, or begun and noted as such."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.errors import EncodeError, JobFailed
from inpaint_encode.reader.output import as_rows, footer_metadata
from inpaint_encode.stores import storage

from .destination import Destination, Mark, Total
from .formats import Facts, Format, Row, format_of, tar_bytes

__all__ = ["FILE", "RECEIPT", "export_file"]

FILE = pa.schema([("path", pa.string()), ("version", pa.string())])
"""One Ray row, one data file, relative to its output, and the version that the listing saw."""

RECEIPT = pa.schema(
    [
        ("path", pa.string()),
        ("rows", pa.int64()),
        ("files", pa.int64()),
        ("bytes", pa.int64()),
        ("fatal", pa.string()),
    ]
)
"""What the driver hears of a data file; ``fatal`` is a sentence where it could not be exported, which ends the job."""

_ROWS_AT_ONCE = 16
"""Rows that are in memory unpacked, and are written side by side."""


def export_file(row: pa.Table, *, source: str, destination: Destination, to: str, video: bool) -> pa.Table:
    """Export the data file in a row of `FILE`; return a row of `RECEIPT`.

    Args:
        row: one Ray row.
        source: the output that it belongs to.
        destination: where the files go.
        to: name of the format.
        video: see `Facts`.
    """
    (work,) = row.to_pylist()
    receipt: dict[str, Any] = {"path": work["path"], "fatal": None}
    uri = storage.join(source, work["path"])
    try:
        total = _exported(_opened(uri, work["version"]), destination, work, to, video=video)
        receipt |= total._asdict()
    except EncodeError as error:
        receipt["fatal"] = str(error)
    except (OSError, pa.ArrowException) as error:
        receipt["fatal"] = f"{uri} cannot be exported: {error}"
    return pa.Table.from_pylist([receipt], RECEIPT)


def _opened(uri: str, version: str) -> pq.ParquetFile:
    blob = storage.read(uri)
    if blob.version != version:
        raise JobFailed(f"{uri} has changed since it was listed: an encode is writing there; wait for its end")
    return pq.ParquetFile(pa.BufferReader(blob.data), page_checksum_verification=True)


def _exported(
    file: pq.ParquetFile, destination: Destination, work: Mapping[str, str], to: str, *, video: bool
) -> Total:
    """Write the files between two marks, of which the first says what may be there if the second never comes."""
    path, facts = work["path"], Facts(footer_metadata(file), video)
    form = format_of(to, file.schema_arrow.names)
    tar = f"{path.removesuffix('.parquet')}.tar"
    keys = file.read(columns=["key"])["key"].to_pylist()
    files = (tar,) if form.is_tar else tuple(name for key in keys for name in form.names(key))
    mark = Mark(work["version"], done=False, rows=len(keys), bytes=0, files=files)
    destination.mark(path, mark)
    write = partial(_write_tar, tar) if form.is_tar else _write_files
    mark = replace(mark, done=True, bytes=write(file, form, facts, destination))
    destination.mark(path, mark)
    return mark.total


def _write_tar(name: str, file: pq.ParquetFile, form: Format, facts: Facts, destination: Destination) -> int:
    rows = chain.from_iterable(map(as_rows, file.iter_batches(batch_size=_ROWS_AT_ONCE)))
    data = tar_bytes(chain.from_iterable(_named(row, form, facts) for row in rows))
    destination.still_mine()
    return destination.write(name, data)


def _write_files(file: pq.ParquetFile, form: Format, facts: Facts, destination: Destination) -> int:
    size = 0
    with ThreadPoolExecutor(_ROWS_AT_ONCE) as pool:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
            destination.still_mine()
            size += sum(pool.map(lambda row: _write_row(row, form, facts, destination), as_rows(batch)))
    return size


def _write_row(row: Row, form: Format, facts: Facts, destination: Destination) -> int:
    return sum(destination.write(name, data) for name, data in _named(row, form, facts))


def _named(row: Row, form: Format, facts: Facts) -> Iterator[tuple[str, bytes]]:
    return zip(form.names(row["key"]), form.contents(row, facts), strict=True)
