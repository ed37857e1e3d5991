"""What is checked in one chunk of an output: its files against the plan, ``_job.json`` and the contract.

Needs no Ray. What a file says of itself is damage if it is wrong; a store that does not answer is not, and is
passed on as ``fatal``.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from inpaint_encode.core.geometry import Sizing
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output import plan
from inpaint_encode.output.state import CHUNK_KEY, OutputState
from inpaint_encode.schema import FOOTER_KEY, RECEIPT, REJECTS, TENSORS, data_schema, is_packed
from inpaint_encode.stores import storage

__all__ = [
    "CHUNK",
    "COVERAGE_ULPS",
    "FOUND",
    "DataFile",
    "Found",
    "Problem",
    "Row",
    "Tensor",
    "Unreadable",
    "check",
    "parsing",
]

COVERAGE_ULPS = 2
"""How far ``mask_coverage`` may be from the mask's mean, in steps of float32: a GPU divides by multiplying with a
rounded inverse, which is one step off. A wrong pixel is more than that in masks of up to eight million pixels."""

CHUNK = pa.schema(
    [("chunk", pa.int64()), ("generation", pa.int32()), ("part", pa.string()), ("has_rejects", pa.bool_())]
)
"""One Ray row, one chunk to check: where its plan is, and whether the listing saw a rejects file."""

FOUND = pa.schema(
    [
        ("chunk", pa.int64()),
        ("generation", pa.int32()),
        ("encoded", pa.int64()),
        ("errors", pa.map_(pa.string(), pa.int64())),
        ("problems", pa.list_(pa.struct([(name, pa.string()) for name in ("check", "file", "sentence")]))),
        ("fatal", pa.string()),
    ]
)
"""What the driver hears of a chunk. ``generation`` is the file's own, null where the file cannot be read; ``fatal``
is a sentence where it could not be checked, which ends the command."""

_ROWS_AT_ONCE = 16


class Problem(NamedTuple):
    """One thing that is wrong with one file."""

    check: str
    """Which check found it, one of `inpaint_encode.tools.verify.verdict.CHECKS`."""
    file: str
    sentence: str
    chunk: int = -1
    """Whose file it is; -1 where no chunk's."""


class Unreadable(Exception):
    """A file's bytes are not the format that they should be; the message says what the reader met."""


class Tensor(NamedTuple):
    """A value of a tensor column as the file has it, whether or not its two parts agree."""

    values: NDArray[Any]
    """Flat."""
    shape: list[int] | None


Row = dict[str, Any]
"""A row of a data file: plain values, and `Tensor` for those of `schema.TENSORS` that it has."""


@contextmanager
def parsing() -> Iterator[None]:
    """Turn what Arrow and JSON raise on wrong bytes into `Unreadable`; no other code may run inside."""
    try:
        yield
    except MemoryError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        what = (str(error).splitlines() or [""])[0]
        raise Unreadable(f"{type(error).__name__}: {what}") from error


class DataFile:
    """A chunk's file, opened: its footer at once, its rows a few at a time, so that large masks need little memory.

    Raises:
        Unreadable: here or while rows are read.
    """

    def __init__(self, data: bytes) -> None:
        with parsing():
            self._file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
            self.rows: int = self._file.metadata.num_rows
            self.schema: pa.Schema = self._file.schema_arrow
            self.metadata = RowMetadata.from_dict(_footer_json(self.schema, FOOTER_KEY))
            decision = _footer_json(self.schema, CHUNK_KEY)
            self.chunk, self.generation = int(decision["chunk"]), int(decision["generation"])
            self.rejects: pa.Table = pa.Table.from_pylist(decision["rejected"], REJECTS)
            if self.rejects["error"].null_count:
                raise ValueError("its footer has rejects without an error")

    def read_rows(self) -> Iterator[Row]:
        """Yield the rows in their order."""
        batches = self._file.iter_batches(batch_size=_ROWS_AT_ONCE)
        while True:
            with parsing():
                batch = next(batches, None)
                if batch is None:
                    return
                batch.validate(full=True)
            yield from _rows_of(batch)


