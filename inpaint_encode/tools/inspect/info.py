"""What an output is, told from its metadata: a listing, ``_job.json``, ``_report.json``, receipts and one footer.

No row is read, whatever the output's size, and neither torch nor Ray is imported.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.parquet import damage_named
from inpaint_encode.reader import Output
from inpaint_encode.schema import RECEIPT, TENSORS, is_packed
from inpaint_encode.settings import Decoding, RowSettings, format_value
from inpaint_encode.stores import storage
from inpaint_encode.stores.redaction import redacted

__all__ = ["RECEIPTS", "Column", "Counts", "Info", "about", "show"]

RECEIPTS = 32
"""Files of receipts that are read at most to count the rows of a job that has not finished; it writes one in 30 s."""

_FACTS = (
    *("vae_class", "vae_source", "vae_family", "weights_sha256", "config_sha256", "vae_scale_factor", "crop_multiple"),
    *("latent_channels", "latent_form", "scaling_factor", "shift_factor"),
)


@dataclass(frozen=True)
class Column:
    """One column of the rows."""

    name: str
    type: str
    shape: str
    """Empty for plain values."""
    bytes: int
    """Compressed, in the first file."""


@dataclass(frozen=True)
class Counts:
    """How much there is; what is not known without reading rows is None."""

    state: str
    """A sentence: finished and when, in progress, or neither."""
    finished: bool
    """Whether the last run's report is of what is there now."""
    planned: int | None
    """Pairs."""
    encoded: int | None
    """Pairs that are rows."""
    rejected: int | None
    files: int
    bytes: int
    """Of the files with rows."""


@dataclass(frozen=True)
class Info:
    """All that `about` found."""

    output: str
    counts: Counts
    columns: tuple[Column, ...]
    rows_in_first_file: int
    vae: dict[str, Any]
    settings: dict[str, Any]
    """`inpaint_encode.settings.RowSettings` and what is kept of `inpaint_encode.settings.Decoding`."""
    source: dict[str, Any]
    """What the job was told of it, as far as it was told anything."""
    versions: dict[str, str]
    contract: int | None
    rejected_by_error: dict[str, int]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def about(output: str) -> Info:
    """Look at an output, a folder or prefix that a job wrote, finished or not.

    Raises:
        UsageError: no output can be there, it holds no rows, or what is there is none of encode's.
        JobFailed: a job has begun it, and there is no row yet; or a file is damaged.
        PermissionError, OSError: by what the store said.
    """
    opened = _opened(output)
    first = opened.files[0]
    with opened.parquet(first) as file:
        footer, schema = file.metadata, file.schema_arrow
    metadata = opened.metadata
    job, report = opened.job, opened.report
    counts = _counts(opened, report)
    return Info(
        output=opened.uri,
        counts=counts,
        columns=tuple(_columns(schema, footer, metadata)),
        rows_in_first_file=footer.num_rows,
        vae={name: getattr(metadata.vae, name) for name in _FACTS},
        settings={name: getattr(metadata, name) for name in _SETTINGS},
        source={name: _public(value) for name, value in job.get("source", {}).items() if value},
        versions=dict(metadata.versions),
        contract=metadata.contract,
        rejected_by_error=dict(report["rejected_by_error"]) if counts.finished else {},
    )


def _public(value: Any) -> Any:
    return redacted(value) if isinstance(value, str) else value


_SETTINGS = RowSettings().recorded() | Decoding().recorded()


def _opened(output: str) -> Output:
    try:
        return Output.open(output)
    except UsageError as error:
        if created := _begun(output):
            raise JobFailed(f"{output} was begun {created} and has no rows yet; look again when it has") from error
        raise


def _begun(output: str) -> str:
    """When a job began to write there; empty if none did, or none can."""
    try:
        return str(Output(storage.normalize_uri(output), ()).job.get("created", ""))
    except ValueError:
        return ""


def _counts(opened: Output, report: Mapping[str, Any]) -> Counts:
    there = {"files": len(opened.files), "bytes": sum(file.size for file in opened.files)}
    held = _is_held(opened.uri)
    if opened.is_reported:
        state = f"finished {report['finished']}{'; another run is in progress, or has died' if held else ''}"
        return Counts(state, True, report["pairs"], report["encoded"], report["rejected"], **there)
    state = "in progress, or its run has died" if held else "not finished, and no run is writing to it"
    state += f"; _report.json is of the run that finished {report['finished']}" if report else ""
    encoded, rejected = _decided(opened) or (None, None)
    return Counts(state, False, _planned(opened), encoded, rejected, **there)


def _is_held(uri: str) -> bool:
    """Whether there is a lease: one that is given back is removed, and that of a run that has died stays."""
    try:
        return bool(storage.stat(storage.join(uri, "_lease.json")))
    except FileNotFoundError:
        return False


def _planned(opened: Output) -> int | None:
    """Pairs in the plan, if it has one generation: a later one may state some of them again."""
    prefix = storage.join(opened.uri, "_plan")
    markers = [path for page in storage.list_objects(prefix) for path in page.paths if path.endswith(".json")]
    if len(markers) != 1:
        return None
    return int(json.loads(storage.read(storage.join(prefix, markers[0])).data)["pairs"])


