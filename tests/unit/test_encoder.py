"""Batches on a device, without Ray: what is launched ahead, and by several threads, is what one by one gives."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from inpaint_encode import encode_for_inpaint, load_vae
from inpaint_encode.batch import Batch
from inpaint_encode.encoder import BatchEncoder
from inpaint_encode.rows import pack_mask
from inpaint_encode.settings import RowSettings, VaeSource


@pytest.fixture(scope="module")
def encoder(vae_folder):
    settings = RowSettings(samples_dtype="float32", grow_mask_by=5)
    return BatchEncoder(load_vae(VaeSource(vae=vae_folder)), settings, torch.device("cpu"), compiled=False)


def batch_of(seed: int, count: int = 2, height: int = 24, width: int = 32):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    masks = rng.integers(0, 2, (count, height, width), np.uint8)
    batch = Batch(height, width, [one.reshape(-1) for one in pixels], [pack_mask(mask) for mask in masks])
    return pixels, masks, batch


def test_a_batch_is_the_contract(encoder, vae_folder):
    pixels, masks, batch = batch_of(0)
    found = encoder.launch(batch).result()
    vae = load_vae(VaeSource(vae=vae_folder))
    expected = encode_for_inpaint(torch.from_numpy(pixels) / 255, torch.from_numpy(masks).float(), vae, 5)
    assert np.array_equal(found.noise_mask, expected.noise_mask[:, 0].numpy())
    assert np.abs(found.samples - expected.samples.numpy()).max() <= 1e-5
    assert found.finite.all()
    assert found.seconds.keys() == {"copy", "encode", "copy_back"}


def test_what_is_launched_ahead_by_many_threads_is_the_same(encoder):
    batches = [batch_of(seed)[2] for seed in range(12)]
    alone = [encoder.launch(batch).result().samples for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        launched = list(threads.map(encoder.launch, batches))
    assert all(np.array_equal(one.result().samples, samples) for one, samples in zip(launched, alone, strict=True))


def test_what_is_not_finite_is_told_by_row(vae_folder):
    vae = load_vae(VaeSource(vae=vae_folder))
    vae.quant_conv.weight.mul_(1e7)
    encoder = BatchEncoder(vae, RowSettings(samples_dtype="float16"), torch.device("cpu"), compiled=False)
    _, _, batch = batch_of(1)
    grey = batch._replace(masks=[batch.masks[0], pack_mask(np.ones((24, 32), np.uint8))])
    found = encoder.launch(grey).result()
    assert found.finite.tolist() == [bool(np.isfinite(row).all()) for row in found.samples]
    assert not found.finite[0]


def test_an_error_of_the_device_comes_with_the_result(encoder):
    wrong = batch_of(2, height=24, width=32)[2]._replace(height=2, width=384)
    launched = encoder.launch(wrong)
    with pytest.raises(RuntimeError):
        launched.result()
    assert encoder.launch(batch_of(3)[2]).result().finite.all()
