"""Help that helps: one screen first, everything on demand, examples that run; and errors that name the option."""

import re
import shlex
from pathlib import Path

import pytest

from inpaint_encode.cli import app
from inpaint_encode.cli.help import FIRST
from inpaint_encode.errors import JobFailed
from inpaint_encode.job.cluster import _refuse_silent
from inpaint_encode.settings import in_words
from inpaint_encode.stores.s3 import forget_clients

README = (Path(__file__).parents[3] / "README.md").read_text()
COMMANDS = [name for name in app if not name.startswith("-")]
SCREEN = 30
"""Lines of a small terminal."""


@pytest.fixture
def help_of(shell, monkeypatch):
    """What a command line says, in so many columns; each is asked once, since it takes half a second."""

    def ask(*tokens, columns=100):
        if (tokens, columns) not in _SAID:
            monkeypatch.setenv("COLUMNS", str(columns))
            done = shell(*tokens)
            assert (done.returncode, done.stderr) == (0, "")
            _SAID[tokens, columns] = done.stdout
        return _SAID[tokens, columns]

    return ask


_SAID = {}


def options_of(command):
    """Its arguments, but for those that only hold others."""
    return [one for one in app[command].assemble_argument_collection() if one.show and not one.children]


def examples(text):
    """The command lines in a text, each in one line."""
    return re.findall(r"(?m)^inpaint-encode (.*)$", text.replace("\\\n", ""))


@pytest.mark.parametrize(("command", "columns"), [("encode", 80), *((command, 100) for command in ["", *COMMANDS])])
def test_help_fits_a_screen(command, columns, help_of):
    lines = help_of(*command.split(), "--help", columns=columns).splitlines()
    assert len(lines) <= SCREEN, "\n".join(lines)
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_example_is_a_command(command, help_of):
    text = help_of(*command.split(), "--help", columns=100)
    found = examples(text)[: None if command else -1]  # the root's last line says how to ask for more
    assert found
    for line in found:
        tokens = shlex.split(line)
        assert command in ("", tokens[0])
        app.parse_args(tokens, exit_on_error=False, print_error=False)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_whole_help_with_its_unit_and_default(command, help_of):
    text = help_of(command, "--help-all")
    assert "--config FILE" in text
    about = {match[1]: match[0] for match in re.finditer(r"(?m)^  ((?:--?|[A-Z])[^ ,]+).*\n(?:    .*\n)*", text)}
    for option in options_of(command):
        positional = option.index is not None and option.required
        name = option.name.strip("-").upper() if positional else option.name
        said = " ".join(about[name if name in about else option.name.upper()].split())
        assert re.search(r"[(;] ?(?:default [^)]+|required)\)", said) or name == "URIS", said
        assert not re.match(r"\S+ (?:STR|INT|FLOAT)\b", said), f"{said}: say what is counted, by measured_in"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_left_out_of_the_first_screen_is_said_to_be(command, help_of):
    text, shown = help_of(command, "--help"), FIRST.get(command)
    if shown is None:
        assert "--help-all" not in text
        shown = [option.name for option in options_of(command)]
    else:
        assert f"{len(shown)} of {len(options_of(command))} options; all of them: " in text
    for name in shown:
        assert re.search(rf"(?m)^  .*{name.strip('*')}\b", text, re.IGNORECASE), name


def test_commands_come_in_the_order_of_use(help_of):
    text = help_of()
    listed = re.findall(r"(?m)^  ([a-z]+) ", text)
    assert sorted(listed) == sorted(COMMANDS)
    assert listed[:6] == ["doctor", "plan", "encode", "info", "report", "verify"]
    assert text == help_of("--help") == help_of("-h")


def test_help_is_given_whatever_else_is_said(help_of, shell):
    assert help_of("report", "--imges", "x", "--config", "none.toml", "--help") == help_of("report", "--help")
    done = shell("encod", "--help")
    assert (done.returncode, 'Did you mean "encode"?' in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        *[(True, "on"), (False, "off"), (None, "none"), ("", "none"), (0, "0"), (6, "6"), (0.75, "0.75"), (1.0, "1")],
        *[(64 * 2**20, "64 MiB"), (64_000_000, "64 million"), ("1%", "1%"), (100_000, "100000")],
    ],
)
def test_defaults_in_words(value, words):
    assert in_words(value) == words


