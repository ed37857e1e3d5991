"""``--help``: the most common options on one screen. ``--help-all``: every option with its full text.

The first screen shows the first sentence of an option's docstring.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions
from rich.text import Text

from .commands import app

if TYPE_CHECKING:
    from cyclopts.help import HelpEntry, HelpPanel

MAX_WIDTH = 100
"""Columns of help on wide terminals: longer lines are hard to read."""

_OPTION_COLUMNS, _COMMAND_COLUMNS = 23, 11
"""Columns for names of options and of commands."""

_EXAMPLE = r"(?m)^inpaint-encode (?:.*\\\n)*.*$"
"""A command line in a docstring, with its continuation lines."""

COMMON_OPTIONS = {
    "encode": (
        *("--images", "--masks", "--pairs", "--vae", "--output", "--mask-polarity", "--resolution", "--grow-mask-by"),
        *("--gpus-per-worker", "--max-workers", "--max-rejected", "--overwrite"),
    ),
    "plan": (
        *("--images", "--masks", "--pairs", "--vae", "--resolution", "--chunk-rows"),
        *("--sample", "--rate-from", "--price", "--as-json"),
    ),
}
"""Options that ``--help`` shows for commands with many options; for all others it shows every option."""


def configure_help(tokens: list[str]) -> list[str]:
    """Set the app's help to the common options or to everything, and return the tokens with ``--help`` for the app."""
    command = tokens[0] if tokens and tokens[0] in app and not tokens[0].startswith("-") else ""
    full = "--help-all" in tokens
    app.help_formatter = _HelpFormatter(None if full else COMMON_OPTIONS.get(command), full=full)
    epilogue = "--config FILE reads options from a TOML file, for example grow_mask_by = 6; flags override it."
    if not command:
        epilogue = "inpaint-encode COMMAND --help shows common options, --help-all shows all options."
    elif not full and command in COMMON_OPTIONS:
        count = sum(option.show and not option.children for option in app[command].assemble_argument_collection())
        shown = f"{len(COMMON_OPTIONS[command])} of {count} options are shown"
        epilogue += f"\n{shown}; all options: inpaint-encode {command} --help-all"
    app.help_epilogue = epilogue
    return ["--help" if token == "--help-all" else token for token in tokens]  # noqa: S105 - no password


class _HelpFormatter:
    """Prints help as plain lines: an option with its unit, its description and its default.

    Args:
        options: names of the options to print; None prints all.
        full: print titles of sections and whole descriptions, instead of first sentences.
    """

    def __init__(self, options: tuple[str, ...] | None, *, full: bool) -> None:
        self._options, self._full, self._printed_title = options, full, False

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Print one section."""
        entries = [one for one in panel.entries if self._options is None or set(self._options) & set(one.names)]
        if self._full and entries:
            _print(console, f"\n{panel.title}:" if self._printed_title else f"{panel.title}:")
            self._printed_title = True
        commands = panel.format == "command"
        column = _COMMAND_COLUMNS if commands else _OPTION_COLUMNS
        for entry in entries:
            name, description = _name(entry), _description(entry, full=self._full or commands)
            width = min(console.width, MAX_WIDTH) - column - 2
            lines = textwrap.wrap(description, width, break_on_hyphens=False)
            text = Text(f"  {name}", style="bold")
            if len(name) < column:  # else the description begins below the name
                text.append(f"{' ' * (column - len(name))}{lines.pop(0)}", style="not bold")
            for line in lines:
                text.append(f"\n{' ' * (column + 2)}{line}", style="not bold")
            _print(console, text)

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Print the form of the command line."""
        _print(console, f"Usage: {str(usage).strip()}")
        console.print()

    def render_description(self, console: Console, options: ConsoleOptions, description: Any) -> None:
        """Print the command's description, with its examples in bold."""
        text = description.primary_renderable
        text.highlight_regex(_EXAMPLE, "bold")
        _print(console, text)
        console.print()


def _print(console: Console, content: Any) -> None:
    console.print(content, width=min(console.width, MAX_WIDTH), highlight=False, markup=False)


def _name(entry: HelpEntry) -> str:
    """Return the label of a positional argument, or an option's names and unit."""
    label = [entry.positional_label] if entry.positional_label and (entry.required or not entry.names) else []
    names = [*label, *entry.positive_names, *entry.positive_shorts]
    names[-1] += f" {entry.metavar}" if entry.metavar and not label else ""
    return ", ".join([*names, *entry.negative_names])


def _description(entry: HelpEntry, *, full: bool) -> str:
    """Return an entry's text, or its first sentence, with its choices and its default."""
    text = " ".join(str(entry.description.primary_renderable).split())
    choices = [choice for choice in entry.choices or () if choice]
    notes = [
        ", ".join(choices) if len(choices) > 1 else "",
        f"default: {entry.default}" if entry.default is not None else "",
        "required" if entry.required else "",
    ]
    noted = "; ".join(filter(None, notes))
    return (text if full else text.split(". ")[0].rstrip(".")) + (f" ({noted})" if noted else "")
