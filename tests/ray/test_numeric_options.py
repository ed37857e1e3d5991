"""One job with all numeric options at once: float16 overflow, out-of-memory, tiles, draws and scaling."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from inpaint_encode import iter_rows
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.core.transform import grow_mask, mask_image, resize_to_latent
from inpaint_encode.errors import UsageError
from inpaint_encode.job.pipeline import run_job, vae_backend
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.settings import VaeSource, VerifyOptions
from inpaint_encode.tools.verify.pipeline import verify_output
from inpaint_encode.vae.encode import to_vae_range
from inpaint_encode.vae.latents import standard_normal
from inpaint_encode.vae.load import load_vae
from tests.conftest import save_vae
from tests.outputs import whole_report

ASKED = {
    "dtype": "float16",
    "posterior": "sample",
    "posterior_seed": 3,
    "scaled": True,
    "also_original": True,
    "latent_mask": "diffusers",
    "tile_size": 64,
    "batch_size": "auto",
}
HELD = 3 * 64 * 64
"""Pixels that fit the memory of the device in this test."""


class Crowded(nn.Module):
    """An encoder on a device whose memory holds `HELD` pixels."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, inputs):
        if inputs[:, 0].numel() > HELD:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.encoder(inputs)


def crowded(source: VaeSource, metadata: RowMetadata, device: str) -> BatchEncoder:
    encoder = BatchEncoder.load(source, metadata, device, compiled=False)
    encoder._vae.encoder = Crowded(encoder._vae.encoder)
    return encoder


def crowded_backend(job):
    backend = vae_backend(job)
    return backend._replace(open=partial(crowded, job.vae))


def write_pairs(folder) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write five images of noise, which overflow, and two of gray, of which one exceeds the memory."""
    rng = np.random.default_rng(0)
    sizes = {**{f"noise{index}": (64, 64) for index in range(5)}, "grey": (64, 64), "large": (96, 160)}
    pairs = {}
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for key, size in sizes.items():
        image = (
            rng.integers(0, 256, (*size, 3), np.uint8)
            if key.startswith("noise")
            else np.full((*size, 3), 127, np.uint8)
        )
        mask = (rng.random(size) < 0.3).astype(np.uint8)
        Image.fromarray(image).save(folder / f"images/{key}.png")
        Image.fromarray(mask * 255).save(folder / f"masks/{key}.png")
        pairs[key] = image, mask
    return pairs


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """A VAE whose first layer overflows in float16 unless the image is gray."""
    folder = tmp_path_factory.mktemp("overflowing")
    vae = load_vae(VaeSource(vae=save_vae(folder, levels=4)))
    vae.encoder.conv_in.weight.mul_(3e5)
    vae.save_pretrained(folder)
    return str(folder)


def drawn(vae, pixels: torch.Tensor, key: str) -> np.ndarray:
    """A scaled draw from the distribution that diffusers gives for float32 ``[H, W, 3]``."""
    with torch.inference_mode():
        found = vae.encode(to_vae_range(pixels)[None]).latent_dist
    return (found.mean + found.std * standard_normal(3, key, found.mean.shape[1:]))[0].numpy() * 0.18215


def test_rows_of_a_job_with_all_numeric_options(tmp_path, ray_cluster, make_job, display, overflowing):
    pairs = write_pairs(tmp_path / "in")
    make = partial(make_job, tmp_path / "in/images", tmp_path / "in/masks", tmp_path / "out", vae=overflowing)
    report = run_job(make(**ASKED), display, crowded_backend)
    counters = report["this_run"]["counters"]
    assert report["encoded"] == len(pairs)
    assert {name: counters[name] for name in ("not_finite", "encoded_again", "oom_steps", "tiled")} == {
        "not_finite": 5,
        "encoded_again": 5,
        "oom_steps": 2,
        "tiled": 1,
    }
    vae = load_vae(VaeSource(vae=overflowing))
    for row in iter_rows(str(tmp_path / "out")):
        key, (image, mask) = row["key"], pairs[row["key"]]
        noise = key.startswith("noise")
        assert (row["precision"], row["tiled"]) == ("float32" if noise else "float16", key == "large")
        levels, hole = torch.from_numpy(image).float() / 255, torch.from_numpy(mask)
        assert np.array_equal(row["noise_mask"][0], grow_mask(hole, 6).numpy())
        size = row["samples"].shape[1:]
        assert np.array_equal(row["latent_mask"], resize_to_latent(hole[None], *size, "diffusers").numpy())
        if key != "large":
            tolerance = 1e-5 if noise else 0.02
            assert np.abs(row["samples"] - drawn(vae, mask_image(levels, hole.float()), key)).max() <= tolerance
            assert np.abs(row["original_samples"] - drawn(vae, levels, key)).max() <= tolerance
    verdict = verify_output(VerifyOptions(output=str(tmp_path / "out"), sample=7), lambda _: None)
    verdict.check_complete()
    assert verdict.reencoded.rows == len(pairs)
    assert whole_report(str(tmp_path / "out"))["job"]["rows"]["posterior_seed"] == 3
    with pytest.raises(UsageError, match=r"posterior_seed: 3 in the output, 4 now"):
        run_job(make(**{**ASKED, "posterior_seed": 4}), display)
