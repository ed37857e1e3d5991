"""``--config FILE``, and errors in a command line: each names the option, says what it accepts, and suggests one."""

import pytest

from inpaint_encode.cli.arguments import apply_config
from inpaint_encode.cli.commands import app


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
    _, bound, _ = app.parse_args(apply_config(["encode", *given])[0], exit_on_error=False)
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
        ("a = " + "[" * 50_000, "job.toml: the file cannot be read as TOML (its values are nested too deep)"),
        ("a = " + "9" * 5_000, "job.toml: the file cannot be read as TOML (Exceeds the limit"),
        ("a = 0x" + "f" * 5_000, "job.toml: the file cannot be read as TOML (Exceeds the limit"),
        ("#" * 2**20 + "#", "job.toml: the file cannot be read as TOML (it has more than 1,048,576 bytes)"),
        ("grow_mask_by = {a = 1}", "--grow-mask-by {'a': 1} must be a whole number"),
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


JOB = ["encode", "--images", "i", "--masks", "m", "--vae", "v", "--output", "o"]


@pytest.mark.parametrize(
    ("tokens", "sentence"),
    [
        (["encode"], "encode needs --vae and --output; no source is given; add --images and --masks, or --pairs; see "),
        (["encode", "--pairs", "a.csv"], "encode needs --vae and --output; see `inpaint-encode encode --help` for an"),
        (["encode", "--vae", "v", "--masks", "m"], "needs --output; --masks and --mask-pattern need images; add --im"),
        (["encode", "--output", "o", "--vae"], "--vae needs a value; see `inpaint-encode encode --help`"),
        (["plan"], "no source is given; add --images and --masks, or --pairs; see `inpaint-encode plan --help`"),
        (["report"], "report needs OUTPUT; see `inpaint-encode report --help` for an example"),
        (["export"], "error: export needs LATENTS, --to and --output; see `inpaint-encode export --help` for"),
        (["export", "--to", "comfyui", "--output", "o"], "export needs LATENTS; see `inpaint-encode export --help`"),
        (["report", "a", "b"], "report has unexpected arguments: b; see `inpaint-encode report --help`"),
        (["encode", "--helpall"], "unknown option --helpall; did you mean '--help-all'?"),
        (["plan", "--confg", "x"], "unknown option --confg; did you mean '--config'?"),
        (["plan", "--images", "/no/such", "--random-masks", "1"], "--images /no/such: there is no such folder"),
        (["plan", "--images", "/no/such", "--masks", "m"], "--images /no/such: there is no such folder"),
    ],
)
def test_missing_and_unknown_options_are_named(tokens, sentence, shell):
    done = shell(*tokens)
    assert done.returncode == 2
    assert sentence in done.stderr


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mask-chanel", "red"], "unknown option --mask-chanel; did you mean '--mask-channel'?"),
        (["--mask-polarity", "wite"], "must be white, black, transparent or opaque; did you mean 'white'?"),
        (["--mask-preset", "LaMa"], "did you mean 'lama'?"),
        (["--mask-channel", "rgb"], "did you mean 'luma'?"),
        (["--mask-channel", "B"], "did you mean 'blue'?"),
        (["--icc", "sRGB"], "--icc sRGB must be srgb or ignore; did you mean 'srgb'?"),
        (["--vae-family", "sd"], "--vae-family sd must be sd1, sdxl, sd3 or flux1; did you mean 'sd"),
        (["--max-pixels", "0"], "--max-pixels 0 must be at least 1"),
        (["--fetch-cpus", "0"], "--fetch-cpus 0 must be greater than 0"),
        (["--grow-mask-by", "65"], "--grow-mask-by 65 must be at most 64"),
        (["--grow-mask-by", "six"], "--grow-mask-by six must be a whole number"),
        (["--write-cpus", "few"], "--write-cpus few must be a number"),
        (["--batch-size", "many"], "--batch-size many must be auto or a whole number"),
        (["--batch-size", "0"], "--batch-size 0 must be auto or at least 1"),
        (["--tile-size", "x", "--icc", "y"], "--tile-size x must be a whole number"),
    ],
)
def test_wrong_values_are_named_with_what_the_option_accepts(options, sentence, shell):
    done = shell(*JOB, *options)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Input should" not in done.stderr
