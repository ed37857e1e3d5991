"""One row for a person: a table of what is stored, and a picture."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from inpaint_encode.errors import UsageError
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.reader import Output
from inpaint_encode.settings import ShowOptions
from inpaint_encode.stores import storage
from inpaint_encode.stores.redaction import redacted

from .find import find_row
from .pictures import psnr
from .row_inspector import Look, Looker
from .sample import read_place
from .sheet import row_sheet
from .statistics import latent_of

__all__ = ["Shown", "print_row", "show_row"]

_CHANNELS = 32
"""Of more, only the first have a line of their own."""


class Shown(NamedTuple):
    """A row, looked at, and where its picture went."""

    look: Look
    metadata: RowMetadata
    picture: str
    why_not: str
    """Why nothing is decoded, if nothing is."""


def show_row(where: str, key: str, options: ShowOptions, say: Callable[[str], None]) -> Shown:
    """Find the row, look at it, and write its picture.

    Raises:
        UsageError: there is no such output or row, or the picture cannot be there.
        PermissionError, OSError: by what the store said.
    """
    place = _picture_uri(options.picture or f"{key.strip('/').replace('/', '-')}.png")
    output = Output.open(where)
    row = read_place(output, find_row(output, key))
    looker = Looker.of(output, options.decoder, say)
    look = looker.look(row)
    file = io.BytesIO()
    row_sheet(look.pixels).save(file, "PNG")
    storage.write(place, file.getvalue())
    return Shown(look, output.metadata, place, looker.why_not)


def _picture_uri(spelled: str) -> str:
    if not spelled.endswith(".png"):
        raise UsageError(f"--picture {spelled} must end in .png")
    try:
        return storage.normalize_uri(spelled)
    except ValueError as error:
        raise UsageError(f"--picture {error}") from None


def print_row(shown: Shown, console: Console) -> None:
    """Print the row's columns, its latent by channel, and what could not be had."""
    table = Table(Column("column", no_wrap=True), Column("value", overflow="fold"), box=None, pad_edge=False)
    for name, value in shown.look.row.items():
        table.add_row(escape(name), escape(_words(value)))
    found = psnr(shown.look.pixels)
    if found is not None:
        table.add_row("PSNR", f"{found:.1f} dB, of the decoded image against its source outside of noise_mask")
    console.print(table, highlight=False)
    console.print(_channels(latent_of(shown.look.row, shown.metadata)), highlight=False)
    for sentence in shown.look.missing:
        console.print(f"[yellow]missing:[/] {escape(redacted(sentence))}", highlight=False, soft_wrap=True)
    if shown.why_not:
        console.print(f"[yellow]not decoded:[/] {escape(redacted(shown.why_not))}", highlight=False, soft_wrap=True)
    console.print(f"its picture: {escape(shown.picture)}", highlight=False, soft_wrap=True)


def _words(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return redacted(str(value))
    shape = " x ".join(map(str, value.shape))
    if value.dtype == np.uint8:
        return f"{value.dtype}, {shape}, of which {np.count_nonzero(value) / max(1, value.size):.1%} are 1"
    figures = value.astype(np.float32)
    return f"{value.dtype}, {shape}, {figures.min():.3f} to {figures.max():.3f}, mean {figures.mean():.3f}"


def _channels(latent: NDArray[Any]) -> Table:
    names = ("channel", "mean", "std", "min", "max")
    table = Table(*(Column(name, justify="right") for name in names), box=None, pad_edge=False)
    for line in _channel_lines(latent.astype(np.float64)):
        table.add_row(*line)
    if len(latent) > _CHANNELS:
        table.add_row(f"and {len(latent) - _CHANNELS} more")
    return table


def _channel_lines(latent: NDArray[np.float64]) -> Iterator[list[str]]:
    for number, channel in enumerate(latent[:_CHANNELS]):
        figures = (channel.mean(), channel.std(), channel.min(), channel.max())
        yield [str(number), *(f"{figure:.3f}" for figure in figures)]
