"""The public API from end to end, as in a notebook."""

import numpy as np
import torch

from inpaint_encode import EncodeJob, encode_for_inpaint, inpaint_input, load_vae, open_latents, run_job
from inpaint_encode.settings import Output, RowSettings, Source, VaeSource
from tests.local import write_pairs


def test_run_job_with_one_argument(ray_cluster, vae_folder, tmp_path, capsys):
    rng = np.random.default_rng(0)
    pairs = {
        f"{number}": (rng.integers(0, 256, (40, 48, 3), np.uint8), np.eye(40, 48, dtype=np.uint8) * 255)
        for number in range(3)
    }
    write_pairs(tmp_path / "in", pairs)
    job = EncodeJob(
        source=Source(images=str(tmp_path / "in/images"), masks=str(tmp_path / "in/masks")),
        vae=VaeSource(vae=vae_folder),
        output=Output(output=str(tmp_path / "out")),
        rows=RowSettings(samples_dtype="float32"),
    )
    report = run_job(job)
    assert (report["pairs"], report["encoded"], report["rejected"]) == (3, 3, 0)
    assert "3 of 3 pairs" in capsys.readouterr().err

    dataset = open_latents(str(tmp_path / "out"))
    image, mask = pairs["1"]
    pixels, mask = torch.from_numpy(image / np.float32(255))[None], torch.from_numpy(mask / np.float32(255))[None]
    latents = encode_for_inpaint(pixels, mask, load_vae(job.vae))
    assert torch.allclose(dataset["1"]["samples"], latents.samples[0], atol=1e-5)
    assert torch.equal(dataset["1"]["noise_mask"].float(), latents.noise_mask[0])
    (batch,) = dataset.for_diffusers(with_latents=False, vae_family="").stream(batch_size=3)
    assert inpaint_input(torch.randn(3, 4, 5, 6), batch).shape == (3, 9, 5, 6)
