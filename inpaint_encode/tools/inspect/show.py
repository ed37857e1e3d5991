"""The command ``show``: finds a row by its key, prints its columns, and writes its pictures to a file."""

from __future__ import annotations

import difflib
import io
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.reader import Output
from inpaint_encode.reader.groups import RowGroupReader
from inpaint_encode.settings import ShowOptions
from inpaint_encode.stores import storage
from inpaint_encode.stores.redaction import redacted

from .contact_sheet import row_sheet
from .latent_statistics import latent_of
from .pictures import psnr
from .rejects import read_rejects_file
from .row_inspector import InspectedRow, RowInspector
from .row_sample import RowLocation, read_row
from .summary import writable_uri

__all__ = ["ShownRow", "find_row", "print_row", "show_row"]

_MAX_CHANNELS = 32
"""Channels that are printed."""

_SUGGESTIONS = 3
"""Similar keys that are named if a key does not exist."""


class ShownRow(NamedTuple):
    """An inspected row and where its picture was written."""

    inspected: InspectedRow
    metadata: RowMetadata
    picture: str
    not_decoded: str
    """Why the latent is not decoded; empty if it is."""


def show_row(where: str, key: str, options: ShowOptions, on_status: Callable[[str], None]) -> ShownRow:
    """Find the row, inspect it, and write its picture.

    Raises:
        UsageError: there is no such output or row, or the picture cannot be written there.
        JobFailed: a file is damaged.
        PermissionError, OSError: from the store.
    """
    picture = options.picture or f"{key.strip('/').replace('/', '-')}.png"
    if not picture.endswith(".png"):
        raise UsageError(f"--picture {picture} must end in .png")
    uri = writable_uri(picture, "--picture")
    output = Output.open(where)
    row = read_row(output, find_row(output, key))
    inspector = RowInspector.open(output, options.decoder, on_status)
    inspected = inspector.inspect(row)
    file = io.BytesIO()
    row_sheet(inspected.pixels).save(file, "PNG")
    storage.write(uri, file.getvalue())
    return ShownRow(inspected, output.metadata, uri, inspector.not_decoded)


def find_row(output: Output, key: str) -> RowLocation:
    """Return the location of the row with this key; reads the footers of all files.

    Raises:
        UsageError: there is no such row; the message says why it was rejected, or names similar keys.
        JobFailed: a file is damaged.
        PermissionError, OSError: from the store.
    """
    groups = RowGroupReader(output)
    index = groups.index
    if found := groups.find(key):
        group, row = found
        return RowLocation(output.files[index.files[group]], int(index.groups[group]), row)
    before = pc.index(index.max_keys, pc.max(index.max_keys.filter(pc.less(index.max_keys, key)))).as_py()
    after = pc.index(index.min_keys, pc.min(index.min_keys.filter(pc.greater(index.min_keys, key)))).as_py()
    neighbors = [*index.candidates(key)[:_SUGGESTIONS], *(group for group in (before, after) if group >= 0)]
    files_without_rows = set(range(len(output.files))).difference(index.files.tolist())
    for number in sorted({int(index.files[group]) for group in neighbors} | files_without_rows):
        _check_not_rejected(output, key, output.files[number].path)
    keys = sorted({one for group in neighbors for one in groups.keys(group).to_pylist()})
    similar = difflib.get_close_matches(key, keys, n=_SUGGESTIONS, cutoff=0.5)
    similar = similar or [*[one for one in keys if one < key][-1:], *[one for one in keys if one > key][:1]]
    suggestion = f"; similar keys: {', '.join(map(repr, similar))}" if similar else ""
    raise UsageError(f"{output.uri} has no row {key!r}{suggestion}")


def _check_not_rejected(output: Output, key: str, path: str) -> None:
    """Raise UsageError with the reason if the chunk of a data file has rejected this key."""
    try:
        table = read_rejects_file(storage.join(output.uri, "_rejected", path))
    except FileNotFoundError:
        return
    at = table["key"].index(key).as_py()
    if at >= 0:
        reject = table.slice(at, 1).to_pylist()[0]
        raise UsageError(f"{key!r} is not a row: it was rejected ({reject['error']}: {reject['message']})")


def print_row(shown: ShownRow, console: Console) -> None:
    """Print the row's columns, its latent by channel, and what is missing."""
    inspected = shown.inspected
    table = Table(Column("column", no_wrap=True), Column("value", overflow="fold"), box=None, pad_edge=False)
    for name, value in inspected.row.items():
        table.add_row(escape(name), escape(_describe(value)))
    decibels = psnr(inspected.pixels)
    if decibels is not None:
        table.add_row("PSNR", f"{decibels:.1f} dB, decoded image against the source, outside noise_mask")
    console.print(table, highlight=False)
    console.print(_channels_table(latent_of(inspected.row, shown.metadata).astype(np.float64)), highlight=False)
    notes = [("missing", sentence) for sentence in inspected.missing]
    notes += [("not decoded", shown.not_decoded)] if shown.not_decoded else []
    for label, sentence in notes:
        console.print(f"[yellow]{label}:[/] {escape(redacted(sentence))}", highlight=False, soft_wrap=True)
    console.print(f"picture: {escape(shown.picture)}", highlight=False, soft_wrap=True)


def _describe(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return redacted(str(value))
    shape = " x ".join(map(str, value.shape))
    if value.dtype == np.uint8:
        return f"{value.dtype}, {shape}, {np.count_nonzero(value) / max(1, value.size):.1%} are 1"
    figures = value.astype(np.float32)
    return f"{value.dtype}, {shape}, {figures.min():.3f} to {figures.max():.3f}, mean {figures.mean():.3f}"


def _channels_table(latent: NDArray[np.float64]) -> Table:
    names = ("channel", "mean", "std", "min", "max")
    table = Table(*(Column(name, justify="right") for name in names), box=None, pad_edge=False)
    for number, channel in enumerate(latent[:_MAX_CHANNELS]):
        figures = (channel.mean(), channel.std(), channel.min(), channel.max())
        table.add_row(str(number), *(f"{figure:.3f}" for figure in figures))
    if len(latent) > _MAX_CHANNELS:
        table.add_row(f"and {len(latent) - _MAX_CHANNELS} more")
    return table
