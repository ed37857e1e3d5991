"""`EncodeJob`: defaults, required parts, and the range of every field."""

import pytest
from pydantic import ValidationError

from inpaint_encode.settings import (
    EncodeJob,
    ExportOptions,
    Output,
    RowSettings,
    RunOptions,
    Source,
    VaeSource,
    VerifyOptions,
    Workers,
)

SOURCE = Source(images="s3://in/images", masks="s3://in/masks")
JOB = EncodeJob(source=SOURCE, vae=VaeSource(vae="some/vae"), output=Output(output="s3://out"))


def test_defaults_are_those_of_the_comfyui_node():
    assert JOB.rows == RowSettings(grow_mask_by=6, dtype="auto", samples_dtype="float16")
    assert (JOB.output.overwrite, JOB.run.max_rejected) == (False, "1%")


@pytest.mark.parametrize("missing", ["source", "vae", "output"])
def test_source_vae_and_output_are_required(missing):
    parts = JOB.model_dump()
    del parts[missing]
    with pytest.raises(ValidationError, match=missing):
        EncodeJob(**parts)


@pytest.mark.parametrize("part", [JOB, JOB.source, JOB.vae, JOB.output, JOB.rows, JOB.workers, JOB.run])
def test_every_part_is_frozen_and_rejects_unknown_fields(part):
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, next(iter(type(part).model_fields)), "changed")
    with pytest.raises(ValidationError, match=r"grow_mask\n.*not permitted"):
        type(part)(**part.model_dump(), grow_mask=6)


def test_job_survives_json():
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
        ExportOptions,
        {"to": "parquet", "output": "o"},
        "file_bytes",
        ["1MB", "256MB", "0.5GB", "512MiB", "1000000", "4GB", "2000kB"],
        ["", "0", "999kB", "4.1GB", "1TB", "-1MB", "large", "256 MB"],
    ),
    (
        RunOptions,
        {},
        "max_rejected",
        ["0", "100", "0%", "1%", "0.25%"],
        ["", "%", "-1", "1.5", "1 %", ".5%", "few"],
    ),
]


@pytest.mark.parametrize(("part", "given", "field", "good", "bad"), RANGES, ids=[row[2] for row in RANGES])
def test_each_field_accepts_its_range_and_nothing_else(part, given, field, good, bad):
    for value in good:
        assert getattr(part(**given, **{field: value}), field) == value
    for value in bad:
        with pytest.raises(ValidationError, match=field.replace("_", "[-_]")):
            part(**given, **{field: value})


@pytest.mark.parametrize(
    ("text", "size"),
    [("256MB", 256_000_000), ("512MiB", 2**29), ("0.5GB", 500_000_000), ("1.5GiB", 3 * 2**29), ("1500K", 1_500_000)],
)
def test_file_bytes_have_decimal_and_binary_units(text, size):
    assert ExportOptions(to="parquet", output="o", file_bytes=text).max_file_bytes == size


def test_file_bytes_are_for_parquet():
    with pytest.raises(ValidationError, match="--file-bytes is for --to parquet"):
        ExportOptions(to="comfyui", output="o", file_bytes="1GB")


def test_a_dry_run_needs_a_repair():
    assert VerifyOptions(output="out", repair=True, dry_run=True).dry_run
    with pytest.raises(ValidationError, match="--dry-run needs --repair; add it"):
        VerifyOptions(output="out", dry_run=True)
