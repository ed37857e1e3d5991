"""The checks of one chunk: its files against the plan, ``_job.json`` and the rules for rows. Needs no Ray.

Its files may be damaged: wrong bytes raise `Unreadable`, failures of a store `OSError`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.core.geometry import Sizing, format_size
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output import plan, version_1
from inpaint_encode.output.notes import parse_chunk_footer, parse_metadata_footer
from inpaint_encode.output.state import OutputState
from inpaint_encode.parquet_file import ParquetFile, read_columns
from inpaint_encode.reader.output import Row
from inpaint_encode.schema import REJECTS, TENSORS, data_schema, is_packed
from inpaint_encode.stores import storage

from .findings import ChunkFindings, PlannedChunk

COVERAGE_ULPS = 2
"""Largest difference of ``mask_coverage`` from the mask's mean, in steps of float32. A GPU multiplies by a rounded
inverse, which is one step off. A wrong pixel is more than this in masks of up to eight million pixels."""

_ROWS_PER_BATCH = 16


def check_chunk(planned: PlannedChunk, state: OutputState, metadata: RowMetadata) -> ChunkFindings:
    """Check the files of one chunk.

    Args:
        planned: the chunk.
        state: of the output; nothing is written.
        metadata: of the rows, by ``_job.json``.
    """
    findings = ChunkFindings(planned.chunk)
    data_uri, rejects_uri = state.data_uri(planned.chunk), state.rejects_uri(planned.chunk)
    read_chunk = version_1.read_chunk if version_1.is_old(planned.chunk) else plan.read_chunk
    try:
        pairs = read_chunk(planned.part, planned.chunk) if planned.part else None
        rejects = _read(rejects_uri) if planned.has_rejects else None
        data = _read(data_uri)
    except OSError as error:
        findings.fatal = f"{data_uri}, its rejects or its plan cannot be read: {error}"
        return findings
    try:
        if data is None:
            raise Unreadable("it was listed, but is missing now")
        file = DataFile(data)
        findings.encoded, findings.errors = file.rows, dict(Counter(file.rejects["error"].to_pylist()))
        findings.footer_chunk = file.chunk
        if file.chunk == planned.chunk:
            findings.revision, findings.hash = file.revision, file.hash
        for check, sentence, is_intact in _data_problems(file, planned, pairs, metadata):
            findings.add(check, data_uri, sentence, is_intact=is_intact)
    except Unreadable as error:
        findings.revision = None
        findings.add("file", data_uri, f"cannot be read ({error})")
        return findings
    if problem := _rejects_problem(file.rejects, rejects):
        findings.add("rejects", rejects_uri, problem)
    return findings


def _read(uri: str) -> bytes | None:
    try:
        return storage.read(uri).data
    except FileNotFoundError:
        return None


def _data_problems(
    file: DataFile, planned: PlannedChunk, pairs: pa.Table | None, metadata: RowMetadata
) -> Iterator[tuple[str, str, bool]]:
    """Yield the check and the sentence of each problem of a data file, and whether the file itself is intact.

    The rows are checked against the settings in the file's own footer: if _job.json has others, the file is intact.
    """
    if file.chunk != planned.chunk:
        yield "footer", f"has chunk {file.chunk} in its footer and chunk {planned.chunk} in its name", False
        return
    differs = _plan_problem(file, planned)
    if differs:
        yield "footer", differs, True
    written, expected = file.metadata.to_dict(), metadata.to_dict()
    names = sorted(expected.keys() - {"vae_source", "versions"})
    if differences := [f"{name} {written[name]}" for name in names if written[name] != expected[name]]:
        yield "settings", f"has other settings than _job.json: {', '.join(differences)}", True
    own = data_schema(file.metadata)
    if sentence := _columns_problem(pa.schema(list(file.schema)[: len(own)]), own):
        yield "columns", sentence, False
        return
    if pairs is not None and (sentence := _columns_problem(file.schema, data_schema(file.metadata, pairs.schema))):
        yield "columns", sentence, True
    keys = list(file.rejects["key"].to_pylist())
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for row in file.read_rows():
        keys.append(row["key"])
        for check, sentence in _row_problems(row, file.metadata):
            rows[check].append(f"{row['key']}: {sentence}")
    for check, sentences in rows.items():
        yield check, f"has {len(sentences):,} wrong rows of {file.rows:,}, the first {sentences[0]}", False
    compared = None if differs else pairs
    for sentence in _key_problems(keys, compared, outdated=file.revision < planned.revision):
        yield "keys", sentence, False


def _plan_problem(file: DataFile, planned: PlannedChunk) -> str | None:
    """Compare the revision and the hash in a data file's footer with the plan."""
    if planned.revision < 0:
        return None  # it is not planned, which is a problem of the plan
    if file.revision > planned.revision:
        newest = f"the newest one of chunk {planned.chunk} in the plan is {planned.revision}"
        return f"has revision {file.revision} in its footer, but {newest}"
    planned_hashes = (planned.hash, planned.footer_hash or planned.hash)
    if file.revision == planned.revision and planned.hash and file.hash not in planned_hashes:
        return "has other pairs than the plan has for this chunk, so a part of the plan was lost or replaced"
    return None