def _decided(opened: Output) -> tuple[int, int] | None:
    """Rows and rejects that receipts have of the files that are there; None if they have not all of them."""
    prefix = storage.join(opened.uri, "_receipts")
    receipts = [path for page in storage.list_objects(prefix) for path in page.paths]
    if len(receipts) > RECEIPTS:
        return None
    unknown = {file.path: file.version for file in opened.files}
    encoded = rejected = 0
    for path in receipts:
        data = storage.read(storage.join(prefix, path)).data
        with damage_named(storage.join(prefix, path)):
            table = pq.read_table(pa.BufferReader(data), schema=RECEIPT)
        job = path.partition("-")[0]
        for one in table.select(["chunk", "encoded", "rejected", "version"]).to_pylist():
            name = f"{job}-{one['chunk']:08d}.parquet"
            if unknown.get(name) == one["version"]:
                del unknown[name]
                encoded, rejected = encoded + one["encoded"], rejected + one["rejected"]
    return None if unknown else (encoded, rejected)


def _columns(schema: pa.Schema, footer: pq.FileMetaData, metadata: RowMetadata) -> Iterator[Column]:
    sizes: dict[str, int] = {}
    for group in range(footer.num_row_groups):
        for leaf in range(footer.num_columns):
            chunk = footer.row_group(group).column(leaf)
            name = chunk.path_in_schema.partition(".")[0]
            sizes[name] = sizes.get(name, 0) + chunk.total_compressed_size
    for field in schema:
        kind, shape = _type_and_shape(field, metadata)
        yield Column(field.name, kind, shape, sizes.get(field.name, 0))


def _type_and_shape(field: pa.Field, metadata: RowMetadata) -> tuple[str, str]:
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    if field.name not in TENSORS:
        return str(kind), ""
    if is_packed(kind):
        return "bits, 8 pixels a byte", _SHAPES["noise_mask"]
    value = np.dtype(kind.field("data").type.value_type.to_pandas_dtype()).name
    channels = metadata.vae.latent_channels * (2 if metadata.posterior == "moments" else 1)
    return f"tensor of {value}", _SHAPES[field.name].format(channels=channels, ratio=metadata.vae.vae_scale_factor)


_LATENT = "[{channels}, h, w], each 1/{ratio} of the crop's sides"
_SHAPES = {
    "samples": _LATENT,
    "original_samples": _LATENT,
    "noise_mask": "[1, H, W], the crop's height and width",
    "latent_mask": "[1, h, w], as samples",
}


def show(found: Info, console: Console) -> None:
    """Print it: counts and sizes, columns, the VAE, settings, source and versions."""
    console.print(f"[bold]{escape(found.output)}[/]: {escape(found.counts.state)}", highlight=False)
    console.print(_table(_count_lines(found)), _column_table(found), highlight=False)
    for title, lines in _sections(found):
        console.print(f"\n[bold]{title}[/]", _table(lines), highlight=False)


def _count_lines(found: Info) -> Iterator[tuple[str, str]]:
    counts = found.counts
    if counts.planned is not None:
        yield "pairs planned", f"{counts.planned:,}"
    if counts.encoded is None:
        yield "rows", "not counted: the run that finishes writes how many"
    else:
        rejects = ", ".join(f"{count:,} {error}" for error, count in found.rejected_by_error.items())
        yield "rows", f"{counts.encoded:,}"
        yield "rejected", f"{counts.rejected:,}{f' ({rejects})' if rejects else ''}"
    yield "files", f"{counts.files:,}, {found.rows_in_first_file:,} rows in the first"
    each = f", {decimal(round(counts.bytes / counts.encoded))} a row" if counts.encoded else ""
    yield "size", f"{decimal(counts.bytes)}{each}"


def _column_table(found: Info) -> Table:
    table = Table("\ncolumn", "\ntype", "\nshape", "bytes a row\nin the first file", box=None, pad_edge=False)
    table.columns[3].justify = "right"
    for column in found.columns:
        each = column.bytes / max(1, found.rows_in_first_file)
        table.add_row(escape(column.name), escape(column.type), escape(column.shape), f"{each:,.0f}")
    return table


def _sections(found: Info) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    facts = {name: str(value)[:12] if name.endswith("sha256") else value for name, value in found.vae.items()}
    yield "VAE", [(name, escape(format_value(value))) for name, value in facts.items()]
    settings = [(name, _setting(name, value)) for name, value in found.settings.items()]
    yield f"settings, of contract {found.contract}", settings
    if found.source:
        yield "source", [(name, escape(str(value))) for name, value in found.source.items()]
    yield "versions", [(", ".join(f"{name} {value}" for name, value in found.versions.items()), "")]


def _setting(name: str, value: Any) -> str:
    words = escape(str(value).lower() if isinstance(value, bool) else format_value(value))
    return words if value != _SETTINGS[name] else f"{words} [dim]default[/]"


def _table(lines: Iterable[tuple[str, str]]) -> Table:
    """Names as they are, values as rich's markup."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in lines:
        table.add_row(escape(name), value)
    return table
