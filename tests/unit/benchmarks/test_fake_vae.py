import time

import numpy as np

from jobs.benchmarks.fake_vae import FakeVae
from jobs.benchmarks.peers.steps import prepare

from .reference import decoded


def test_arrays_and_tensors_give_the_same_latents(pairs):
    pixels, mask = decoded(pairs[1])
    from_array = FakeVae().encode_uint8(pixels[None], mask[None])
    from_tensor = FakeVae()(prepare(pairs[1]).pixels[None])
    assert (from_array.shape, from_array.dtype) == ((1, 4, 7, 10), np.float16)
    np.testing.assert_allclose(from_array, from_tensor.numpy(), atol=1e-3)


def test_masked_pixels_are_grey():
    pixels = np.full((2, 16, 24, 3), 255, np.uint8)
    mask = np.zeros((2, 16, 24), np.uint8)
    mask[1, 8:, 16:] = 1
    latents = FakeVae().encode_uint8(pixels, mask)
    assert (latents[0] == 1).all()
    assert (latents[1, :, 1, 2] == 0).all()
    assert (latents == 1).sum() == latents.size - 4


def test_sleep_changes_no_value(pairs, monkeypatch):
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)
    pixels, mask = decoded(pairs[0])
    latents = FakeVae(0.05).encode_uint8(pixels[None].repeat(2, 0), mask[None].repeat(2, 0))
    assert slept == [0.1]
    np.testing.assert_array_equal(latents[:1], FakeVae().encode_uint8(pixels[None], mask[None]))
