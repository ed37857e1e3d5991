"""Jobs with a VAE of each class; every row is compared with the latents of diffusers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from inpaint_encode import iter_rows
from inpaint_encode.job.pipeline import run_job
from inpaint_encode.job.progress import Display
from inpaint_encode.settings import VerifyOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.verify.pipeline import verify_output
from tests.original_layouts import wan_22
from tests.vaes import SMALL, encoded, saved, small_vae

QUICK = {"AutoencoderKLQwenImage21"}
SIZES = ((71, 107), (71, 107), (64, 96), (40, 133))
each_vae = pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in SMALL]
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for index, size in enumerate(SIZES):
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).save(folder / "images" / f"{index}.png")
        Image.fromarray(rng.integers(0, 2, size, np.uint8) * 255).save(folder / "masks" / f"{index}.png")
    return folder


def masked_image(pairs: Path, row: dict) -> torch.Tensor:
    """The masked image of a row, float32 ``[H, W, 3]`` in 0..1."""
    image = np.asarray(Image.open(pairs / "images" / f"{row['key']}.png")) / np.float32(255)
    image[np.asarray(Image.open(pairs / "masks" / f"{row['key']}.png")) > 127] = 0.5
    (top, left), (height, width) = (row["crop_top"], row["crop_left"]), row["noise_mask"].shape[1:]
    return torch.from_numpy(image[top : top + height, left : left + width])


def metadata_of(output: Path) -> dict:
    return json.loads((output / "_job.json").read_text())["rows"]


def check_every_row(pairs: Path, output: Path, name: str, vae) -> None:
    _, _, ratio, multiple, channels = SMALL[name]
    rows = list(iter_rows(str(output)))
    assert len(rows) == len(SIZES)
    for row in rows:
        height, width = (side // multiple * multiple for side in SIZES[int(row["key"])])
        assert row["noise_mask"].shape == (1, height, width)
        assert row["samples"].shape == (channels, height // ratio, width // ratio)
        expected = encoded(name, vae, masked_image(pairs, row)).numpy()
        assert np.allclose(row["samples"], expected, rtol=1e-5, atol=1e-5)


@each_vae
def test_a_job_gives_the_latents_of_diffusers(name, pairs, tmp_path, make_job, ray_cluster, display):
    vae = saved(name, tmp_path / "vae")
    report = run_job(make_job(pairs / "images", pairs / "masks", tmp_path / "out", vae=vae), display)
    assert (report["encoded"], report["rejected"]) == (len(SIZES), 0)
    assert metadata_of(tmp_path / "out")["vae_class"] == SMALL[name][0]
    check_every_row(pairs, tmp_path / "out", name, small_vae(name))


def test_a_job_with_a_single_file_vae_in_a_bucket(pairs, tmp_path, make_job, ray_cluster, display, s3):
    """Wan 2.2 in its original layout; a sample is verified."""
    vae = _wan_22()
    tensors = {key: tensor.contiguous() for key, tensor in wan_22(vae.state_dict()).items()}
    save_file(tensors, tmp_path / "wan.safetensors")
    uri = s3.uri("vaes/wan.safetensors")
    storage.write(uri, (tmp_path / "wan.safetensors").read_bytes())
    output = tmp_path / "out"
    run_job(make_job(pairs / "images", pairs / "masks", output, vae=uri), display)
    check_every_row(pairs, output, "Wan 2.2", vae)
    verdict = verify_output(VerifyOptions(output=str(output), sample=2), Display().say)
    assert (verdict.problems, verdict.reencoded.rows) == ([], 2)


def _wan_22():
    """Build Wan 2.2 with two residual blocks a level, as its original layout has."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(**SMALL["Wan 2.2"][1] | {"num_res_blocks": 2, "decoder_base_dim": 4}).eval()


def test_plain_latents_of_flux2_are_cropped_to_16_and_verified(pairs, tmp_path, make_job, ray_cluster, display):
    folder = saved("AutoencoderKLFlux2", tmp_path / "vae")
    job = make_job(pairs / "images", pairs / "masks", tmp_path / "out", vae=folder, flux2_latents="plain")
    run_job(job, display)
    facts = metadata_of(tmp_path / "out")
    assert (facts["vae_scale_factor"], facts["crop_multiple"], facts["latent_channels"]) == (8, 16, 32)
    assert facts["latent_form"] == "unscaled"
    vae = small_vae("AutoencoderKLFlux2")
    for row in iter_rows(str(tmp_path / "out")):
        with torch.no_grad():
            inputs = (2 * masked_image(pairs, row) - 1).permute(2, 0, 1)[None]
            expected = vae.encode(inputs).latent_dist.mode()[0]
        assert np.allclose(row["samples"], expected.numpy(), rtol=1e-5, atol=1e-5)
    verdict = verify_output(VerifyOptions(output=str(tmp_path / "out"), sample=2), Display().say)
    assert (verdict.problems, verdict.reencoded.rows) == ([], 2)