OPTIONS = re.findall(r"(?m)^\| (`--.*?`) \|(.*?)\|.*\|$", README.partition("## Options")[2])
TOLD_OTHERWISE = {"--vae": "", "--output": "", "--no-tile": "where memory forces it", "--no-compile": "on"}
"""In the README: what must be given has no default, and a flag's other half has that of the first."""


def test_the_readme_s_table_has_every_option_of_encode_with_its_default(help_of):
    told = {}
    for names, defaults in OPTIONS:
        names = re.findall(r"`(--[\w-]+)`", names)
        given = (
            defaults.strip().split(", ") if defaults.count(", ") == len(names) - 1 else [defaults.strip()] * len(names)
        )
        told |= dict(zip(names, given, strict=True))
    flags = set(re.findall(r"--[a-z0-9-]+", help_of("encode", "--help-all")))
    there = {name: option for option in options_of("encode") for name in option.names if name in flags}
    assert sorted(told) == sorted(there)
    for name, default in told.items():
        option = there[name]
        shown = option.parameter.show_default
        expected = shown if isinstance(shown, str) else in_words(option.field_info.default)
        assert default in (TOLD_OTHERWISE.get(name), expected, expected.replace("none", "")), name


class TestErrors:
    @pytest.mark.parametrize(
        ("tokens", "sentence"),
        [
            (["encode"], "encode needs --vae and --output; there is no source; add --images and --masks, or --pairs; "),
            (["encode", "--pairs", "a.csv"], "encode needs --vae and --output; `inpaint-encode encode --help` has an"),
            (["encode", "--vae", "v", "--masks", "m"], "encode needs --output; masks alone are no pairs; add --images"),
            (["encode", "--output", "o", "--vae"], "--vae needs a value; `inpaint-encode encode --help`"),
            (["plan"], "there is no source; add --images and --masks, or --pairs; `inpaint-encode plan --help`"),
            (["report"], "report needs OUTPUT; `inpaint-encode report --help` has an example"),
            (["report", "a", "b"], "report does not know what to do with b; `inpaint-encode report --help`"),
            (["encode", "--helpall"], "unknown option --helpall; did you mean '--help-all'?"),
            (["plan", "--confg", "x"], "unknown option --confg; did you mean '--config'?"),
            (["encode", "--config"], "--config needs a TOML file, such as --config job.toml"),
            (["encode", "--config", "/no/such.toml"], "--config /no/such.toml: there is no such file"),
            (["plan", "--images", "/no/such", "--random-masks", "1"], "--images /no/such: there is no such folder"),
            (["plan", "--images", "/no/such", "--masks", "m"], "--images /no/such: there is no such folder"),
        ],
    )
    def test_what_is_missing_is_named_whole(self, tokens, sentence, shell):
        done = shell(*tokens)
        assert done.returncode == 2
        assert sentence in done.stderr

    def test_what_a_file_of_options_says_is_not_missing(self, shell, tmp_path):
        (tmp_path / "job.toml").write_text('vae = "v"\npairs = "p.csv"\n')
        done = shell("encode", "--config", tmp_path / "job.toml")
        assert "error: encode needs --output; `inpaint-encode encode --help` has an example" in done.stderr

    def test_credentials_that_are_there_in_part_are_named(self, shell, s3, monkeypatch):
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        forget_clients()
        done = shell("plan", "--images", s3.uri("a"), "--masks", s3.uri("b"))
        forget_clients()
        assert done.returncode == 2
        assert f"--images {s3.uri('a')} cannot be listed: Partial credentials found in env" in done.stderr

    def test_what_a_store_refuses_leads_to_the_doctor(self, shell, s3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
            forget_clients()
            done = shell("report", s3.uri("out"))
        forget_clients()
        assert (done.returncode, done.stderr.startswith("error: PermissionError: ")) == (1, True)
        assert done.stderr.endswith("what is done stays; `inpaint-encode doctor` tries disks and stores\n")

    def test_a_cluster_that_is_not_there_is_not_waited_for(self):
        """Ray would try for ten minutes and longer."""
        with pytest.raises(JobFailed, match=r"127\.0\.0\.1:1 cannot be joined: Connection refused; check --address"):
            _refuse_silent("127.0.0.1:1")
