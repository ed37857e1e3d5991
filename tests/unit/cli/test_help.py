"""Help: common options on one screen, all options on demand, examples that parse."""

import re
import shlex
from pathlib import Path

import pytest

from inpaint_encode.cli.commands import app
from inpaint_encode.cli.help import COMMON_OPTIONS
from inpaint_encode.settings import format_value

README = (Path(__file__).parents[3] / "README.md").read_text()
COMMANDS = [name for name in app if not name.startswith("-")]
SCREEN = 30
"""Lines of a small terminal."""


@pytest.fixture
def help_of(shell, monkeypatch):
    """Return a function for the help of a command at a terminal width; cached, since help takes half a second."""

    def run(*tokens, columns=100):
        if (tokens, columns) not in _CACHE:
            monkeypatch.setenv("COLUMNS", str(columns))
            for one in (app, *(app[name] for name in COMMANDS)):
                monkeypatch.setattr(one, "_fallback_console", None)  # one that was made before keeps its width
            done = shell(*tokens)
            assert (done.returncode, done.stderr) == (0, "")
            _CACHE[tokens, columns] = done.stdout
        return _CACHE[tokens, columns]

    return run


_CACHE = {}


def options_of(command):
    """Return the arguments of a command, without settings classes, which contain other arguments."""
    return [one for one in app[command].assemble_argument_collection() if one.show and not one.children]


def examples(text):
    """Return the command lines in a text, each joined into one line."""
    return re.findall(r"(?m)^inpaint-encode (.*)$", text.replace("\\\n", ""))


@pytest.mark.parametrize(("command", "columns"), [("encode", 80), *((command, 100) for command in ["", *COMMANDS])])
def test_help_fits_a_screen(command, columns, help_of):
    lines = help_of(*command.split(), "--help", columns=columns).splitlines()
    assert len(lines) <= SCREEN, "\n".join(lines)
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_parses(command, help_of):
    text = help_of(*command.split(), "--help", columns=100)
    found = examples(text)[: None if command else -1]  # the last line of the root's help is no example
    assert found
    for line in found:
        tokens = shlex.split(line)
        assert command in ("", tokens[0])
        app.parse_args(tokens, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_all_has_every_option_with_its_unit_and_default(command, help_of):
    text = help_of(command, "--help-all")
    assert "--config FILE" in text
    about = {match[1]: match[0] for match in re.finditer(r"(?m)^  ((?:--?|[A-Z])[^ ,]+).*\n(?:    .*\n)*", text)}
    for option in options_of(command):
        positional = option.index is not None and option.required
        name = option.name.strip("-").upper() if positional else option.name
        said = " ".join(about[name if name in about else option.name.upper()].split())
        assert re.search(r"[(;] ?(?:default: [^)]+|required)\)", said) or name == "URIS", said
        assert not re.match(r"\S+ (?:STR|INT|FLOAT)\b", said), f"{said}: annotate the option with unit()"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_counts_the_options_that_it_leaves_out(command, help_of):
    text, shown = help_of(command, "--help"), COMMON_OPTIONS.get(command)
    if shown is None:
        assert "--help-all" not in text
        shown = [option.name for option in options_of(command)]
    else:
        assert f"{len(shown)} of {len(options_of(command))} options are shown; all options: " in text
    for name in shown:
        assert re.search(rf"(?m)^  .*{name.strip('*')}\b", text, re.IGNORECASE), name


def test_commands_are_in_the_order_of_use(help_of):
    text = help_of()
    listed = re.findall(r"(?m)^  ([a-z]+) ", text)
    assert sorted(listed) == sorted(COMMANDS)
    assert listed[:6] == ["doctor", "plan", "encode", "info", "report", "verify"]
    assert text == help_of("--help") == help_of("-h")


def test_help_ignores_other_errors_on_the_command_line(help_of, shell):
    assert help_of("report", "--imges", "x", "--config", "none.toml", "--help") == help_of("report", "--help")
    done = shell("encod", "--help")
    assert (done.returncode, 'Did you mean "encode"?' in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(True, "on"), (False, "off"), (None, "none"), ("", "none"), (0, "0"), (6, "6"), (0.75, "0.75"), (1.0, "1")],
        *[(64 * 2**20, "64 MiB"), (64_000_000, "64 million"), ("1%", "1%"), (100_000, "100000")],
    ],
)
def test_values_are_formatted_for_people(value, text):
    assert format_value(value) == text


OPTIONS = re.findall(r"(?m)^\| (`--.*?`) \|(.*?)\|.*\|$", README.partition("## Options")[2])
OTHER_DEFAULTS = {"--vae": "", "--output": "", "--no-compile": "on"}
"""Defaults that the README words differently, or leaves out because the option is required."""


def test_readme_table_has_every_option_of_encode_with_its_default(help_of):
    documented = {}
    for cell, default_cell in OPTIONS:
        names = re.findall(r"`(--[\w-]+)`", cell)
        defaults = default_cell.strip().split(", ")
        each = defaults if len(defaults) == len(names) else [default_cell.strip()] * len(names)
        documented |= zip(names, each, strict=True)
    flags = set(re.findall(r"--[a-z0-9-]+", help_of("encode", "--help-all")))
    options = {name: option for option in options_of("encode") for name in option.names if name in flags}
    assert sorted(documented) == sorted(options)
    for name, default in documented.items():
        shown = options[name].parameter.show_default
        expected = shown if isinstance(shown, str) else format_value(options[name].field_info.default)
        assert default in (OTHER_DEFAULTS.get(name), expected, expected.replace("none", "")), name