def _footer_json(schema: pa.Schema, key: bytes) -> dict[str, Any]:
    if key not in (schema.metadata or {}):
        raise ValueError(f"its footer has no {key.decode()}")
    return dict(json.loads(schema.metadata[key]))


def _rows_of(batch: pa.RecordBatch) -> Iterator[Row]:
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    tensors = {name: _plain(columns.pop(name)) for name in TENSORS if name in columns}
    for index, row in enumerate(pa.table(columns).to_pylist()):
        yield {**row, **{name: _tensor(column[index]) for name, column in tensors.items()}}


def _plain(column: pa.Array) -> pa.StructArray:
    """A column's structs, whether or not Ray's tensor type is registered in this process."""
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _tensor(value: pa.StructScalar) -> Tensor:
    stored = value[0] if value.is_valid else value
    if not stored.is_valid:
        return Tensor(np.empty(0), None)
    if is_packed(value.type):
        return _unpacked(np.unpackbits(np.frombuffer(stored.as_buffer(), np.uint8)), value["shape"].as_py())
    return Tensor(stored.values.to_numpy(zero_copy_only=False), value["shape"].as_py())


def _unpacked(bits: NDArray[np.uint8], shape: list[int] | None) -> Tensor:
    """Leave out the bits that fill up the last byte, and no others."""
    size = math.prod(shape or [])
    return Tensor(bits[:size] if 0 <= bits.size - size < 8 else bits, shape)


@dataclass
class Found:
    """What a chunk's files turned out to hold."""

    chunk: int
    generation: int | None = None
    encoded: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    fatal: str | None = None

    def table(self) -> pa.Table:
        """One row of `FOUND`."""
        problems = [{"check": one.check, "file": one.file, "sentence": one.sentence} for one in self.problems]
        row = {**vars(self), "errors": list(self.errors.items()), "problems": problems}
        return pa.Table.from_pylist([row], FOUND)

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Found:
        """Take back what `table` gave."""
        problems = [Problem(**problem, chunk=row["chunk"]) for problem in row["problems"]]
        return cls(**{**row, "errors": dict(row["errors"]), "problems": problems})

    def add(self, check: str, file: str, sentence: str) -> None:
        """Note one more problem."""
        self.problems.append(Problem(check, file, sentence, self.chunk))


def check(row: pa.Table, *, state: OutputState, metadata: RowMetadata) -> pa.Table:
    """Check the chunk in a row of `CHUNK`; return a row of `FOUND`.

    Args:
        row: one Ray row.
        state: whose files; nothing is written.
        metadata: of the rows, by ``_job.json``.
    """
    (work,) = row.to_pylist()
    found = Found(work["chunk"])
    try:
        planned = plan.read_chunk(work["part"], work["chunk"])
        kept = _read_if(state.rejects_uri(work["chunk"]), there=work["has_rejects"])
        data = _read_if(state.data_uri(work["chunk"]), there=True)
    except OSError as error:
        found.fatal = f"{state.data_uri(work['chunk'])} or what belongs to it cannot be read: {error}"
    else:
        _check_files(found, work, state, metadata, (planned, kept, data))
    return found.table()


def _read_if(uri: str, *, there: bool) -> bytes | None:
    try:
        return storage.read(uri).data if there else None
    except FileNotFoundError:
        return None


def _check_files(
    found: Found,
    work: Mapping[str, Any],
    state: OutputState,
    metadata: RowMetadata,
    files: tuple[pa.Table, bytes | None, bytes | None],
) -> None:
    planned, kept, data = files
    uri = state.data_uri(found.chunk)
    try:
        if data is None:
            raise Unreadable("it was listed, but is not there")
        file = DataFile(data)
        found.generation, found.encoded = file.generation, file.rows
        found.errors = dict(Counter(file.rejects["error"].to_pylist()))
        for name, sentence in _data_problems(file, work, planned, metadata):
            found.add(name, uri, sentence)
    except Unreadable as error:
        found.generation = None
        found.add("file", uri, f"cannot be read whole: {error}")
    else:
        if differs := _rejects_problem(file.rejects, kept):
            found.add("rejects", state.rejects_uri(found.chunk), differs)


