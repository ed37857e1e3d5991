"""A job is refused before Ray starts: every range, every spelling, and what ``--max-rejected`` lets pass."""

import pytest
from pydantic import ValidationError

from inpaint_encode import cli
from inpaint_encode.cli import main
from inpaint_encode.cli.config import without_config
from inpaint_encode.settings import Decoding, EncodeJob, Output, RowSettings, RunOptions, Source, VaeSource, Workers
from tests.metadata import row_metadata

SOURCE = Source(images="s3://in/images", masks="s3://in/masks")
JOB = EncodeJob(source=SOURCE, vae=VaeSource(vae="some/vae"), output=Output(output="s3://out"))


def test_defaults_are_the_node_s():
    assert JOB.rows == RowSettings(grow_mask_by=6, dtype="auto", samples_dtype="float16")
    assert (JOB.output.overwrite, JOB.run.max_rejected) == (False, "1%")


@pytest.mark.parametrize("missing", ["source", "vae", "output"])
def test_a_job_names_its_source_vae_and_output(missing):
    parts = JOB.model_dump()
    del parts[missing]
    with pytest.raises(ValidationError, match=missing):
        EncodeJob(**parts)


@pytest.mark.parametrize("part", [JOB, JOB.source, JOB.vae, JOB.output, JOB.rows, JOB.workers, JOB.run])
def test_every_part_is_frozen_and_takes_no_unknown_field(part):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, next(iter(type(part).model_fields)), "changed")
    with pytest.raises(ValidationError, match=r"grow_mask\n.*not permitted"):
        type(part)(**part.model_dump(), grow_mask=6)


def test_a_job_survives_json():
    assert EncodeJob.model_validate_json(JOB.model_dump_json()) == JOB


RANGES = [
    (RowSettings, {}, "grow_mask_by", [0, 6, 64], [-1, 65, 6.5, "six"]),
    (RowSettings, {}, "dtype", ["auto", "float32", "bfloat16", "float16"], ["fp16", "", "int8"]),
    (RowSettings, {}, "samples_dtype", ["float16", "float32"], ["auto", "bfloat16"]),
    (RowSettings, {}, "posterior", ["mean", "sample", "moments"], ["mode", ""]),
    (RowSettings, {"posterior": "sample"}, "posterior_seed", [0, 7, -1], [0.5, "first"]),
    (RowSettings, {}, "latent_mask", ["none", "comfyui", "diffusers"], ["both", ""]),
    (RowSettings, {}, "tile_size", [64, 512, 2048], [63, 0, -512]),
    (Output, {"output": "o"}, "chunk_rows", [1, 100_000], [0, -1, 100_001]),
    (Output, {"output": "o"}, "chunk_bytes", [1, 2**40], [0, -1]),
    (Workers, {}, "batch_size", ["auto", 1, 512], [0, -8, "many", "1.5"]),
    (
        Workers,
        {},
        "gpus_per_worker",
        ["auto", "0", "0.5", "2"],
        ["-1", "half", "", "1.", ".5", "1e3", "auto "],
    ),
    (Workers, {}, "min_workers", [1, 9], [0, -1]),
    (Workers, {}, "fetch_cpus", [0.5, 1, 4], [0, -1]),
    (Workers, {}, "write_cpus", [0.5, 1, 4], [0, -1]),
    (Workers, {}, "encode_cpus", ["auto", "0", "0.5", "4"], ["-1", "all", "", ".5"]),
    (Workers, {}, "encode_on", ["", "pool=gpu", "a.b/c=in(x,y),d=!e"], ["pool", "pool=", "pool=in()", "a=b;c=d"]),
    (Workers, {}, "fetch_on", ["", "pool=data"], ["=data", "pool=a b"]),
    (Workers, {}, "max_workers", [0, 1, 9], [-1]),
    (Workers, {}, "fetch_threads", [1, 256], [0, 257]),
    (
        RunOptions,
        {},
        "max_rejected",
        ["0", "100", "0%", "1%", "0.25%"],
        ["", "%", "-1", "1.5", "1 %", ".5%", "few"],
    ),
]


