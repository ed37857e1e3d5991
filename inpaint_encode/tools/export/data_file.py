"""Exports one data file; runs as a Ray task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from inpaint_encode.errors import EncodeError, JobFailed
from inpaint_encode.reader.output import as_rows, footer_metadata
from inpaint_encode.stores import storage

from .destination import Destination, ExportRecord, ExportTotals
from .formats import Format, FormatOptions, Row, select_format, tar_bytes

__all__ = ["EXPORT_RESULT", "EXPORT_WORK", "export_data_file"]

EXPORT_WORK = pa.schema([("path", pa.string()), ("version", pa.string())])
"""One Ray row per data file: its path in the output, and its version in the listing."""

EXPORT_RESULT = pa.schema(
    [("path", pa.string()), ("rows", pa.int64()), ("files", pa.int64()), ("bytes", pa.int64()), ("fatal", pa.string())]
)
"""Totals of one data file; ``fatal`` is an error message that ends the job, or null."""

_BATCH_ROWS = 16
"""Rows that are unpacked at a time, and threads that write their files."""


def export_data_file(row: pa.Table, *, source: str, destination: Destination, to: str, has_frames: bool) -> pa.Table:
    """Export a data file; return a row of `EXPORT_RESULT`.

    Args:
        row: one row of `EXPORT_WORK`.
        source: the output that contains the data file.
        destination: where the files are written.
        to: name of the format.
        has_frames: see `FormatOptions`.
    """
    (work,) = row.to_pylist()
    result: dict[str, Any] = {"path": work["path"], "fatal": None}
    uri = storage.join(source, work["path"])
    try:
        result |= _export(uri, destination, work, to, has_frames=has_frames)._asdict()
    except EncodeError as error:
        result["fatal"] = str(error)
    except (OSError, pa.ArrowException) as error:
        result["fatal"] = f"{uri} cannot be exported: {error}"
    return pa.Table.from_pylist([result], EXPORT_RESULT)


def _export(uri: str, destination: Destination, work: Mapping[str, str], to: str, *, has_frames: bool) -> ExportTotals:
    """Write all files of a data file between two records; the first lists files that a crash may leave behind."""
    blob, path = storage.read(uri), work["path"]
    if blob.version != work["version"]:
        raise JobFailed(f"{uri} has changed since it was listed: an encode job is running; wait until it ends")
    file = pq.ParquetFile(pa.BufferReader(blob.data), page_checksum_verification=True)
    options = FormatOptions(footer_metadata(file), has_frames)
    form = select_format(to, file.schema_arrow.names)
    keys = file.read(columns=["key"])["key"].to_pylist()
    tar = f"{path.removesuffix('.parquet')}.tar"
    files = (tar,) if form.is_tar else tuple(name for key in keys for name in form.names(key))
    record = ExportRecord(work["version"], done=False, rows=len(keys), bytes=0, files=files)
    destination.write_record(path, record)
    batches = (as_rows(batch) for batch in file.iter_batches(batch_size=_BATCH_ROWS))
    if form.is_tar:
        data = tar_bytes(chain.from_iterable(_files_of(row, form, options) for row in chain.from_iterable(batches)))
        destination.check_lease()
        size = destination.write(tar, data)
    else:
        size = 0
        with ThreadPoolExecutor(_BATCH_ROWS) as pool:
            for batch in batches:
                destination.check_lease()
                size += sum(pool.map(lambda row: _write_row(row, form, options, destination), batch))
    record = replace(record, done=True, bytes=size)
    destination.write_record(path, record)
    return record.totals


def _write_row(row: Row, form: Format, options: FormatOptions, destination: Destination) -> int:
    return sum(destination.write(name, data) for name, data in _files_of(row, form, options))


def _files_of(row: Row, form: Format, options: FormatOptions) -> Iterator[tuple[str, bytes]]:
    return zip(form.names(row["key"]), form.contents(row, options), strict=True)