def _data_problems(
    file: DataFile, work: Mapping[str, Any], planned: pa.Table, metadata: RowMetadata
) -> Iterator[tuple[str, str]]:
    """Yield check and sentence for all that is wrong with a data file."""
    if file.chunk != work["chunk"]:
        yield "decision", f"its footer names chunk {file.chunk}, its name chunk {work['chunk']}"
    if file.generation > work["generation"]:
        generations = f"generation {file.generation}, the plan only generation {work['generation']}"
        yield "decision", f"its footer names {generations} of chunk {work['chunk']}"
    written, wanted = file.metadata.to_dict(), metadata.to_dict()
    compared = wanted.keys() - {"vae_source", "versions"}
    differences = [f"{name} {written[name]}" for name in sorted(compared) if written[name] != wanted[name]]
    if differences:
        yield "settings", f"_job.json says otherwise than its footer's {', '.join(differences)}"
    if sentence := _columns_problem(file.schema, data_schema(metadata, planned.schema)):
        yield "columns", sentence
        return
    keys = list(file.rejects["key"].to_pylist())
    yield from _row_problems(file, metadata, keys)
    outdated = file.generation < work["generation"]
    yield from _key_problems(keys, planned, outdated=outdated)


def _columns_problem(schema: pa.Schema, wanted: pa.Schema) -> str | None:
    """A reader takes all files of the folder as one table, so that names and types must agree."""
    if schema.names != wanted.names:
        return f"its columns are {', '.join(schema.names)}; they should be {', '.join(wanted.names)}"
    for there, should in zip(schema, wanted, strict=True):
        kind = there.type.storage_type if isinstance(there.type, pa.BaseExtensionType) else there.type
        if kind != should.type:
            return f"its column {there.name} is {kind}; it should be {should.type}"
    return None


def _row_problems(file: DataFile, metadata: RowMetadata, keys: list[str]) -> Iterator[tuple[str, str]]:
    """Check every row and add its key to ``keys``; yield one sentence for each check, with a count and a row."""
    bad: defaultdict[str, list[str]] = defaultdict(list)
    for row in file.read_rows():
        keys.append(row["key"])
        wrong = dict(_wrong_in(row, metadata))
        for name, sentence in wrong.items():
            bad[name].append(f"{row['key']}: {sentence}")
    for name, sentences in bad.items():
        yield name, f"{len(sentences):,} of {file.rows:,} rows, the first {sentences[0]}"


def _wrong_in(row: Row, metadata: RowMetadata) -> Iterator[tuple[str, str]]:
    mask = row["noise_mask"]
    if sentence := _shapes_problem(row, metadata):
        yield "shapes", sentence
    values = np.concatenate([row[name].values for name in ("samples", "original_samples") if name in row])
    if infinite := values.size - int(np.isfinite(values).sum()):
        yield "samples", f"{infinite:,} of {values.size:,} values are not finite"
    if others := mask.values.size - int((mask.values <= 1).sum()):
        yield "noise_mask", f"{others:,} of {mask.values.size:,} pixels are neither 0 nor 1"
    if sentence := _latent_mask_problem(row, metadata):
        yield "latent_mask", sentence
    mean = np.float32(mask.values.sum(dtype=np.float64) / max(1, mask.values.size))
    stated = np.float32(math.nan if row["mask_coverage"] is None else row["mask_coverage"])
    if not abs(stated - mean) <= COVERAGE_ULPS * np.spacing(mean):
        yield "coverage", f"mask_coverage is {stated}, the mask's mean {mean}"


