"""Every family against diffusers itself, on real files through the stages that a job is made of, without Ray."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from inpaint_encode import load_vae, rows
from inpaint_encode.encoder import BatchEncoder
from inpaint_encode.images import PairDecoder
from inpaint_encode.settings import RowSettings, VaeSource
from inpaint_encode.stages import Encoder, fetch_and_decode
from inpaint_encode.stages.chunk import Chunk
from inpaint_encode.vae import FAMILIES, posterior, vae_facts, warm_up
from tests.vaes import SMALL, encoded, saved, small_vae

SIZES = ((71, 107), (71, 107), (64, 96), (40, 133))
"""No multiples of any ratio but one; two of one size, so that a batch of two is encoded."""

each_vae = pytest.mark.parametrize("name", SMALL)


def close(found, expected) -> bool:
    """1e-5, of the value where it is above 1: some random weights give large ones."""
    return torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Teams of threads spin where others want the same cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(3, 64, 96, 3, generator=torch.Generator().manual_seed(1))


def test_every_family_has_a_small_model():
    assert {kind for kind, *_ in SMALL.values()} == set(FAMILIES)


@each_vae
def test_a_batch_is_each_image_alone(name, pixels):
    """Video VAEs merge a batch into one clip where they are fed wrongly, and lose images."""
    vae = small_vae(name)
    warm_up(vae)
    found = posterior(vae, pixels)
    alone = torch.stack([encoded(name, vae, one) for one in pixels])
    assert found.mean.shape == alone.shape
    assert close(found.mean, alone)
    assert not torch.allclose(found.mean[0], found.mean[1])
    assert (found.logvar is None) == (type(vae).__name__ in ("AutoencoderTiny", "AutoencoderDC"))
    facts = vae_facts(vae, VaeSource(vae="x"))
    assert (facts.ratio, facts.crop_multiple, facts.latent_channels) == SMALL[name][2:]
    assert found.mean.shape[1:] == (facts.latent_channels, 64 // facts.ratio, 96 // facts.ratio)


@each_vae
def test_files_become_what_diffusers_gives_for_each_image(name, tmp_path):
    """Fetched, decoded, cropped, greyed and encoded by the job's own stages, in chunks of several sizes."""
    _, _, ratio, multiple, channels = SMALL[name]
    source = VaeSource(vae=saved(name, tmp_path / "vae"))
    encode = Encoder(lambda device: _opened(source, device), batch_size=8, gpus=0, workers=os.cpu_count())
    row = fetch_and_decode(_chunk_of(tmp_path), decoder=PairDecoder(multiple=multiple), threads=2)
    results = Chunk.unfolded(encode(row), rows.ENCODED).table.to_pylist()
    vae = small_vae(name)
    for index, (result, size) in enumerate(zip(results, SIZES, strict=True)):
        assert result["error"] is None, result["message"]
        height, width = (side // multiple * multiple for side in size)
        assert result["samples_shape"] == [channels, height // ratio, width // ratio]
        samples = torch.from_numpy(np.frombuffer(result["samples"], np.float32).copy().reshape(result["samples_shape"]))
        expected = encoded(name, vae, _greyed(tmp_path, index, multiple))
        assert close(samples, expected)


def _opened(source: VaeSource, device: str) -> BatchEncoder:
    settings = RowSettings(samples_dtype="float32")
    return BatchEncoder(load_vae(source), settings, torch.device(device), compiled=False)


def _chunk_of(folder: Path) -> pa.Table:
    """Write the images and masks and a plan of one chunk; return its row of `rows.WORK`."""
    rng = np.random.default_rng(0)
    pairs = []
    for index, (height, width) in enumerate(SIZES):
        image, mask = folder / f"{index}.png", folder / f"{index}-mask.png"
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(image)
        Image.fromarray(rng.integers(0, 2, (height, width), np.uint8) * 255).save(mask)
        pairs.append({"chunk": 0, "key": str(index), "image_uri": str(image), "mask_uri": str(mask), "mask_index": 0})
    table = pa.Table.from_pylist([pair | _UNSEEN for pair in pairs], schema=rows.PAIRS)
    (folder / "plan.parquet").write_bytes(rows.parquet_bytes(table))
    work = {"chunk": 0, "generation": 0, "part": str(folder / "plan.parquet"), "keep": False}
    return pa.Table.from_pylist([work], schema=rows.WORK)


_UNSEEN = {"image_version": "", "mask_version": "", "encode": True}


def _greyed(folder: Path, index: int, multiple: int) -> torch.Tensor:
    """The crop of an image with the repainted pixels grey, ``[H, W, 3]`` in 0..1, by the contract's words."""
    image = np.asarray(Image.open(folder / f"{index}.png")) / np.float32(255)
    mask = np.asarray(Image.open(folder / f"{index}-mask.png")) > 127
    image[mask] = 0.5
    (top, height), (left, width) = ((side % multiple // 2, side // multiple * multiple) for side in mask.shape)
    return torch.from_numpy(image[top : top + height, left : left + width])