def _columns_problem(found: pa.Schema, expected: pa.Schema) -> str | None:
    """Compare names and types, which must be the same in all files for readers of the folder."""
    if found.names != expected.names:
        return f"has the columns {', '.join(found.names)}, not {', '.join(expected.names)}"
    for field, expected_field in zip(found, expected, strict=True):
        if field.type != expected_field.type:
            return f"has a column {field.name} of type {field.type}, not {expected_field.type}"
    return None


def _row_problems(row: Row, metadata: RowMetadata) -> Iterator[tuple[str, str]]:
    """Yield the check and the sentence of each problem of a row."""
    mask = row["noise_mask"].values
    if sentence := _shapes_problem(row, metadata):
        yield "shapes", sentence
    values = np.concatenate([row[name].values for name in ("samples", "original_samples") if name in row])
    if infinite := values.size - int(np.isfinite(values).sum()):
        yield "samples", f"{infinite:,} of {values.size:,} values are not finite"
    if others := mask.size - int((mask <= 1).sum()):
        yield "noise_mask", f"{others:,} of {mask.size:,} pixels are neither 0 nor 1"
    if sentence := _latent_mask_problem(row, metadata):
        yield "latent_mask", sentence
    mean = np.float32(mask.sum(dtype=np.float64) / max(1, mask.size))
    stored = np.float32(math.nan if row["mask_coverage"] is None else row["mask_coverage"])
    if not abs(stored - mean) <= COVERAGE_ULPS * np.spacing(mean):
        yield "mask_coverage", f"mask_coverage is {stored}, but the mean of noise_mask is {mean}"


def _latent_mask_problem(row: Row, metadata: RowMetadata) -> str | None:
    """Check that ComfyUI's mask follows from noise_mask; diffusers' follows from the ungrown mask, so check 0 or 1."""
    if "latent_mask" not in row or len(row["latent_mask"].shape or []) != 3:
        return None  # _shapes_problem finds a wrong shape
    found, mask, factor = row["latent_mask"].values, row["noise_mask"].values, metadata.vae.vae_scale_factor
    if metadata.latent_mask == "diffusers":
        others = int(((found != 0) & (found != 1)).sum())
        return f"{others:,} of {found.size:,} values are neither 0 nor 1" if others else None
    _, height, width = row["latent_mask"].shape
    if factor % 2 or mask.size != height * width * factor**2:
        return None  # no factor is odd so far; _shapes_problem finds a wrong size
    cells, middle = mask.reshape(height, factor, width, factor), factor // 2
    centres = cells[:, middle - 1 : middle + 1, :, middle - 1 : middle + 1].mean(axis=(1, 3))
    others = int((centres.ravel() != found).sum())
    return f"{others:,} of {found.size:,} values do not match noise_mask" if others else None