def _latent_mask_problem(row: Row, metadata: RowMetadata) -> str | None:
    """ComfyUI's rule follows from the row's own noise_mask; of diffusers' the row has only what it can be."""
    if "latent_mask" not in row or row["noise_mask"].shape is None or row["latent_mask"].shape is None:
        return None
    found, mask, ratio = row["latent_mask"].values, row["noise_mask"], metadata.vae.vae_scale_factor
    if metadata.latent_mask == "diffusers":
        others = int(((found != 0) & (found != 1)).sum())
        return f"{others:,} of {found.size:,} values are neither 0 nor 1" if others else None
    _, height, width = row["latent_mask"].shape
    if ratio % 2 or mask.values.size != height * width * ratio**2:
        return None  # no ratio is odd so far; sizes have a check of their own
    cells, middle = mask.values.reshape(height, ratio, width, ratio), ratio // 2
    centres = cells[:, middle - 1 : middle + 1, :, middle - 1 : middle + 1].mean(axis=(1, 3))
    others = int((centres.ravel() != found).sum())
    return f"{others:,} of {found.size:,} values are not what noise_mask gives" if others else None


def _shapes_problem(row: Row, metadata: RowMetadata) -> str | None:
    height, width, ratio = row["source_height"] or 0, row["source_width"] or 0, metadata.vae.vae_scale_factor
    try:
        resized_height, resized_width, crop = Sizing.of(metadata).fit(height, width)
    except (ValueError, ZeroDivisionError):
        return f"a source of {height} x {width} pixels has no latent at 1/{ratio} of its size"
    channels = metadata.vae.latent_channels * (2 if metadata.posterior == "moments" else 1)
    latent = [channels, crop.height // ratio, crop.width // ratio]
    should: dict[str, Any] = {
        "resized_height": resized_height,
        "resized_width": resized_width,
        "crop_top": crop.top,
        "crop_left": crop.left,
        "noise_mask": [1, crop.height, crop.width],
        "samples": latent,
        "original_samples": latent,
        "latent_mask": [1, *latent[1:]],
    }
    for name, value in should.items():
        if name not in row:
            continue  # it was not asked for, or its column has been missed already
        tensor = row[name] if isinstance(row[name], Tensor) else None
        there = tensor.shape if tensor else row[name]
        if there != value:
            return f"{name} is {there}, but a source of {height} x {width} pixels gives {value}"
        if tensor and tensor.values.size != math.prod(value):
            return f"{name} has {tensor.values.size:,} values for a shape of {value}"
    return None


def _key_problems(keys: list[str], planned: pa.Table, *, outdated: bool) -> Iterator[tuple[str, str]]:
    """Hold rows and rejects against the plan; of an ``outdated`` file only the rows that are to be kept are asked."""
    counts = Counter(keys)
    pairs = zip(planned["key"].to_pylist(), planned["encode"].to_pylist(), strict=True)
    asked = {key for key, encode in pairs if not (outdated and encode)}
    sentences = {
        "more than once": [key for key, count in counts.items() if count > 1],
        "planned, but neither rows nor rejects": asked - counts.keys(),
        "not planned for this chunk": set() if outdated else counts.keys() - asked,
    }
    for sentence, wrong in sentences.items():
        if wrong:
            yield "keys", f"keys that are {sentence}: {len(wrong):,}, the first {_first(wrong)}"


def _first(keys: Iterable[str | None]) -> str:
    return min(str(key) for key in keys)


def _rejects_problem(decided: pa.Table, kept: bytes | None) -> str | None:
    """Hold the rejects file against the data file's footer, which is the one that counts."""
    if kept is None:
        return f"is not there; rejects of its data file: {decided.num_rows:,}" if decided.num_rows else None
    if not decided.num_rows:
        return "is there, but its data file has no rejects"
    try:
        with parsing():
            table = pq.read_table(pa.BufferReader(kept), schema=REJECTS)
    except Unreadable as error:
        return f"cannot be read: {error}"
    if table.sort_by("key").equals(decided.sort_by("key")):
        return None
    return (
        f"does not have the rejects of its data file: {table.num_rows:,} there, {decided.num_rows:,} in the data file"
    )


def read_receipts(uri: str) -> pa.Table:
    """Read a file of `schema.RECEIPT`.

    Raises:
        Unreadable: it is damaged.
        OSError: the store does not give it.
    """
    data = storage.read(uri).data
    with parsing():
        table = pq.read_table(pa.BufferReader(data), schema=RECEIPT)
        table.validate(full=True)
    return table
