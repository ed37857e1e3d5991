"""Whole jobs on an S3 server and a Ray cluster: rows follow the contract, counts follow the source."""

import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms

from inpaint_encode import iter_rows
from inpaint_encode.demo.pairs import upload, write_random_pairs
from inpaint_encode.errors import JobFailed
from inpaint_encode.job import pipeline
from inpaint_encode.job.pipeline import Backend, run_job, vae_backend
from inpaint_encode.schema import FOOTER_KEY
from inpaint_encode.settings import VaeSource, VerifyOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.verify.pipeline import verify_output
from inpaint_encode.vae.load import load_vae
from tests.conftest import command, save_vae


def expected(image: bytes, mask: bytes, vae, ratio: int, grow: int) -> tuple[np.ndarray, np.ndarray]:
    """A second implementation of the contract: ``samples [C, h, w]`` and ``noise_mask [1, H, W]``."""
    pixels = torch.from_numpy(np.array(in_srgb(Image.open(io.BytesIO(image))))).float() / 255
    levels = torch.from_numpy(np.array(Image.open(io.BytesIO(mask)).convert("L"))).float() / 255
    height, width = pixels.shape[:2]
    levels = F.interpolate(levels[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
    top, left = (height % ratio) // 2, (width % ratio) // 2
    inside = slice(top, top + height // ratio * ratio), slice(left, left + width // ratio * ratio)
    pixels, hole = pixels[inside], levels[inside].round()
    grey = (pixels - 0.5) * (1 - hole[..., None]) + 0.5
    samples = vae.encode((2 * grey - 1).permute(2, 0, 1)[None]).latent_dist.mode()[0]
    return samples.numpy(), grown(hole.numpy(), grow)[None]


def in_srgb(image: Image.Image) -> Image.Image:
    """The image in sRGB; one of the demo's photographs has another color profile."""
    if "icc_profile" not in image.info:
        return image.convert("RGB")
    profile, srgb = io.BytesIO(image.info["icc_profile"]), ImageCms.createProfile("sRGB")
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    return ImageCms.profileToProfile(image, profile, srgb, intent, "RGB", flags=flags)


def grown(hole: np.ndarray, side: int) -> np.ndarray:
    """Each output pixel is the largest of inputs ``i - p .. i - p + side - 1``, p = ceil((side - 1) / 2)."""
    if side < 2:
        return hole.astype(np.uint8)
    before = side // 2
    around = np.pad(hole, (before, side - 1 - before))
    windows = np.lib.stride_tricks.sliding_window_view(around, (side, side))
    return windows.max(axis=(-1, -2)).astype(np.uint8)


def check_every_row(rows, folder, prefix, vae_folder, *, ratio=8, grow=6) -> int:
    """Compare every row with `expected`; return the number of rows."""
    vae, rows = load_vae(VaeSource(vae=vae_folder)), list(rows)
    for row in rows:
        image = (folder / row["image_uri"].removeprefix(f"{prefix}/")).read_bytes()
        mask = (folder / row["mask_uri"].removeprefix(f"{prefix}/")).read_bytes()
        with torch.inference_mode():
            samples, noise_mask = expected(image, mask, vae, ratio, grow)
        assert row["noise_mask"].dtype == np.uint8
        assert np.array_equal(row["noise_mask"], noise_mask), row["key"]
        assert row["samples"].dtype == np.float32
        assert row["samples"].shape == samples.shape
        assert np.abs(row["samples"] - samples).max() <= 1e-5, row["key"]
        assert row["mask_coverage"] == np.float32(noise_mask.mean(dtype=np.float64))
    return len(rows)


def read_report(output: str) -> dict:
    return json.loads(storage.read(f"{output}/_report.json").data)


def test_rows_follow_the_contract(demo, demo_rows, vae_folder):
    count = check_every_row(demo_rows, demo["folder"], demo["prefix"], vae_folder)
    assert count == len(demo["pairs"].pairs) - 1


def test_counts_add_up(demo):
    report, pairs = read_report(demo["output"]), demo["pairs"]
    assert report["pairs"] == len(pairs.pairs) == report["encoded"] + report["rejected"]
    assert report["rejected_by_error"] == {"image.truncated": 1}
    assert report["unpaired_images"] == len(pairs.unpaired_images)
    assert report["unpaired_masks"] == len(pairs.unpaired_masks)
    assert report["ignored_files"] == len(pairs.ignored_files)
    assert report["this_run"]["pairs_per_second"] > 0
    assert {"fetch_s", "decode_s", "wait_s", "encode_s", "write_s"} <= report["this_run"]["counters"].keys()


def test_a_reject_says_what_happened(demo):
    rejects = pq.read_table(io.BytesIO(only_file(demo["output"], "_rejected/")))
    (row,) = rejects.to_pylist()
    assert row["key"] == demo["pairs"].broken
    assert row["stage"] == "image"
    assert row["error"] == "image.truncated"
    assert row["image_uri"] in row["message"]
    assert "bytes" in row["message"]


def only_file(output: str, folder: str) -> bytes:
    (path,) = [p for listed in storage.list_objects(output) for p in listed.paths if p.startswith(folder)]
    return storage.read(f"{output}/{path}").data


def test_footer_says_how_the_rows_were_made(demo, vae_folder):
    path = next(p for listed in storage.list_objects(demo["output"]) for p in listed.paths if not p.startswith("_"))
    blob = storage.read(f"{demo['output']}/{path}").data
    metadata = json.loads(pq.read_schema(pa.BufferReader(blob)).metadata[FOOTER_KEY])
    assert metadata["contract"] == 1
    assert metadata["grow_mask_by"] == 6
    assert metadata["posterior"] == "mean"
    assert metadata["vae_class"] == "AutoencoderKL"
    assert metadata["vae_source"] == vae_folder
    assert (metadata["vae_scale_factor"], metadata["latent_channels"]) == (8, 4)
    assert metadata["scaling_factor"] == 0.18215
    assert len(metadata["weights_sha256"]) == 64
    assert {"inpaint-encode", "torch", "diffusers"} <= metadata["versions"].keys()


def test_encodings_of_the_columns(demo):
    path = next(p for listed in storage.list_objects(demo["output"]) for p in listed.paths if not p.startswith("_"))
    group = pq.read_metadata(pa.BufferReader(storage.read(f"{demo['output']}/{path}").data)).row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert {column.compression for column in columns.values()} == {"ZSTD"}
    assert "BYTE_STREAM_SPLIT" in columns["samples.data.list.element"].encodings
    assert "RLE_DICTIONARY" not in columns["noise_mask.data.list.element"].encodings
    assert "RLE_DICTIONARY" in columns["key"].encodings
    split = [name for name, column in columns.items() if "BYTE_STREAM_SPLIT" in column.encodings]
    assert split == ["samples.data.list.element", "original_samples.data.list.element"]


def test_a_second_run_has_nothing_to_do(demo, shell):
    before = {
        p: v
        for listed in storage.list_objects(demo["output"])
        for p, v in zip(listed.paths, listed.versions, strict=True)
    }
    again = shell("encode", *demo["options"])
    assert again.returncode == 0, again.stderr
    assert read_report(demo["output"])["this_run"]["files"] == 0
    after = {
        p: v
        for listed in storage.list_objects(demo["output"])
        for p, v in zip(listed.paths, listed.versions, strict=True)
    }
    before.pop("_report.json"), after.pop("_report.json")
    assert before == after


def test_200_random_sizes(tmp_path, s3, ray_cluster, make_job, vae_folder, display):
    keys = write_random_pairs(tmp_path, 200, seed=7)
    prefix = s3.uri("random-in")
    upload(tmp_path, prefix)
    report = run_job(make_job(f"{prefix}/images", f"{prefix}/masks", s3.uri("random-out"), chunk_rows=64), display)
    assert (report["encoded"], report["rejected"]) == (len(keys), 0)
    assert check_every_row(iter_rows(s3.uri("random-out")), tmp_path, prefix, vae_folder) == 200


@pytest.mark.parametrize(("levels", "grow", "masks"), [(3, 0, "tensor"), (5, 64, "packed")])
def test_other_downscale_factors_dilations_and_mask_encodings(
    tmp_path, ray_cluster, make_job, display, levels, grow, masks
):
    """Factors 4 and 16, which come from the model; an image with a shorter side is rejected."""
    write_random_pairs(tmp_path / "in", 12, seed=3, smallest=20, largest=90)
    Image.new("RGB", (50, 3)).save(tmp_path / "in/images/thin.png")
    Image.new("L", (50, 3)).save(tmp_path / "in/masks/thin.png")
    vae, output = save_vae(tmp_path / "vae", levels=levels, channels=6), tmp_path / "out"
    options = {"vae": vae, "grow_mask_by": grow, "mask_encoding": masks}
    report = run_job(make_job(tmp_path / "in/images", tmp_path / "in/masks", output, **options), display)
    assert report["rejected_by_error"] == {"size.too_small": 1}
    ratio, rows = 2 ** (levels - 1), iter_rows(str(output))
    assert check_every_row(rows, tmp_path / "in", str(tmp_path / "in"), vae, ratio=ratio, grow=grow) == 12
    footer = pq.read_schema(next(output.glob("*.parquet"))).metadata
    assert json.loads(footer[FOOTER_KEY])["mask_encoding"] == masks
    verify_output(VerifyOptions(output=str(output), sample=12), display.say).check_complete()


def with_other_weights(job) -> Backend:
    """The job's VAE, but workers expect a wrong hash of its weights."""
    backend = vae_backend(job)
    return backend._replace(vae=replace(backend.vae, weights_sha256="0" * 64))


def test_a_worker_with_other_weights_fails_the_job(tmp_path, ray_cluster, make_job, display, monkeypatch):
    """The error of the worker's constructor reaches the user; before, the job says what it waits for."""
    monkeypatch.setattr(pipeline, "REMIND_S", 0.01)
    write_random_pairs(tmp_path, 3, seed=1)
    job = make_job(tmp_path / "images", tmp_path / "masks", tmp_path / "out")
    with pytest.raises(JobFailed, match=r"weights_sha256 [0-9a-f]{64} on this node, 0{64} in the output"):
        run_job(job, display, with_other_weights)
    reminders = [line for line in display.lines if "no chunk is done yet" in line]
    assert "each VAE worker needs 2 CPU, and each other task 1 CPU" in reminders[0]


class TestExitCodes:
    """Exit codes and messages of the command."""

    @pytest.fixture
    def pairs(self, tmp_path):
        write_random_pairs(tmp_path, 3, seed=1)
        return ["--images", tmp_path / "images", "--masks", tmp_path / "masks", "--output", tmp_path / "out"]

    def test_wrong_option_names_the_nearest(self, pairs, shell):
        done = shell("encode", *pairs, "--grow-mask", "3")  # and without --vae, which is said later
        assert done.returncode == 2
        assert "unknown option --grow-mask; did you mean '--grow-mask-by'?" in done.stderr

    def test_value_out_of_range(self, pairs, vae_folder, shell):
        done = shell("encode", *pairs, "--vae", vae_folder, "--grow-mask-by", "65")
        assert done.returncode == 2
        assert "64" in done.stderr

    def test_no_pair_at_all(self, tmp_path, pairs, vae_folder, shell):
        (tmp_path / "empty").mkdir()
        done = shell("encode", *pairs[:2], "--masks", tmp_path / "empty", *pairs[4:], "--vae", vae_folder)
        assert done.returncode == 2
        assert "empty: the folder is empty" in done.stderr

    def test_two_images_with_one_key(self, tmp_path, pairs, vae_folder, shell):
        first = next((tmp_path / "images").rglob("*.*"))
        first.with_suffix(".webp").write_bytes(first.read_bytes())
        done = shell("encode", *pairs, "--vae", vae_folder)
        assert done.returncode == 2
        assert first.with_suffix(".webp").name in done.stderr

    def test_no_such_model(self, tmp_path, pairs, shell):
        done = shell("encode", *pairs, "--vae", tmp_path / "nothing")
        assert done.returncode == 2
        assert "there is no such folder or file on this node" in done.stderr

    def test_pickled_weights_are_refused(self, tmp_path, pairs, vae_folder, shell):
        folder = tmp_path / "pickled"
        folder.mkdir()
        (folder / "config.json").write_text((tmp_path / vae_folder / "config.json").read_text())
        torch.save({}, folder / "diffusion_pytorch_model.bin")
        done = shell("encode", *pairs, "--vae", folder)
        assert done.returncode == 2
        assert "safetensors" in done.stderr

    def test_more_rejects_than_allowed_and_secrets_nowhere(self, tmp_path, pairs, vae_folder, ray_cluster):
        """Secrets in the environment appear neither in the output nor on the screen."""
        next((tmp_path / "images").rglob("*.*")).write_bytes(b"<html>not found</html>")
        secret = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN")
        environment = {name: f"canary-{name}" for name in secret} | {"RAY_ADDRESS": ray_cluster}
        done = command("encode", *pairs, "--vae", vae_folder, "--max-rejected", "0", **environment)
        assert done.returncode == 3, done.stderr
        assert "1 image.not_an_image" in done.stderr
        written = [path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert len(written) > 3
        assert not [text for text in (*written, done.stdout.encode(), done.stderr.encode()) if b"canary" in text]

    def test_a_secret_in_a_uri_is_not_repeated(self, pairs, vae_folder, shell):
        done = shell("encode", "--images", "s3://AKIAKEY:canary@bucket/images", *pairs[2:], "--vae", vae_folder)
        assert done.returncode == 2
        assert "canary" not in done.stdout + done.stderr

    def test_an_output_that_cannot_be_created(self, pairs, vae_folder, shell):
        done = shell("encode", *pairs[:4], "--output", "/dev/null/out", "--vae", vae_folder)
        assert done.returncode == 1
        assert "/dev/null/out" in done.stderr

    def test_config_file_and_flags_over_it(self, tmp_path, pairs, vae_folder, shell):
        config = tmp_path / "job.toml"
        config.write_text(
            f'images = "{pairs[1]}"\nmasks = "{tmp_path}/nothing"\nvae = "{vae_folder}"\ngrow_mask_by = 9\n'
        )
        done = shell("encode", "--config", config, *pairs[4:])
        assert done.returncode == 2
        assert f"{tmp_path}/nothing: there is no such folder" in done.stderr

    def test_unknown_name_in_a_config_file(self, tmp_path, pairs, shell):
        config = tmp_path / "job.toml"
        config.write_text("grow_mask = 9\n")
        done = shell("encode", "--config", config, *pairs)
        assert done.returncode == 2
        assert "did you mean 'grow_mask_by'" in done.stderr
