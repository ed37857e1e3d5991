"""``--help``: the options that everyone needs, on one screen; ``--help-all``: every option, in full.

The first sentence of an option's docstring is what the first screen says of it, so that both are one text.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions
from rich.text import Text

from .commands import app

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel

__all__ = ["FIRST", "WIDEST", "asks_for_help", "prepare_help"]

_HELP = ("--help", "-h", "--help-all")

WIDEST = 100
"""Columns that help takes, however wide the terminal is: longer lines are hard to read."""

_NAMES, _COMMANDS = 23, 11
"""Columns of the names, the same in every section."""

_EXAMPLE = r"(?m)^inpaint-encode (?:.*\\\n)*.*$"
"""A command line in a docstring, with the lines that it goes on in."""

FIRST = {
    "encode": (
        *("--images", "--masks", "--pairs", "--vae", "--output", "--mask-polarity", "--resolution", "--grow-mask-by"),
        *("--gpus-per-worker", "--max-workers", "--max-rejected", "--overwrite"),
    ),
    "plan": (
        *("--images", "--masks", "--pairs", "--vae", "--resolution", "--chunk-rows"),
        *("--sample", "--rate-from", "--price", "--as-json"),
    ),
}
"""What ``--help`` shows of the commands with many options; of all others it shows every one."""


def asks_for_help(tokens: list[str]) -> bool:
    """Whether a command line is to be answered with help, whatever else it says."""
    return not tokens or not set(_HELP).isdisjoint(tokens)


def prepare_help(tokens: list[str]) -> list[str]:
    """Let the app show the first screen, or with ``--help-all`` everything; return the tokens that it understands."""
    command = tokens[0] if tokens and tokens[0] in app and not tokens[0].startswith("-") else ""
    whole = "--help-all" in tokens
    app.help_formatter = _Lines(None if whole else FIRST.get(command), whole=whole)
    app.help_epilogue = _epilogue(command, whole=whole)
    return ["--help" if token == "--help-all" else token for token in tokens]  # noqa: S105 - no password


def _epilogue(command: str, *, whole: bool) -> str:
    if not command:
        return "inpaint-encode COMMAND --help shows its first options, --help-all every one."
    config = "--config FILE takes options from a TOML file, with underscores; flags win."
    if whole or command not in FIRST:
        return config
    count = sum(argument.show and not argument.children for argument in app[command].assemble_argument_collection())
    return f"{config}\n{len(FIRST[command])} of {count} options; all of them: inpaint-encode {command} --help-all"


class _Lines:
    """Formats help as plain lines: a name with its unit, what it means, its default.

    Args:
        first: options to show; None is all.
        whole: whether to show their sections and all that is to be said of them, or its first sentence.
    """

    def __init__(self, first: tuple[str, ...] | None, *, whole: bool) -> None:
        self._first, self._whole, self._begun = first, whole, False

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one section."""
        shown = [one for one in panel.entries if self._first is None or not set(self._first).isdisjoint(one.names)]
        if self._whole and shown:
            _print(console, f"\n{panel.title}:" if self._begun else f"{panel.title}:")
            self._begun = True
        commands = panel.format == "command"
        for entry in shown:
            about = _about(entry, whole=self._whole or commands)
            lines = _entry_lines(_name(entry), about, _COMMANDS if commands else _NAMES, min(console.width, WIDEST))
            _print(console, lines)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print how the command is called."""
        _print(console, f"Usage: {str(usage).strip()}")
        console.print()

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print what the command is for."""
        text = description.primary_renderable
        text.highlight_regex(_EXAMPLE, "bold")
        _print(console, text)
        console.print()


def _print(console: Console, what: Any) -> None:
    console.print(what, width=min(console.width, WIDEST), highlight=False, markup=False)


def _entry_lines(name: str, about: str, column: int, width: int) -> Text:
    """The name, and beside it, or below where it is too long, what is said of it."""
    lines = textwrap.wrap(about, width - column - 2, break_on_hyphens=False)
    text = Text(f"  {name}", style="bold")
    if len(name) < column:
        text.append(f"{' ' * (column - len(name))}{lines.pop(0)}", style="not bold")
    for line in lines:
        text.append(f"\n{' ' * (column + 2)}{line}", style="not bold")
    return text


def _name(entry: HelpEntry) -> str:
    """An argument that must be there by its place, any other by its option."""
    label = [entry.positional_label] if entry.positional_label and (entry.required or not entry.names) else []
    names = [*label, *entry.positive_names, *entry.positive_shorts]
    names[-1] += f" {entry.metavar}" if entry.metavar and not label else ""
    return ", ".join([*names, *entry.negative_names])


def _about(entry: HelpEntry, *, whole: bool) -> str:
    text = " ".join(str(entry.description.primary_renderable).split())
    notes = "; ".join(_notes(entry))
    return f"{text if whole else _first_sentence(text)}{f' ({notes})' if notes else ''}"


def _notes(entry: HelpEntry) -> Iterator[str]:
    if choices := [choice for choice in entry.choices or () if choice]:
        yield ", ".join(choices)
    if entry.default is not None:
        yield f"default {entry.default}"
    if entry.required:
        yield "required"


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.;:]) ", text, maxsplit=1)[0].rstrip(".;:")