def _shapes_problem(row: Row, metadata: RowMetadata) -> str | None:
    height, width, factor = row["source_height"] or 0, row["source_width"] or 0, metadata.vae.vae_scale_factor
    source = f"a source of {format_size(height, width)} pixels"
    try:
        resized_height, resized_width, crop = Sizing.of(metadata).fit(height, width)
    except (ValueError, ZeroDivisionError) as error:
        return f"{source} cannot be encoded ({error})"
    channels = metadata.vae.latent_channels * (2 if metadata.posterior == "moments" else 1)
    latent = [channels, crop.height // factor, crop.width // factor]
    expected: dict[str, Any] = {
        "resized_height": resized_height,
        "resized_width": resized_width,
        "crop_top": crop.top,
        "crop_left": crop.left,
        "noise_mask": [1, crop.height, crop.width],
        "samples": latent,
        "original_samples": latent,
        "latent_mask": [1, *latent[1:]],
    }
    for name, value in expected.items():
        if name not in row:
            continue  # an optional column
        found = row[name]
        shape = found.shape if isinstance(found, StoredTensor) else found
        if shape != value:
            return f"{name} is {shape}, but {source} gives {value}"
        if isinstance(found, StoredTensor) and found.values.size != math.prod(value):
            return f"{name} has {found.values.size:,} values, but the shape {value}"
    return None


def _key_problems(keys: list[str], pairs: pa.Table | None, *, outdated: bool) -> Iterator[str]:
    """Compare the keys of rows and rejects with the plan; an outdated file must only have the rows that are kept."""
    counts = Counter(keys)
    wrong = {"repeated keys": [key for key, count in counts.items() if count > 1]}
    if pairs is not None:
        planned = zip(pairs["key"].to_pylist(), pairs["encode"].to_pylist(), strict=True)
        expected = {key for key, encode in planned if not (outdated and encode)}
        wrong["planned keys that are neither rows nor rejects"] = sorted(expected - counts.keys())
        if not outdated:
            wrong["keys that are not planned for this chunk"] = sorted(counts.keys() - expected, key=str)
    for what, some in wrong.items():
        if some:
            yield f"has {len(some):,} {what}, the first {min(map(str, some))}"


def _rejects_problem(expected: pa.Table, data: bytes | None) -> str | None:
    """Compare the rejects file with the rejects in the data file's footer."""
    if data is None:
        return f"does not exist, but its data file has {expected.num_rows:,} rejects" if expected.num_rows else None
    if not expected.num_rows:
        return "exists, but its data file has no rejects"
    try:
        table = read_table(data, REJECTS)
    except Unreadable as error:
        return f"cannot be read ({error})"
    if table.sort_by("key").equals(expected.sort_by("key")):
        return None
    return f"has {table.num_rows:,} rejects that are not the {expected.num_rows:,} of its data file"


class Unreadable(Exception):
    """A file is damaged; the message has the reader's error."""


class StoredTensor(NamedTuple):
    """A value of a tensor column; the number of values and the shape may disagree."""

    values: NDArray[Any]
    """Flat."""
    shape: list[int] | None


@contextmanager
def _translate_errors() -> Iterator[None]:
    """Raise `Unreadable` for what Arrow and JSON raise on wrong bytes; no other code may run inside."""
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise Unreadable(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}") from error


def read_table(data: bytes, schema: pa.Schema, columns: list[str] | None = None) -> pa.Table:
    """Return columns of a Parquet file, by default all of ``schema``.

    Raises:
        Unreadable: the file is damaged.
    """
    with _translate_errors():
        table = read_columns(data, pa.schema([schema.field(name) for name in columns or schema.names]))
        table.validate(full=True)
    return table


class DataFile:
    """A data file: its footer, and its rows in small batches, so that large masks need little memory.

    Raises:
        Unreadable: here or while rows are read.
    """

    def __init__(self, data: bytes) -> None:
        with _translate_errors():
            self._file = ParquetFile(data, page_checksum_verification=True)
            self.rows: int = self._file.metadata.num_rows
            self.schema: pa.Schema = self._file.schema
            self.metadata = parse_metadata_footer(self.schema.metadata)
            footer = parse_chunk_footer(self.schema.metadata)
            self.chunk, self.revision, self.hash = footer.chunk, footer.revision, footer.hash
            self.rejects: pa.Table = pa.Table.from_pylist(footer.rejected, REJECTS)

    def read_rows(self) -> Iterator[Row]:
        """Yield the rows in order: plain values, and a `StoredTensor` for each column of `schema.TENSORS`."""
        with _translate_errors():
            batches = self._file.iter_batches(batch_size=_ROWS_PER_BATCH)
        while True:
            with _translate_errors():
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            tensors = {name: columns.pop(name) for name in TENSORS if name in columns}
            for index, row in enumerate(pa.table(columns).to_pylist()):
                yield {**row, **{name: _stored_tensor(column, index) for name, column in tensors.items()}}


def _stored_tensor(column: pa.Array, index: int) -> StoredTensor:
    value = column[index]
    stored = value[0] if value.is_valid else value
    if not stored.is_valid:
        return StoredTensor(np.empty(0), None)
    shape = value["shape"].as_py()
    if not is_packed(value.type):
        return StoredTensor(stored.values.to_numpy(zero_copy_only=False), shape)
    bits, size = np.unpackbits(np.frombuffer(stored.as_buffer(), np.uint8)), math.prod(shape or [])
    return StoredTensor(bits[:size] if 0 <= bits.size - size < 8 else bits, shape)  # without the last byte's padding
