"""The encoding stage without Ray: what it makes of batches that went through, and of those that did not."""

import copy
import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from inpaint_encode.core.batch import Batch
from inpaint_encode.core.chunk import DecodedPair, EncodedPair, Pair, encode_pairs
from inpaint_encode.core.counters import Counters
from inpaint_encode.core.decode import DecodedImage
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.core.geometry import CropBox, Geometry
from inpaint_encode.errors import JobFailed
from inpaint_encode.job.stages import EncodeStage
from inpaint_encode.schema import data_schema
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.load import load_vae
from tests.metadata import metadata_for, row_metadata
from tests.vaes import BLOCKS

SIZES = [(16, 16), (16, 16), (64, 64), (16, 16)]


class Crowded(nn.Module):
    """An encoder on a device that holds so many pixels and not one more."""

    def __init__(self, encoder: nn.Module, pixels: int) -> None:
        super().__init__()
        self.encoder, self.pixels, self.given = encoder, pixels, []

    def forward(self, inputs):
        self.given.append(tuple(inputs.shape))
        if inputs[:, 0].numel() > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.encoder(inputs)


@pytest.fixture
def encoded(vae_folder, monkeypatch):
    """Encode pairs of `SIZES` on a device that holds ``pixels``; return the results and the counters."""

    def encode(pixels, **settings):
        monkeypatch.setattr(torch, "set_num_threads", lambda _: None)

        vae = load_vae(VaeSource(vae=vae_folder))
        encoder = BatchEncoder(vae, metadata_for(vae, **settings), torch.device("cpu"), compiled=False)
        encoder._vae.encoder = Crowded(encoder._vae.encoder, pixels)
        rng = np.random.default_rng(0)
        pairs = []
        for index, size in enumerate(SIZES):
            levels, mask = rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 2, size, np.uint8)
            image = DecodedImage(levels, *size, Geometry(*size, CropBox(0, 0, *size)), transposed=False)
            pairs.append(DecodedPair(Pair(str(index), "i", "m"), image, np.packbits(mask)))
        counters = Counters(float)
        made = encode_pairs(pairs, encoder, counters)
        return made, dict(counters)

    return encode


def test_deterministic_rows_do_not_depend_on_the_number_of_workers(monkeypatch):
    torch.manual_seed(0)
    config = BLOCKS | {"block_out_channels": (32, 64, 128, 128), "layers_per_block": 1}
    vae = AutoencoderKL(**config).eval().requires_grad_(False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    pixels = np.random.default_rng(0).integers(0, 256, 128 * 128 * 3, np.uint8)
    batch = Batch(128, 128, [pixels], [np.zeros(128 * 16, np.uint8)])
    threads = torch.get_num_threads()

    def opened(device):
        metadata = metadata_for(vae, deterministic=True, samples_dtype="float32")
        return BatchEncoder(copy.deepcopy(vae), metadata, torch.device(device), compiled=False)

    try:
        stages = [EncodeStage(opened, 1, lambda: data_schema(row_metadata()), 0, count, None) for count in (1, 2, 4)]
        made = [stage._encoder.launch(batch).result().samples for stage in stages]
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)
    assert all(np.array_equal(one, made[0]) for one in made)


def errors_of(made):
    return [None if isinstance(one, EncodedPair) else one.error for one in made]


def test_an_image_that_does_not_fit_is_rejected_alone(encoded):
    made, counters = encoded(2 * 16 * 16, tile=False)
    assert errors_of(made) == [None, None, "encode.out_of_memory", None]
    assert {one.precision for one in made if isinstance(one, EncodedPair)} == {"float32"}
    assert (counters["oom_steps"], counters["tiled"]) == (2, 0)


def test_a_chunk_of_images_that_do_not_fit_is_rejected_and_does_not_end_the_job(encoded):
    made, _ = encoded(0, tile=False)
    assert set(errors_of(made)) == {"encode.out_of_memory"}


def test_a_row_says_that_it_was_tiled(encoded):
    made, _ = encoded(32 * 64, tile_size=64)
    assert errors_of(made) == [None, None, "encode.out_of_memory", None]
    made, counters = encoded(64 * 64, tile=True, tile_size=64)
    assert [one.tiled for one in made] == [False] * 4
    assert [one.samples.shape for one in made] == [(4, side // 8, side // 8) for side, _ in SIZES]
    assert (counters["oom_steps"], counters["not_finite"], counters["encoded_again"]) == (0, 0, 0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_worker_without_the_gpu_that_it_was_given_says_so(monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    opened = EncodeStage(lambda device: device, "auto", lambda: data_schema(row_metadata()), 0.5, 1, None)
    assert opened._encoder == "cpu", "conftest says that GPUs are numbers here"
    monkeypatch.delenv("INPAINT_ENCODE_LOGICAL_GPUS")
    with pytest.raises(JobFailed, match=rf"0\.5 GPU on node {socket.gethostname()}, but torch finds no CUDA device"):
        EncodeStage(lambda device: device, "auto", lambda: data_schema(row_metadata()), 0.5, 1, None)


@pytest.mark.parametrize("given", ["", "/elsewhere"])
def test_compiled_code_is_kept_where_no_other_user_can_write(monkeypatch, given):
    """torch runs the code that it finds in its cache, by default below a folder that any user may make first."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", given)
    if not given:
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    EncodeStage(lambda device: device, "auto", lambda: data_schema(row_metadata()), 0, 1, None)
    folder = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert str(folder) == given if given else stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
