"""``--config FILE``: values from the file, overridden by options, and errors in it."""

import pytest

from inpaint_encode.cli.commands import app
from inpaint_encode.cli.config import apply_config


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], (None, "auto")),
        (["--tile", "--batch-size", "4"], (True, 4)),
        (["--no-tile", "--batch-size", "auto"], (False, "auto")),
        (["--config", {"tile": "true", "batch_size": "3"}], (True, 3)),
        (["--config", {"tile": "false", "batch_size": '"auto"'}], (False, "auto")),
    ],
)
def test_options_and_file_give_the_same_values(tmp_path, given, found, monkeypatch):
    job = {"images": '"a"', "masks": '"b"', "vae": '"c"', "output": '"d"'}
    if "--config" in given:
        lines = [f"{name} = {value}" for name, value in {**job, **given[1]}.items()]
        (tmp_path / "job.toml").write_text("\n".join(lines))
        given = ["--config", str(tmp_path / "job.toml")]
    else:
        given = [*given, *(f"--{name}={value[1:-1]}" for name, value in job.items())]
    monkeypatch.setattr(app, "config", ())
    _, bound, _ = app.parse_args(apply_config(["encode", *given]), exit_on_error=False)
    parsed = bound.arguments["job"]
    assert (parsed.rows.tile, parsed.workers.batch_size) == found


def test_options_in_the_file_are_not_missing(shell, tmp_path):
    (tmp_path / "job.toml").write_text('vae = "v"\npairs = "p.csv"\n')
    done = shell("encode", "--config", tmp_path / "job.toml")
    assert "error: encode needs --output; see `inpaint-encode encode --help` for an example" in done.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grow_mask = 6", "job.toml: unknown option 'grow_mask'; did you mean 'grow_mask_by'?"),
        ("grow_mask_by 6", "job.toml: the file cannot be read as TOML (Expected '='"),
        (None, "job.toml: the file does not exist"),
    ],
)
@pytest.mark.parametrize("option", [["--config"], ["--config="]])
def test_errors_in_the_file_are_named(shell, tmp_path, option, text, sentence):
    file = tmp_path / "job.toml"
    if text is not None:
        file.write_text(text)
    given = [f"--config={file}"] if option == ["--config="] else ["--config", file]
    done = shell("encode", *given, "--images", "a", "--masks", "b", "--vae", "c", "--output", "d")
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


def test_config_needs_a_file(shell):
    done = shell("encode", "--config")
    assert (done.returncode, "--config needs a TOML file, such as --config job.toml" in done.stderr) == (2, True)
