"""The command ``info``: describes an output from its metadata alone.

No row is read and neither torch nor Ray is imported, whatever the output's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
from inpaint_encode.reader import Output
from inpaint_encode.schema import TENSORS, is_packed
from inpaint_encode.settings import format_value
from inpaint_encode.stores.redaction import redacted

from .summary import SETTING_DEFAULTS, VAE_FIELDS, OutputCounts, count_output, writable_uri

__all__ = ["Column", "OutputInfo", "print_info", "read_info"]


@dataclass(frozen=True)
class Column:
    """A column of the rows."""

    name: str
    type: str
    shape: str
    """Empty for plain values."""
    bytes: int
    """Compressed, in the first file."""


@dataclass(frozen=True)
class OutputInfo:
    """Description of an output."""

    output: str
    counts: OutputCounts
    columns: tuple[Column, ...]
    rows_in_first_file: int
    vae: dict[str, Any]
    settings: dict[str, Any]
    """Settings of rows: `inpaint_encode.settings.RowSettings` and the recorded part of `Decoding`."""
    source: dict[str, Any]
    """Options of the source that were set."""
    versions: dict[str, str]
    contract: int | None

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = asdict(self)
        return values | {"rejected_by_error": values["counts"].pop("rejected_by_error")}


def read_info(output: str) -> OutputInfo:
    """Describe an output, finished or not.

    Args:
        output: folder or prefix that a job wrote.

    Raises:
        UsageError: ``output`` cannot be an output, has no data file, or has files that are not from encode.
        JobFailed: a job has begun there and has not written a row yet, or a file is damaged.
        PermissionError, OSError: from the store.
    """
    try:
        opened = Output.open(output)
    except UsageError as error:
        if created := Output(writable_uri(output), ()).job.get("created"):
            raise JobFailed(f"{output}: the job that began {created} has not written a row yet") from error
        raise
    metadata = opened.metadata
    with opened.parquet(opened.files[0]) as file:
        footer, schema = file.metadata, file.schema_arrow
    source = {name: value for name, value in opened.job.get("source", {}).items() if value}
    return OutputInfo(
        output=opened.uri,
        counts=count_output(opened),
        columns=tuple(_columns(schema, footer, metadata)),
        rows_in_first_file=footer.num_rows,
        vae={name: getattr(metadata.vae, name) for name in VAE_FIELDS},
        settings={name: getattr(metadata, name) for name in SETTING_DEFAULTS},
        source={name: redacted(value) if isinstance(value, str) else value for name, value in source.items()},
        versions=dict(metadata.versions),
        contract=metadata.contract,
    )


def _columns(schema: pa.Schema, footer: pq.FileMetaData, metadata: RowMetadata) -> Iterator[Column]:
    sizes: dict[str, int] = {}
    for group in range(footer.num_row_groups):
        for leaf in range(footer.num_columns):
            chunk = footer.row_group(group).column(leaf)
            name = chunk.path_in_schema.partition(".")[0]
            sizes[name] = sizes.get(name, 0) + chunk.total_compressed_size
    for field in schema:
        yield Column(field.name, *type_and_shape(field, metadata), sizes.get(field.name, 0))


def type_and_shape(field: pa.Field, metadata: RowMetadata) -> tuple[str, str]:
    """Describe the values of a column; the shape is empty for plain values."""
    kind = field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type
    if field.name not in TENSORS:
        return str(kind), ""
    if field.name == "noise_mask":
        shape = "[1, H, W], height and width of the crop"
    elif field.name == "latent_mask":
        shape = "[1, h, w], the same sides as samples"
    else:
        channels = metadata.vae.latent_channels * (2 if metadata.posterior == "moments" else 1)
        shape = f"[{channels}, h, w], sides are 1/{metadata.vae.vae_scale_factor} of the crop's"
    if is_packed(kind):
        return "bits, 8 pixels per byte", shape
    return f"tensor of {np.dtype(kind.field('data').type.value_type.to_pandas_dtype()).name}", shape


def print_info(info: OutputInfo, console: Console) -> None:
    """Print counts and sizes, columns, the VAE, settings, source and versions."""
    console.print(f"[bold]{escape(info.output)}[/]: {escape(info.counts.state)}", highlight=False)
    console.print(_table(_count_lines(info)), _columns_table(info), highlight=False)
    vae = {name: str(value)[:12] if name.endswith("sha256") else value for name, value in info.vae.items()}
    sections = {
        "VAE": [(name, escape(format_value(value))) for name, value in vae.items()],
        f"settings, contract {info.contract}": [(name, _setting(name, value)) for name, value in info.settings.items()],
        "source": [(name, escape(str(value))) for name, value in info.source.items()],
        "versions": [(", ".join(f"{name} {value}" for name, value in info.versions.items()), "")],
    }
    for title, lines in sections.items():
        if lines:
            console.print(f"\n[bold]{title}[/]", _table(lines), highlight=False)


def _count_lines(info: OutputInfo) -> Iterator[tuple[str, str]]:
    counts = info.counts
    if counts.planned is not None:
        yield "pairs planned", f"{counts.planned:,}"
    if counts.encoded is None:
        yield "rows", "not counted; the run that finishes writes their number"
    else:
        yield "rows", f"{counts.encoded:,}"
        reasons = ", ".join(f"{count:,} {error}" for error, count in counts.rejected_by_error.items())
        yield "rejected", f"{counts.rejected:,}{f' ({reasons})' if reasons else ''}"
    yield "files", f"{counts.files:,}, {info.rows_in_first_file:,} rows in the first"
    each = f", {decimal(round(counts.bytes / counts.encoded))} per row" if counts.encoded else ""
    yield "size", f"{decimal(counts.bytes)}{each}"


def _columns_table(info: OutputInfo) -> Table:
    table = Table("\ncolumn", "\ntype", "\nshape", "bytes per row\nin the first file", box=None, pad_edge=False)
    table.columns[3].justify = "right"
    for column in info.columns:
        each = column.bytes / max(1, info.rows_in_first_file)
        table.add_row(escape(column.name), escape(column.type), escape(column.shape), f"{each:,.0f}")
    return table


def _setting(name: str, value: Any) -> str:
    words = escape(str(value).lower() if isinstance(value, bool) else format_value(value))
    return words if value != SETTING_DEFAULTS[name] else f"{words} [dim]default[/]"


def _table(lines: Iterable[tuple[str, str]]) -> Table:
    """Return a table of names, which are escaped here, and values in rich's markup."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in lines:
        table.add_row(escape(name), value)
    return table
