"""The command ``info``: columns, settings, source and versions, in words and as JSON."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output.resume import row_metadata
from inpaint_encode.schema import data_schema
from inpaint_encode.stores import storage
from inpaint_encode.tools.inspect.info import read_info, type_and_shape
from tests.fabricated import JobOutput
from tests.metadata import VAE


@pytest.fixture
def written(tmp_path, make_job):
    return JobOutput(tmp_path / "out", make_job, also_original=True, latent_mask="comfyui", samples_dtype="float16")


def test_an_output_without_rows_is_an_error(written):
    with pytest.raises(JobFailed, match=r"the job that began 20.* has not written a row yet"):
        read_info(written.output)


def test_columns_are_described(written):
    written.plan(3)
    written.chunk(0)
    columns = {column["name"]: column for column in read_info(written.output)["columns"]}
    described = {name: (column["type"], column["shape"]) for name, column in columns.items()}
    latent = ("tensor of float16", "[4, h, w], sides are 1/8 of the crop's")
    assert described["samples"] == described["original_samples"] == latent
    assert described["noise_mask"] == ("tensor of uint8", "[1, H, W], height and width of the crop")
    assert described["latent_mask"][1] == "[1, h, w], the same sides as samples"
    assert described["crop_top"] == ("int32", "")
    size = written.committed[0][1].data_bytes
    total = sum(column["bytes"] for column in columns.values())
    assert 0 < total < size  # the rest is the footer


@pytest.mark.parametrize(
    ("options", "name", "described"),
    [
        ({"posterior": "moments"}, "samples", ("tensor of float32", "[8, h, w], sides are 1/8 of the crop's")),
        (
            {"mask_encoding": "packed"},
            "noise_mask",
            ("bits, 8 pixels per byte", "[1, H, W], height and width of the crop"),
        ),
    ],
)
def test_other_columns(options, name, described, make_job, tmp_path):
    job = make_job("i", "m", str(tmp_path), **options)
    metadata = row_metadata(job.rows, job.decoding, VAE)
    schema = data_schema(metadata)
    assert type_and_shape(schema.field(name), metadata) == described


def test_what_is_printed(written, shell):
    written.plan(3)
    written.chunk(0, rejected=1)
    written.finish(3)
    written.end()
    done = shell("info", written.output)
    lines = {" ".join(line.split()) for line in done.stdout.splitlines()}
    assert done.returncode == 0, done.stderr
    assert {"pairs planned 3", "rows 2", "rejected 1 (1 image.truncated)", "files 1, 2 rows in the first"} <= lines
    assert {"vae_class AutoencoderKL", "weights_sha256 000000000000", "scaling_factor 0.18215"} <= lines
    assert {"also_original true", "latent_mask comfyui", "grow_mask_by 6 default", "tile none default"} <= lines
    assert {"settings, transform version 1", "images " + written.record["source"]["images"]} <= lines
    assert any(line.startswith("samples tensor of float16 [4, h, w]") for line in lines)
    printed = json.loads(shell("info", written.output, "--as-json").stdout)
    assert printed == read_info(written.output)
    assert printed["columns"][1]["name"] == "samples"


def test_brackets_in_names_are_no_markup(written, shell):
    written.plan(3)
    written.chunk(0)
    record = json.loads(storage.read(f"{written.output}/_job.json").data)
    record["source"] = {"images": "/data[v1]/images", "mask_pattern": "{stem}[/x].png"}
    storage.write(f"{written.output}/_job.json", json.dumps(record).encode())
    lines = {" ".join(line.split()) for line in shell("info", written.output).stdout.splitlines()}
    assert {"images /data[v1]/images", "mask_pattern {stem}[/x].png"} <= lines


def test_no_output(tmp_path, shell):
    done = shell("info", tmp_path)
    assert (done.returncode, "has no rows; give the folder" in done.stderr) == (2, True)
    pq.write_table(pa.table({"x": [1]}), tmp_path / "x.parquet")
    done = shell("info", tmp_path)
    assert (done.returncode, "x.parquet is not a data file of an encode job" in done.stderr) == (2, True)
    with pytest.raises(UsageError, match="is not supported"):
        read_info("gs://bucket/out")


def test_neither_torch_nor_ray_is_imported(written):
    written.plan(3)
    written.chunk(0)
    code = (
        "import sys; from inpaint_encode.cli import main; main(['info', sys.argv[1]]); "
        "print(*{'torch', 'ray', 'diffusers'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, written.output], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.strip()) == (0, "")
