"""The command ``info``: describes an output from its metadata alone.

No row is read and neither torch nor Ray is imported, whatever the output's size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
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
from inpaint_encode.parquet_file import is_tensor, leaf_paths
from inpaint_encode.reader import Output
from inpaint_encode.schema import TENSORS, is_packed

from .summary import SETTING_DEFAULTS, VAE_FIELDS, count_output, describe_value, normalize_output_uri


def read_info(output: str) -> dict[str, Any]:
    """Describe an output, finished or not.

    Args:
        output: folder or prefix that a job wrote.

    Returns:
        Plain values, which ``--as-json`` prints: ``counts``, the fields of `OutputCounts`; ``columns``, with their
        compressed bytes in the first file, which has ``rows_in_first_file``; ``vae``; ``settings`` of the rows;
        ``source``, the options of the source that were set; ``versions``; ``contract``.

    Raises:
        UsageError: ``output`` cannot be an output, has no data file, or has files that are not from encode.
        JobFailed: a job has begun there and has not written a row yet, or a file is damaged.
        PermissionError, OSError: from the store.
    """
    try:
        opened = Output.open(output)
    except UsageError as error:
        if created := Output(normalize_output_uri(output), ()).job.get("created"):
            raise JobFailed(f"{output}: the job that began {created} has not written a row yet") from error
        raise
    metadata = opened.metadata
    with opened.parquet(opened.files[0]) as file:
        footer, schema = file.metadata, file.schema
    counts = asdict(count_output(opened))
    rejected_by_error = counts.pop("rejected_by_error")
    source = {name: value for name, value in opened.job.get("source", {}).items() if value}
    return {
        "output": opened.uri,
        "counts": counts,
        "columns": list(_columns(schema, footer, metadata)),
        "rows_in_first_file": footer.num_rows,
        "vae": {name: getattr(metadata.vae, name) for name in VAE_FIELDS},
        "settings": {name: getattr(metadata, name) for name in SETTING_DEFAULTS},
        "source": source,
        "versions": dict(metadata.versions),
        "contract": metadata.contract,
        "rejected_by_error": rejected_by_error,
    }


def _columns(schema: pa.Schema, footer: pq.FileMetaData, metadata: RowMetadata) -> Iterator[dict[str, Any]]:
    sizes: dict[str, int] = {}
    for group in range(footer.num_row_groups):
        for leaf, path in enumerate(leaf_paths(footer)):
            chunk, name = footer.row_group(group).column(leaf), path.partition(".")[0]
            sizes[name] = sizes.get(name, 0) + chunk.total_compressed_size
    for field in schema:
        kind, shape = type_and_shape(field, metadata)
        yield {"name": field.name, "type": kind, "shape": shape, "bytes": sizes.get(field.name, 0)}


def type_and_shape(field: pa.Field, metadata: RowMetadata) -> tuple[str, str]:
    """Describe the values of a column; the shape is empty for plain values."""
    kind = field.type
    if field.name not in TENSORS or not (is_packed(kind) or is_tensor(kind)):
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


def print_info(info: Mapping[str, Any], console: Console) -> None:
    """Print counts and sizes, columns, the VAE, settings, source and versions, as `read_info` returned them."""
    console.print(f"[bold]{escape(info['output'])}[/]: {escape(info['counts']['state'])}", highlight=False)
    columns = Table("\ncolumn", "\ntype", "\nshape", "bytes per row\nin the first file", box=None, pad_edge=False)
    columns.columns[3].justify = "right"
    for column in info["columns"]:
        each = column["bytes"] / max(1, info["rows_in_first_file"])
        columns.add_row(*(escape(column[name]) for name in ("name", "type", "shape")), f"{each:,.0f}")
    console.print(_table(_count_lines(info)), columns, highlight=False)
    vae = {name: value[:12] if name.endswith("sha256") else value for name, value in info["vae"].items()}
    console.print("\n[bold]VAE[/]", _table(vae.items()), highlight=False)
    settings = _table(info["settings"].items(), SETTING_DEFAULTS)
    console.print(f"\n[bold]settings, transform version {info['contract']}[/]", settings, highlight=False)
    if info["source"]:
        console.print("\n[bold]source[/]", _table(info["source"].items()), highlight=False)
    versions = ", ".join(f"{name} {value}" for name, value in info["versions"].items())
    console.print(f"\n[bold]versions[/]\n{escape(versions)}", highlight=False)


def _count_lines(info: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    counts = info["counts"]
    if counts["planned"] is not None:
        yield "pairs planned", f"{counts['planned']:,}"
    if counts["encoded"] is None:
        yield "rows", "unknown until a run finishes"
    else:
        yield "rows", f"{counts['encoded']:,}"
        reasons = ", ".join(f"{count:,} {error}" for error, count in info["rejected_by_error"].items())
        yield "rejected", f"{counts['rejected']:,}{f' ({reasons})' if reasons else ''}"
    yield "files", f"{counts['files']:,}, {info['rows_in_first_file']:,} rows in the first"
    each = f", {decimal(round(counts['bytes'] / counts['encoded']))} per row" if counts["encoded"] else ""
    yield "size", f"{decimal(counts['bytes'])}{each}"


def _table(lines: Iterable[tuple[str, Any]], defaults: Mapping[str, Any] | None = None) -> Table:
    """Return a table of names and values; values that equal their default are marked."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in lines:
        is_default = defaults is not None and value == defaults[name]
        table.add_row(escape(name), escape(describe_value(value)) + (" [dim]default[/]" if is_default else ""))
    return table
