"""Positions of tiles, and tiled encoding against whole encoding."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from inpaint_encode.vae.encode import posterior
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.properties import crop_multiple
from inpaint_encode.vae.tiles import tile_starts, tiled_posterior
from tests.vaes import small_vae


@pytest.mark.parametrize(("length", "tile", "multiple"), [(520, 512, 8), (1024, 512, 8), (4000, 512, 16), (96, 64, 32)])
def test_tiles_cover_a_side_evenly_and_overlap_by_a_quarter(length, tile, multiple):
    starts = tile_starts(length, tile, multiple)
    assert (starts[0], starts[-1] + tile) == (0, length)
    assert all(start % multiple == 0 for start in starts)
    steps = [after - before for before, after in pairwise(starts)]
    assert max(steps) - min(steps) <= multiple
    assert max(steps) <= tile - tile // 4 + multiple // 2


def test_one_tile_covers_a_shorter_side():
    assert tile_starts(504, 512, 8) == [0]


class Cells(nn.Module):
    """An encoder whose latent values depend on their own 8 x 8 pixels only."""

    def forward(self, pixels):
        means = nn.functional.avg_pool2d(pixels, 8)
        return torch.cat([means, means.flip(1), means[:, :2]], dim=1)


@pytest.mark.parametrize("size", [(72, 200), (64, 64), (128, 40), (104, 96)])
def test_tiles_of_a_local_encoder_give_the_same_as_the_whole_image(vae_folder, size):
    vae = load_vae(vae_folder)
    vae.encoder = Cells()
    pixels = torch.rand(2, *size, 3)
    whole, tiled = posterior(vae, pixels), tiled_posterior(vae, pixels, 64, 8)
    for expected, found in zip(whole, tiled, strict=True):
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("name", ["Wan 2.1", "AutoencoderKLFlux2", "AutoencoderDC"])
def test_every_kind_of_output_can_be_tiled(name):
    vae = small_vae(name)
    multiple = crop_multiple(vae)
    pixels = torch.rand(2, 3 * multiple, 5 * multiple, 3)
    whole, tiled = posterior(vae, pixels), tiled_posterior(vae, pixels, 3 * multiple + 1, multiple)
    assert (tiled.logvar is None) == (name == "AutoencoderDC")
    for expected, found in zip(whole, tiled, strict=True):
        if expected is not None:
            assert found.shape == expected.shape
            assert bool(found.isfinite().all())


def test_tiles_blend_without_a_seam(vae_folder):
    """Where two tiles differ by a constant, the blend changes gradually."""

    class Numbered(nn.Module):
        given = 0

        def forward(self, pixels):
            self.given += 1
            return torch.full((len(pixels), 8, pixels.shape[2] // 8, pixels.shape[3] // 8), float(self.given))

    vae = load_vae(vae_folder)
    vae.encoder, vae.quant_conv = Numbered(), None
    row = tiled_posterior(vae, torch.rand(1, 64, 112, 3), 64, 8).mean[0, 0, 0]
    assert row[0] == 1
    assert row[-1] == 2
    steps = row.diff()
    assert bool((steps >= 0).all())
    assert float(steps.max()) < 1
