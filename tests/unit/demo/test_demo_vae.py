"""The demonstration's VAE has the measurements of its card, and its training is repeatable."""

import json
import re

import pytest
import skimage.data
import torch
from safetensors import safe_open
from torch.nn import functional

from inpaint_encode.demo import VAE
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import latent_channels, vae_scale_factor
from tests.demo_vae import pictures
from tests.demo_vae.measure import Figures, cropped, measured, psnr, through
from tests.demo_vae.sources import HELD_OUT, TRAINED_ON
from tests.demo_vae.train import Recipe, train

CARD = (VAE / "README.md").read_text()
WEIGHTS = VAE / "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def vae():
    return load_vae(VAE)


@pytest.fixture(scope="module")
def figures(vae) -> Figures:
    return measured(vae)


class TestWhatIsShipped:
    def test_it_is_small_and_of_ratio_8(self, vae):
        assert {path.name for path in VAE.iterdir()} == {"README.md", "config.json", WEIGHTS.name}
        assert WEIGHTS.stat().st_size <= 620_000
        with safe_open(WEIGHTS, "pt") as weights:
            assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118
        assert (vae_scale_factor(vae), latent_channels(vae)) == (8, 16)

    def test_photographs_that_it_never_saw_are_recognisable(self, figures):
        assert figures.coffee_psnr >= 27.5
        assert figures.chelsea_psnr >= 31.5
        assert figures.colour_off <= 1
        assert figures.sample_loss <= 0.1

    def test_grey_stays_grey_and_bleeds_nowhere(self, figures):
        assert figures.strokes_loss <= 1
        assert figures.strokes_off <= 0.5
        assert figures.rectangle_off <= 3

    def test_no_blob_in_a_corner_and_no_tint(self, figures):
        assert figures.grey_off <= 4.5
        assert figures.corner_off <= 4
        assert figures.tint <= 2.5

    def test_what_surrounds_a_piece_changes_little_of_it(self, vae):
        """Its norms see all of an image; nearly nothing may come of it."""
        photo = cropped("coffee.png")
        piece = through(vae, photo[..., 128:320, 128:320])[..., 64:128, 64:128]
        assert psnr(through(vae, photo)[..., 192:256, 192:256], piece) > 45

    def test_the_scaling_factor_brings_latents_to_about_one(self, vae):
        latents = vae.encode(cropped("astronaut.png")).latent_dist.mode()
        assert float(latents.std()) * vae.config.scaling_factor == pytest.approx(1, abs=0.15)


class TestCard:
    def test_its_figures_are_measured(self, figures):
        """To the last digit they are of one kind of processor."""
        stated = [float(one) for one in re.findall(r"(\d+\.\d+) (?:dB|levels|in the first)", CARD)]
        assert stated == pytest.approx(figures[1:], abs=0.1)
        assert f"{figures.parameters:,} parameters, {WEIGHTS.stat().st_size:,} bytes" in CARD

    def test_it_lists_the_photographs_that_the_script_reads(self):
        rows = [f"| {photo.file} | trained on | {photo.licence} |" for photo in TRAINED_ON]
        rows += [f"| {photo.file} | held out | {photo.licence} |" for photo in HELD_OUT]
        assert [line for line in CARD.splitlines() if re.match(r"\| \S+ \| (trained on|held out) \|", line)] == rows


class TestSources:
    @pytest.mark.parametrize("photo", [*TRAINED_ON, *HELD_OUT], ids=lambda photo: photo.file)
    def test_a_licence_is_in_the_words_of_scikit_image(self, photo):
        assert photo.licence in " ".join(getattr(skimage.data, photo.loader).__doc__.split())
        assert re.search("public domain|CC0", photo.licence, re.IGNORECASE)

    def test_only_these_are_opened_to_learn_from(self, monkeypatch):
        opened, read = [], pictures.photograph
        monkeypatch.setattr(pictures, "photograph", lambda name: (opened.append(name), read(name))[1])
        pictures.Pictures(0)
        assert opened == [photo.file for photo in TRAINED_ON]
        assert not {photo.file for photo in HELD_OUT} & set(opened)


class TestTraining:
    def test_the_same_seed_gives_the_same_weights(self):
        recipe = Recipe(steps=3, batches=((2, 32),), initial_pieces=(4, 64))
        threads, state = torch.get_num_threads(), torch.get_rng_state()
        first, again, other = (train(recipe._replace(seed=seed)).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not all(torch.equal(first[name], other[name]) for name in first)
        assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)

    def test_it_starts_from_a_codec_that_works(self):
        """Without a step it is linear, and better than the means of 8 x 8 pixels, drawn smoothly."""
        photo = cropped("coffee.png")
        means = functional.interpolate(functional.avg_pool2d(photo, 8), scale_factor=8, mode="bilinear")
        start = train(Recipe(steps=0, initial_pieces=(16, 128)))
        assert psnr(through(start, photo), photo) > psnr(means, photo) + 1

    def test_its_configuration_is_that_of_the_recipe(self):
        config = json.loads((VAE / "config.json").read_text())
        assert tuple(config["block_out_channels"]) == Recipe(steps=0).widths
        assert config["latent_channels"] == Recipe(steps=0).latent_channels
