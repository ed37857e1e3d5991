"""The command as a user runs it."""

import json
import re
import subprocess
import sys

import pytest

from tests.unit.sources.make_sources import write_manifest

from .conftest import PAIRS, write_run


@pytest.fixture(scope="module")
def sources(folder):
    return ("--images", folder / "images", "--masks", folder / "masks")


def test_the_table_is_printed_without_loading_ray(sources):
    code = "import sys; from inpaint_encode.cli import main; main(sys.argv[1:]); assert 'ray' not in sys.modules"
    arguments = [*map(str, sources), "--sample", "20", "--chunk-rows", "50"]
    done = subprocess.run([sys.executable, "-c", code, "plan", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {line.split("  ")[0].strip(): line for line in done.stdout.splitlines()}
    assert "126" in lines["pairs"]
    assert "3" in lines["output files"]
    assert "20" in lines["headers read"]
    assert "±" in lines["mean size"]
    assert "assumed without --vae" in lines["latents"]


def test_the_config_file_of_an_encode_job_is_accepted(folder, tmp_path, shell):
    config = {"images": f"{folder}/images", "masks": f"{folder}/masks", "output": "s3://out", "batch_size": "4"}
    lines = [f'{name} = "{value}"' for name, value in config.items()]
    (tmp_path / "job.toml").write_text("\n".join([*lines, "chunk_rows = 50"]))
    done = shell("plan", "--config", tmp_path / "job.toml", "--as-json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["chunks"] == 3
    (tmp_path / "job.toml").write_text("chunk_row = 50")
    done = shell("plan", "--config", tmp_path / "job.toml")
    assert (done.returncode, "did you mean 'chunk_rows'?" in done.stderr) == (2, True)


def test_repeated_lines_and_duplicate_keys_are_printed(folder, tmp_path, shell):
    images, masks = folder / "images/a/rotated.jpg", sorted((folder / "masks/a").glob("*.png"))
    lines = [{"image": str(images), "mask": str(mask), "id": str(at)} for at, mask in enumerate(masks[:1] * 4)]
    path = write_manifest(tmp_path / "list.csv", [*lines, lines[0], lines[1], {**lines[0], "mask": str(images)}])
    arguments = ("plan", "--pairs", path, "--key-column", "id")
    done = shell(*arguments)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "pairs 5 " in text
    assert "repeated lines 2 not counted as pairs: an earlier line has the same contents" in text
    assert "rejects 20.0% detected from headers: none; 1 list.duplicate_key in the whole source" in text
    assert "The headers of all images were read" in text
    printed = json.loads(shell(*arguments, "--as-json").stdout)
    assert (printed["repeated_lines"], printed["duplicate_keys"], printed["all_sampled"]) == (2, 1, True)


def test_hours_and_cost_are_printed(sources, tmp_path, shell):
    rate = write_run(tmp_path, [(50, 100), (100, 200), (150, 300)], pairs=300, rows={"resolution": "64x64"})
    assert rate == 2
    arguments = ("plan", *sources, "--rate-from", tmp_path, "--price", 7.2)
    done = shell(*arguments)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert re.search(r"pairs per second 2\.00 200 pairs in 100\.\d s after the first chunk, in the last run of /", text)
    assert "hours 0.0175 at this rate; assumes the same cluster and images of similar sizes, and the same VAE" in text
    assert "cost 0.126 hours x --price, the cost of the whole cluster per hour" in text
    assert f"warning: the settings differ from those of {tmp_path} (resolution); its rate may not apply" in text
    printed = json.loads(shell(*arguments, "--as-json").stdout)["rate"]
    assert (printed["output"], printed["differs"]) == (str(tmp_path), ["resolution"])
    assert printed["hours"] == pytest.approx((PAIRS + 6) / rate / 3600, rel=0.01)
    assert printed["cost"] == pytest.approx(7.2 * printed["hours"])
    unpriced = shell("plan", *sources, "--rate-from", tmp_path, "--resolution", "64x64", "--upscale").stdout
    assert ("pairs per second" in unpriced, "--price" in unpriced, "warning" in unpriced) == (True, False, False)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (["--price", 3], "--price needs --rate-from, which estimates the hours"),
        (["--rate-from", "ftp://host/output"], "ftp://host/output is not supported"),
        (["--batch-size", 3], "unknown option --batch-size"),
        (["--revision", "main"], "--subfolder, --revision, --vae-family and --flux2-latents need --vae"),
        (["--sample", 0], "--sample 0"),
        (["--vae", "/no/such/vae"], "--vae /no/such/vae cannot be loaded"),
        (["--output", "x"], "--output"),
    ],
)
def test_a_usage_error_is_one_sentence(sources, extra, sentence, shell):
    done = shell("plan", *sources, *extra)
    assert done.returncode == 2
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert sentence in error
