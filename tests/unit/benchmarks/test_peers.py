import numpy as np
import pytest
import torch

from inpaint_encode import load_vae
from inpaint_encode.core.transform import grow_mask
from inpaint_encode.settings import VaeSource
from jobs.benchmarks.fake_vae import FakeVae
from jobs.benchmarks.peers.loader import LOADER
from jobs.benchmarks.peers.script import SCRIPT
from jobs.benchmarks.peers.task import Task

from .reference import LoadVae, decoded, expected

pytestmark = pytest.mark.parametrize("peer", [SCRIPT, LOADER], ids=lambda peer: peer.name)


def test_values_follow_the_contract(peer, pairs, vae_folder, tmp_path):
    vae = load_vae(VaeSource(vae=vae_folder))
    peer.run(Task(pairs, LoadVae(vae_folder), tmp_path))
    assert len(list(tmp_path.rglob("*.npz"))) == len(pairs)
    for pair in pairs:
        samples, noise_mask = expected(pair, vae)
        with np.load(tmp_path / f"{pair.key}.npz") as written:
            np.testing.assert_array_equal(written["noise_mask"], noise_mask, strict=True)
            np.testing.assert_allclose(written["samples"], samples, atol=1e-3, strict=True)


def test_a_fake_vae_replaces_the_vae(peer, pairs, tmp_path):
    peer.run(Task(pairs, FakeVae, tmp_path, grow_mask_by=3))
    for pair in pairs:
        pixels, mask = decoded(pair)
        with np.load(tmp_path / f"{pair.key}.npz") as written:
            latents = FakeVae().encode_uint8(pixels[None], mask[None])[0]
            np.testing.assert_allclose(written["samples"], latents, atol=1e-3)
            np.testing.assert_array_equal(written["noise_mask"][0], grow_mask(torch.from_numpy(mask), 3))