@pytest.mark.parametrize(("part", "given", "field", "good", "bad"), RANGES, ids=[row[2] for row in RANGES])
def test_ranges(part, given, field, good, bad):
    for value in good:
        assert getattr(part(**given, **{field: value}), field) == value
    for value in bad:
        with pytest.raises(ValidationError, match=field.replace("_", "[-_]")):
            part(**given, **{field: value})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"posterior_seed": 3}, "--posterior-seed says which draw --posterior sample takes"),
        ({"scaled": True, "posterior": "moments"}, "--scaled is of a latent, and moments are not one yet"),
        ({"tile": False, "tile_size": 256}, "--tile-size is of tiles, and --no-tile forbids them"),
    ],
)
def test_options_that_would_do_nothing_are_refused(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        RowSettings(**given)


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
def test_three_ways_to_tile_and_two_to_batch_on_the_command_line(tmp_path, given, found, monkeypatch):
    job = {"images": '"a"', "masks": '"b"', "vae": '"c"', "output": '"d"'}
    if "--config" in given:
        (tmp_path / "job.toml").write_text(
            "\n".join(f"{name} = {value}" for name, value in {**job, **given[1]}.items())
        )
        given = ["--config", str(tmp_path / "job.toml")]
    else:
        given = [*given, *(f"--{name}={value[1:-1]}" for name, value in job.items())]
    monkeypatch.setattr(cli.app, "config", ())
    _, bound, _ = cli.app.parse_args(without_config(["encode", *given]), exit_on_error=False)
    parsed = bound.arguments["job"]
    assert (parsed.rows.tile, parsed.workers.batch_size) == found


def test_what_bits_depend_on_is_no_accident():
    """Whether memory sufficed must not show in rows that are to be repeatable."""
    assert row_metadata(tile=None).tiling is None
    tilings = [row_metadata(deterministic=True, tile=tile).tiling for tile in (None, True, False)]
    assert tilings == [False, True, False]


def test_workers_come_in_order():
    assert Workers(min_workers=3, max_workers=3).max_workers == 3
    assert Workers(min_workers=3, max_workers=0).max_workers == 0
    with pytest.raises(ValidationError, match="--max-workers 2 is below --min-workers 3"):
        Workers(min_workers=3, max_workers=2)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("decided", [5, 1_000_000])
def test_a_count_is_judged_at_any_time(finished, decided):
    run = RunOptions(max_rejected="5")
    assert run.allows(5, decided, finished=finished)
    assert not run.allows(6, decided, finished=finished)
    assert not RunOptions(max_rejected="0").allows(1, decided, finished=finished)


@pytest.mark.parametrize(
    ("limit", "rejected", "decided", "early", "at_the_end"),
    [
        ("1%", 0, 0, True, True),
        ("1%", 1, 100, True, True),
        ("1%", 2, 100, True, False),
        ("1%", 999, 999, True, False),
        ("1%", 10, 1_000, True, True),
        ("1%", 11, 1_000, False, False),
        ("0.25%", 25, 10_000, True, True),
        ("0.57%", 57, 10_000, True, True),
        ("0.25%", 2_501, 1_000_000, False, False),
        ("0%", 0, 5_000, True, True),
        ("0%", 1, 5_000, False, False),
        ("0%", 1, 10, True, False),
        ("100%", 5_000, 5_000, True, True),
    ],
)
def test_a_percentage_is_judged_at_the_end_or_after_1000_rows(limit, rejected, decided, early, at_the_end):
    run = RunOptions(max_rejected=limit)
    assert run.allows(rejected, decided, finished=False) is early
    assert run.allows(rejected, decided, finished=True) is at_the_end


@pytest.mark.parametrize(
    ("given", "channel", "polarity"),
    [
        ({}, "auto", "white"),
        ({"mask_channel": "alpha"}, "alpha", "transparent"),
        ({"mask_channel": "alpha", "mask_polarity": "opaque"}, "alpha", "opaque"),
        ({"mask_polarity": "black"}, "auto", "black"),
        ({"mask_preset": "comfy"}, "alpha", "transparent"),
        ({"mask_preset": "comfy", "mask_polarity": "opaque"}, "alpha", "opaque"),
        ({"mask_preset": "comfy", "mask_channel": "red"}, "red", "white"),
        ({"mask_preset": "lama"}, "luma", "white"),
        ({"mask_preset": "mat"}, "luma", "black"),
        ({"mask_preset": "mat", "mask_channel": "red"}, "red", "black"),
        ({"mask_preset": "mat", "mask_polarity": "white"}, "luma", "white"),
        ({"mask_preset": "mat", "mask_channel": "alpha"}, "alpha", "transparent"),
        ({"mask_preset": "brushnet"}, "luma", "black"),
        ({"mask_preset": "iopaint"}, "luma", "white"),
        ({"mask_preset": "onetrainer"}, "luma", "white"),
    ],
)
def test_a_preset_says_what_the_command_does_not(given, channel, polarity):
    decoding = Decoding(**given)
    assert (decoding.mask_channel, decoding.mask_polarity) == (channel, polarity)
    spelled_out = Decoding(mask_channel=channel, mask_polarity=polarity)
    assert decoding.recorded() == spelled_out.recorded()


@pytest.mark.parametrize("own", ["", "{stem}.mask.png"])
def test_presets_name_masks_unless_the_command_does(own):
    parts = {"vae": {"vae": "v"}, "output": {"output": "o"}, "source": {"images": "i", "mask_pattern": own}}
    for preset, pattern in (("lama", "{stem}_mask{n}.png"), ("onetrainer", "{stem}-masklabel.png")):
        job = EncodeJob(**parts, decoding={"mask_preset": preset})
        assert job.source.mask_pattern == (own or pattern)
    listed = {**parts, "source": {"pairs": "list.csv"}}
    assert EncodeJob(**listed, decoding={"mask_preset": "lama"}).source.mask_pattern == ""


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"mask_polarity": "opaque"}, "--mask-channel auto is white or black; alpha has the others"),
        ({"mask_channel": "alpha", "mask_polarity": "white"}, "--mask-channel alpha is transparent or opaque"),
        ({"resize": 512, "buckets": 1}, "--resize and --buckets each decide an image's size; give one of them"),
        ({"upscale": True}, "add --resize, --resolution or --buckets"),
        ({"bucket_step": 32}, "--bucket-step is of --buckets"),
        ({"resolution": "1024"}, "did you mean 1024x1024?"),
        ({"resolution": "1024 X 768"}, "did you mean 1024x768?"),
        ({"resolution": "0x768"}, "did you mean 768x768?"),
    ],
)
def test_decoding_that_contradicts_itself(given, sentence):
    with pytest.raises(ValidationError) as caught:
        Decoding(**given)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--mask-chanel", "red"], "did you mean '--mask-channel'?"),
        (["--mask-polarity", "wite"], "'opaque'; did you mean 'white'?"),
        (["--mask-preset", "LaMa"], "did you mean 'lama'?"),
        (["--mask-channel", "rgb"], "did you mean 'luma'?"),
        (["--mask-channel", "B"], "did you mean 'blue'?"),
        (["--icc", "sRGB"], "did you mean 'srgb'?"),
        (["--max-pixels", "0"], "--max-pixels 0: Input should be greater than or equal to 1"),
    ],
)
def test_the_command_line_names_the_nearest_right_option(options, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["encode", "--images", "i", "--masks", "m", "--vae", "v", "--output", "o", *options])
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err
