"""Progress of a job: one live line on a terminal, elsewhere a plain line every ten seconds."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Self

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.text import Text

from inpaint_encode.stores.redaction import for_terminal, printable

EVERY_S = 10.0
"""Seconds between two lines where there is no terminal."""


class Display:
    """The progress of a job. This base class shows nothing and keeps the status lines in ``lines``."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def say(self, line: str) -> None:
        """Show one status line."""
        self.lines.append(line)

    def start(self, total: int, done: int) -> None:
        """Show the progress from now on; ``done`` of ``total`` pairs are decided already."""

    def update(self, done: int, total: int, rejected: int, rate: float) -> None:
        """Show the numbers of decided, planned and ``rejected`` pairs, and the pairs per second (0: unknown)."""


class SafeConsole(Console):
    """A console that prints no credentials, and escapes characters that control a terminal.

    The strings may be a stranger's: keys, captions, URIs, errors of libraries.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """Return a string of `print`, or of a cell of a table, as text without credentials."""
        return super().render_str(for_terminal(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that is printed, without control characters."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=printable(segment.text))


class Reminder:
    """Repeats a status line every ``every`` seconds inside its ``with`` block, until `stop` is called."""

    def __init__(self, say: Callable[[str], None], sentence: str, every: float) -> None:
        self._say, self._sentence, self._every = say, sentence, every
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._remind, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join()

    def stop(self) -> None:
        """Stop repeating; may be called again."""
        self._stopped.set()

    def _remind(self) -> None:
        begun = time.monotonic()
        while not self._stopped.wait(self._every):
            self._say(f"{time.monotonic() - begun:,.0f} s: {self._sentence}")


def open_display() -> Display:
    """Return a live display if standard error is a terminal, else one that prints plain lines there."""
    return _Live() if sys.stderr.isatty() else _Lines()


def _words(rate: float) -> str:
    return f"{rate:,.1f} pairs/s" if rate else "running"


class _Live(Display):
    def __init__(self) -> None:
        # A duplicate of standard error, which is redirected while Ray starts.
        self._console = SafeConsole(file=os.fdopen(os.dup(sys.stderr.fileno()), "w"))
        self._progress = Progress(
            TextColumn("[bold]encoding"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("[cyan]{task.fields[rate]}"),
            TextColumn("{task.fields[rejected]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            expand=True,
        )
        self._task = self._progress.add_task("encode", visible=False, total=None, rate="", rejected="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._console.print(f"[dim]·[/dim] {escape(line)}", highlight=False)

    def start(self, total: int, done: int) -> None:
        self._progress.reset(self._task, total=total, completed=done, visible=True, rate="starting Ray", rejected="")

    def update(self, done: int, total: int, rejected: int, rate: float) -> None:
        rejects = f"[red]{rejected:,} rejected" if rejected else "[green]0 rejected"
        self._progress.update(self._task, completed=done, total=total, rate=_words(rate), rejected=rejects)


class _Lines(Display):
    _last = 0.0

    def say(self, line: str) -> None:
        print(for_terminal(line), file=sys.stderr, flush=True)

    def start(self, total: int, done: int) -> None:
        if done:
            self.say(f"{done:,} of {total:,} pairs were done before")

    def update(self, done: int, total: int, rejected: int, rate: float) -> None:
        now = time.monotonic()
        if done < total and now - self._last < EVERY_S:
            return
        self._last = now
        left = f", {(total - done) / rate:,.0f} s left" if rate and done < total else ""
        self.say(f"{done:,} of {total:,} pairs, {rejected:,} rejected, {_words(rate)}{left}")
