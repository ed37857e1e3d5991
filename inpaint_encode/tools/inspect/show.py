"""The command ``show``: finds a row by its key, prints its columns, and writes its pictures to a file."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow.compute as pc
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from inpaint_encode.errors import UsageError
from inpaint_encode.reader import Output
from inpaint_encode.reader.groups import RowGroupReader
from inpaint_encode.schema import REJECTS
from inpaint_encode.settings import ShowOptions
from inpaint_encode.stores import storage

from .pictures import InspectedRow, psnr, row_sheet
from .row_inspector import RowInspector
from .row_sample import RowLocation, read_row
from .summary import normalize_output_uri, read_table

_MAX_CHANNELS = 32
"""Channels that are printed."""

_MAX_NAME_BYTES = 200
"""Bytes of a picture's default name without its suffix; file systems allow 255."""

_SUGGESTIONS = 3
"""Similar keys that are named if a key does not exist."""


def show_row(
    where: str, key: str, options: ShowOptions, on_status: Callable[[str], None]
) -> tuple[InspectedRow, dict[str, str]]:
    """Find the row, inspect it, and write its picture.

    Returns:
        The row, and notes to print below it: where its picture is, and why its latent is not decoded.

    Raises:
        UsageError: there is no such output or row, or the picture cannot be written there.
        JobFailed: a file is damaged.
        PermissionError, OSError: from the store.
    """
    picture = options.picture or _picture_name(key)
    if not picture.endswith(".png"):
        raise UsageError(f"--picture {picture} must end in .png")
    uri = normalize_output_uri(picture, "--picture")
    output = Output.open(where)
    row = read_row(output, find_row(output, key))
    with RowInspector(output, options.decoder, options.reading, on_status) as inspector:
        inspected = inspector.inspect(row)
    file = io.BytesIO()
    row_sheet(inspected).save(file, "PNG")
    storage.write(uri, file.getvalue())
    notes = {"not decoded": inspector.not_decoded} if inspector.not_decoded else {}
    return inspected, notes | {"picture": uri}


def _picture_name(key: str) -> str:
    """Return the name of a picture in the current folder; characters that no file name has become % and two digits."""
    name = re.sub(r"[\\\x00-\x1f\x7f]", lambda found: f"%{ord(found[0]):02X}", key.strip("/").replace("/", "-"))
    return f"{name.encode(errors='replace')[:_MAX_NAME_BYTES].decode(errors='ignore')}.png"


def find_row(output: Output, key: str) -> RowLocation:
    """Return the location of the row with this key; if there is none, the footers of all files are read.

    Raises:
        UsageError: there is no such row; the message says why it was rejected, or names similar keys.
        JobFailed: a file is damaged.
        PermissionError, OSError: from the store.
    """
    groups = RowGroupReader(output)
    found = groups.find(key)
    if found is None and output.keys:  # the footers have the ranges of keys, which the index lacks
        groups = groups.listed
        found = groups.find(key)
    output, index = groups.output, groups.index
    if found:
        group, row = found
        return RowLocation(output.files[index.files[group]], int(index.groups[group]), row)
    before = pc.index(index.max_keys, pc.max(index.max_keys.filter(pc.less(index.max_keys, key)))).as_py()
    after = pc.index(index.min_keys, pc.min(index.min_keys.filter(pc.greater(index.min_keys, key)))).as_py()
    neighbors = [*index.candidates(key)[:_SUGGESTIONS], *(group for group in (before, after) if group >= 0)]
    files_without_rows = set(range(len(output.files))).difference(index.files.tolist())
    for number in sorted({int(index.files[group]) for group in neighbors} | files_without_rows):
        try:
            rejects = read_table(storage.join(output.uri, "_rejected", output.files[number].path), REJECTS)
        except FileNotFoundError:
            continue
        if (at := rejects["key"].index(key).as_py()) >= 0:
            reject = rejects.slice(at, 1).to_pylist()[0]
            raise UsageError(f"{key!r} is not a row: it was rejected ({reject['error']}: {reject['message']})")
    keys = sorted({one for group in neighbors for one in groups.keys(group).drop_null().to_pylist()})
    similar = difflib.get_close_matches(key, keys, n=_SUGGESTIONS, cutoff=0.5)
    similar = similar or [*[one for one in keys if one < key][-1:], *[one for one in keys if one > key][:1]]
    suggestion = f"; similar keys: {', '.join(map(repr, similar))}" if similar else ""
    raise UsageError(f"{output.uri} has no row {key!r}{suggestion}")


def print_row(inspected: InspectedRow, notes: Mapping[str, str], console: Console) -> None:
    """Print the row's columns, its latent by channel, and notes, as `show_row` returned them."""
    table = Table(Column("column", no_wrap=True), Column("value", overflow="fold"), box=None, pad_edge=False)
    for name, value in inspected.row.items():
        table.add_row(escape(name), escape(_describe(value)))
    decibels = psnr(inspected)
    if decibels is not None:
        table.add_row("PSNR", f"{decibels:.1f} dB, decoded image against the source, outside noise_mask")
    names = ("channel", "mean", "std", "min", "max")
    channels = Table(*(Column(name, justify="right") for name in names), box=None, pad_edge=False)
    for number, channel in enumerate(inspected.samples[:_MAX_CHANNELS].astype(np.float64)):
        figures = (channel.mean(), channel.std(), channel.min(), channel.max())
        channels.add_row(str(number), *(f"{figure:.3f}" for figure in figures))
    if len(inspected.samples) > _MAX_CHANNELS:
        channels.add_row(f"and {len(inspected.samples) - _MAX_CHANNELS} more")
    console.print(table, channels, highlight=False)
    for label, sentence in [*(("missing", one) for one in inspected.missing), *notes.items()]:
        color = "default" if label == "picture" else "yellow"
        console.print(f"[{color}]{label}:[/] {escape(sentence)}", highlight=False, soft_wrap=True)


def _describe(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return str(value)
    shape = " x ".join(map(str, value.shape))
    if value.dtype == np.uint8:
        return f"{value.dtype}, {shape}, {np.count_nonzero(value) / max(1, value.size):.1%} are 1"
    figures = value.astype(np.float32)
    return f"{value.dtype}, {shape}, {figures.min():.3f} to {figures.max():.3f}, mean {figures.mean():.3f}"
