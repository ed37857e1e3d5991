"""Errors in a command line: each names the option, says what it accepts, and suggests what was meant."""

import pytest

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
