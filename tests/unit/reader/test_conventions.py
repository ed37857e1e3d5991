"""Rows in the conventions of diffusers and ComfyUI, and the differences to diffusers' own preprocessing."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.image_processor import VaeImageProcessor
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image
from torch.utils.data import default_collate

from inpaint_encode.core.transform import mask_image, resize_mask
from inpaint_encode.errors import UsageError
from inpaint_encode.reader import Output
from inpaint_encode.reader.conventions import (
    for_comfyui,
    for_diffusers,
    inpaint_input,
    latent_mask,
    pack_latent,
)
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import to_vae_range
from inpaint_encode.vae.latents import to_scaled, to_unscaled
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata
from tests.local import encode_here, tensor_rows, write_pairs
from tests.metadata import metadata_for
from tests.vaes import KL, small_vae

SCALE = 0.18215
IMAGES = VaeImageProcessor(vae_scale_factor=8)
MASKS = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
"""The processors of diffusers' inpainting pipelines."""


def drawn_pairs():
    rng = np.random.default_rng(0)
    sizes = {"even": ((64, 96), (64, 96)), "odd": ((71, 107), (71, 107)), "larger": ((64, 96), (128, 192))}
    pairs = {}
    for key, (image, mask) in sizes.items():
        levels = rng.integers(0, 256, (*image, 3), np.uint8)
        blobs = Image.fromarray(rng.integers(0, 2, (9, 13), np.uint8) * 255).resize(
            mask[::-1], Image.Resampling.NEAREST
        )
        pairs[key] = levels, np.asarray(blobs)
    return pairs


@pytest.fixture(scope="module", autouse=True)
def threads():
    """Restore torch's threads: a job sets them to one in this process."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pairs():
    return drawn_pairs()


@pytest.fixture(scope="module")
def made(tmp_path_factory, make_job, pairs):
    """Run a job with these options, once; return its rows by key, and their metadata."""
    source = tmp_path_factory.mktemp("pairs") / "in"
    write_pairs(source, pairs)
    done = {}

    def make(**asked):
        name = repr(sorted(asked.items()))
        if name not in done:
            output = tmp_path_factory.mktemp("out") / "latents"
            encode_here(
                make_job(source / "images", source / "masks", output, **{"grow_mask_by": 0, "batch_size": 1} | asked)
            )
            done[name] = tensor_rows(str(output)), Output.open(str(output)).metadata
        return done[name]

    return make


@pytest.fixture
def vae(vae_folder):
    return load_vae(VaeSource(vae=vae_folder))


def preprocessed(pair):
    """Image, mask and masked image as diffusers' pipelines preprocess them: ``[1, 3 or 1, H, W]``."""
    image, mask = (Image.fromarray(array) for array in pair)
    size = {"height": image.height // 8 * 8, "width": image.width // 8 * 8}
    image, mask = IMAGES.preprocess(image, **size), MASKS.preprocess(mask, **size)
    return image, mask, image * (mask < 0.5)


def posterior_of(vae, pixels):
    with torch.no_grad():
        return vae.encode(pixels.contiguous()).latent_dist  # a transposed one is summed in another order


def metadata_of_a(name, **settings):
    """Return the metadata of rows that a small VAE of this name makes."""
    return metadata_for(small_vae(name), **settings)


def row_of(channels, height=4, width=6, ratio=8):
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(channels, height, width, generator=generator)
    pixels = torch.rand(1, height * ratio, width * ratio, generator=generator)
    return {"samples": samples, "noise_mask": (pixels < 0.5).to(torch.uint8)}


class TestForDiffusers:
    def test_means_are_scaled_and_masks_are_nearest(self, made, pairs, vae):
        rows, metadata = made(also_original=True)
        row = rows["even"]
        before = copy.deepcopy(row)
        found = for_diffusers(row, metadata)
        image, mask, masked = preprocessed(pairs["even"])
        assert list(found) == ["latents", "masked_image_latents", "mask"]
        assert {(value.dtype, value.is_contiguous()) for value in found.values()} == {(torch.float32, True)}
        assert torch.equal(found["mask"], mask[0, :, ::8, ::8])
        assert torch.equal(found["latents"], posterior_of(vae, image).mode()[0] * SCALE)
        assert torch.equal(found["masked_image_latents"], posterior_of(vae, masked).mode()[0] * SCALE)
        for value in found.values():
            value.zero_()
        assert all(torch.equal(row[name], before[name]) for name in ("samples", "original_samples", "noise_mask"))

    def test_moments_are_means_or_drawn_as_diffusers_draws(self, made):
        rows, metadata = made(also_original=True, posterior="moments")
        row = rows["even"]
        means = for_diffusers(row, metadata)
        assert torch.equal(means["latents"], row["original_samples"][:4] * SCALE)
        assert torch.equal(means["masked_image_latents"], row["samples"][:4] * SCALE)
        drawn = for_diffusers(row, metadata, generator=torch.Generator().manual_seed(5))
        again = torch.Generator().manual_seed(5)
        for name, column in (("latents", "original_samples"), ("masked_image_latents", "samples")):
            one = DiagonalGaussianDistribution(row[column][None]).sample(again)[0] * SCALE
            assert torch.equal(drawn[name], one)
            assert not torch.allclose(one, means[name], atol=1e-3)
        assert torch.equal(drawn["mask"], means["mask"])

    def test_moments_in_half_precision_become_float32_before_they_are_drawn(self, made):
        rows, metadata = made(posterior="moments", samples_dtype="float16")
        row = rows["even"]
        assert row["samples"].dtype == torch.float16
        drawn = for_diffusers(row, metadata, with_latents=False, generator=torch.Generator().manual_seed(5))
        expected = DiagonalGaussianDistribution(row["samples"].float()[None]).sample(torch.Generator().manual_seed(5))
        assert torch.equal(drawn["masked_image_latents"], expected[0] * SCALE)

    def test_stored_scaled_latents_are_not_scaled_twice(self, made):
        (plain, made_plain), (scaled, made_scaled) = made(also_original=True), made(also_original=True, scaled=True)
        for key, row in scaled.items():
            found, expected = for_diffusers(row, made_scaled), for_diffusers(plain[key], made_plain)
            assert torch.equal(found["latents"], row["original_samples"])
            assert found["latents"].data_ptr() != row["original_samples"].data_ptr()
            assert all(torch.equal(found[name], expected[name]) for name in expected)

    def test_samples_drawn_by_the_job_are_only_scaled(self, made):
        rows, metadata = made(posterior="sample", posterior_seed=3)
        found = for_diffusers(rows["even"], metadata, with_latents=False)
        assert torch.equal(found["masked_image_latents"], rows["even"]["samples"] * SCALE)

    @pytest.mark.parametrize("name", ["SD 3", "Wan 2.2", "AutoencoderKLFlux2", "AutoencoderTiny"])
    def test_each_model_has_its_own_scaling(self, name):
        metadata = metadata_of_a(name, shift_factor=0.0609) if name == "SD 3" else metadata_of_a(name)
        row = row_of(metadata.vae.latent_channels, ratio=metadata.vae.vae_scale_factor)
        expected = {
            "SD 3": (row["samples"] - 0.0609) * SCALE,
            "Wan 2.2": (row["samples"] - 0.1) / 2.0,
            "AutoencoderKLFlux2": row["samples"],
            "AutoencoderTiny": row["samples"],
        }
        found = for_diffusers(row, metadata, with_latents=False)
        assert torch.equal(found["masked_image_latents"], expected[name])
        assert found["mask"].shape == (1, 4, 6)

    def test_vae_family_gives_an_unknown_scaling(self):
        metadata = metadata_of_a("AutoencoderKL", scaling_factor=None)
        row = row_of(4)
        with pytest.raises(UsageError, match=r"for_diffusers needs the scaling of a/test, .* vae_family='sdxl'"):
            for_diffusers(row, metadata, with_latents=False)
        found = for_diffusers(row, metadata, with_latents=False, vae_family="sdxl")
        assert torch.equal(found["masked_image_latents"], row["samples"] * 0.13025)

    @pytest.mark.parametrize(
        ("changes", "options", "message"),
        [
            ({}, {}, "no original_samples, which latents need; encode with --also-original"),
            ({}, {"generator": torch.Generator()}, "stores posterior mean; encode with --posterior moments"),
            ({"posterior": "sample"}, {"generator": torch.Generator()}, "stores posterior sample"),
            ({}, {"vae_family": "sdxl"}, "vae_family 'sdxl' does not fit a/test, whose scaling_factor is 0.18215"),
            (
                {},
                {"vae_family": "flux1"},
                "vae_family 'flux1' does not fit a/test, an AutoencoderKL with 4 latent channels",
            ),
            ({}, {"vae_family": "sd9"}, "known families are sd1, sdxl, sd3, flux1, x4-upscaler"),
            ({}, {"layout": "flux"}, "layout is 'flux'; it must be one of channels, flux_fill"),
            ({"latent_form": "packed"}, {"layout": "flux_fill"}, "already packed"),
            ({"latents_mean": (0.0,) * 16, "latents_std": (1.0,) * 16}, {}, "--flux2-latents packed"),
        ],
    )
    def test_impossible_options_are_errors_before_a_row_is_read(self, changes, options, message):
        whole = metadata_of_a("AutoencoderKL", **changes)
        options = options if "original" in message else {"with_latents": False, **options}
        with pytest.raises(UsageError, match=message):
            for_diffusers({}, whole, **options)


class TestLatentMask:
    def test_the_stored_mask_is_the_mask_before_growing(self, made):
        grown, made_grown = made(grow_mask_by=6)
        both, made_both = made(grow_mask_by=6, latent_mask="diffusers")
        none, made_none = made()
        for key in grown:
            first = none[key]["noise_mask"][:, ::8, ::8].float()
            assert torch.equal(latent_mask(none[key], made_none, "diffusers"), first)
            assert torch.equal(latent_mask(both[key], made_both, "diffusers"), first)
            assert torch.equal(
                latent_mask(grown[key], made_grown, "diffusers"), grown[key]["noise_mask"][:, ::8, ::8].float()
            )
            assert latent_mask(grown[key], made_grown, "diffusers").sum() > first.sum()

    def test_comfyui_averages_the_central_pixels_whether_stored_or_computed(self, made):
        rows, metadata = made(grow_mask_by=6, latent_mask="comfyui")
        row = rows["odd"]
        whole = row["noise_mask"].float()
        middle = (whole[:, 3::8, 3::8] + whole[:, 3::8, 4::8] + whole[:, 4::8, 3::8] + whole[:, 4::8, 4::8]) / 4
        assert torch.equal(latent_mask(row, metadata, "comfyui"), middle)
        assert torch.equal(latent_mask(row, replace(metadata, latent_mask="none"), "comfyui"), middle)
        assert torch.equal(latent_mask(row, metadata, "diffusers"), whole[:, ::8, ::8])
        latent_mask(row, metadata, "comfyui").zero_()
        assert row["latent_mask"].any()


class TestInpaintInput:
    def test_channels_are_noise_then_mask_then_masked_image(self):
        metadata = metadata_of_a("AutoencoderKL")
        one = for_diffusers(row_of(4), metadata, with_latents=False)
        noise = torch.randn(4, 4, 6)
        whole = inpaint_input(noise, one)
        assert whole.shape == (9, 4, 6)
        for part, expected in ((whole[:4], noise), (whole[4:5], one["mask"]), (whole[5:], one["masked_image_latents"])):
            assert torch.equal(part, expected)
        batch = inpaint_input(torch.stack([noise, noise]), default_collate([one, one]))
        assert torch.equal(batch, torch.stack([whole, whole]))

    def test_flux_fill_is_a_sequence_of_patches_with_every_pixel_of_the_mask(self):
        metadata = metadata_of_a("SD 3", scaling_factor=1.0)
        row = row_of(16)
        one = for_diffusers(row, metadata, layout="flux_fill", with_latents=False)
        noise = torch.randn(16, 4, 6)
        whole = inpaint_input(pack_latent(noise), one, layout="flux_fill")
        assert whole.shape == (2 * 3, 384)
        top, left = 2, 4  # of the patch in the second row and the third column
        patch = whole[1 * 3 + 2]
        for channel, down, right in ((0, 0, 0), (7, 1, 0), (15, 0, 1)):
            at = 4 * channel + 2 * down + right
            assert patch[at] == noise[channel, top + down, left + right]
            assert patch[64 + at] == row["samples"][channel, top + down, left + right]
        for y, x, down, right in ((0, 0, 0, 0), (5, 2, 1, 0), (7, 7, 1, 1)):
            at = 4 * (8 * y + x) + 2 * down + right
            assert patch[128 + at] == row["noise_mask"][0, 8 * (top + down) + y, 8 * (left + right) + x]
        batch = inpaint_input(torch.stack([pack_latent(noise)] * 2), default_collate([one, one]), layout="flux_fill")
        assert torch.equal(batch[1], whole)

    def test_flux_fill_packs_the_latents_of_the_image_too(self, made):
        rows, metadata = made(also_original=True)
        found = for_diffusers(rows["even"], metadata, layout="flux_fill")
        expected = for_diffusers(rows["even"], metadata)
        assert list(found) == ["latents", "masked_image_latents", "mask"]
        for name in ("latents", "masked_image_latents"):
            assert torch.equal(found[name], pack_latent(expected[name]))
        assert found["mask"].sum() == rows["even"]["noise_mask"].sum()

    def test_an_odd_side_cannot_be_split_into_patches(self):
        metadata = metadata_of_a("SD 3")
        with pytest.raises(UsageError, match=r"a latent of 6 x 5 .* multiples of 16 pixels"):
            for_diffusers(row_of(16, height=5), metadata, layout="flux_fill", with_latents=False)


class TestForComfyui:
    def test_a_latent_is_a_batch_of_one_and_not_scaled(self, made):
        rows, metadata = made(grow_mask_by=6, also_original=True, samples_dtype="float16")
        row = rows["odd"]
        found = for_comfyui(row, metadata)
        assert {name: (value.shape, value.dtype) for name, value in found.items()} == {
            "samples": ((1, 4, 8, 13), torch.float32),
            "noise_mask": ((1, 1, 64, 104), torch.float32),
        }
        assert torch.equal(found["samples"][0], row["samples"].float())
        assert torch.equal(found["noise_mask"][0], row["noise_mask"].float())
        original = for_comfyui(row, metadata, original=True)
        assert torch.equal(original["samples"][0], row["original_samples"].float())
        found["samples"].zero_()
        assert row["samples"].any()

    def test_scaled_rows_are_unscaled(self, made):
        (plain, made_plain), (scaled, made_scaled) = made(also_original=True), made(also_original=True, scaled=True)
        for key, row in scaled.items():
            found, expected = for_comfyui(row, made_scaled), for_comfyui(plain[key], made_plain)
            assert torch.allclose(found["samples"], expected["samples"], atol=1e-5)
            assert not torch.allclose(row["samples"], plain[key]["samples"], atol=1e-2)

    def test_moments_give_their_mean(self, made):
        rows, metadata = made(posterior="moments")
        assert torch.equal(for_comfyui(rows["even"], metadata)["samples"][0], rows["even"]["samples"][:4])

    @pytest.mark.parametrize("name", ["AutoencoderTiny", "AutoencoderKLFlux2"])
    @pytest.mark.parametrize("scaled", [False, True])
    def test_latents_in_the_denoiser_s_space_are_not_changed(self, name, scaled):
        metadata = metadata_of_a(name, scaling_factor=0.5, scaled=scaled)
        row = row_of(metadata.vae.latent_channels, ratio=metadata.vae.vae_scale_factor)
        found = for_comfyui(row, metadata)["samples"]
        assert torch.equal(found[0], row["samples"])
        assert found.data_ptr() != row["samples"].data_ptr()

    def test_original_needs_original_samples(self):
        with pytest.raises(UsageError, match=r"for_comfyui: the output has no original_samples; .* --also-original"):
            for_comfyui(row_of(4), metadata_of_a("AutoencoderKL"), original=True)


@pytest.mark.parametrize("name", ["AutoencoderKL", "SD 3", "Wan 2.2", "AutoencoderKLFlux2", "AutoencoderTiny"])
def test_to_unscaled_reverts_to_scaled(name):
    vae = small_vae(name)
    if name == "SD 3":
        vae.register_to_config(scaling_factor=1.5305, shift_factor=0.0609)
    facts = vae_metadata(vae, VaeSource(vae="a/test"))
    samples = torch.randn(2, facts.latent_channels, 3, 5)
    scaled = to_scaled(samples, facts)
    assert torch.equal(scaled, samples) == (facts.latent_form != "unscaled")
    assert torch.allclose(to_unscaled(scaled, facts), samples, atol=1e-5)


def test_latents_scaled_by_statistics_are_unscaled(tmp_path, make_job, pairs):
    """Through the whole job: the metadata has the form of the rows and the statistics."""
    write_pairs(tmp_path / "in", {"even": pairs["even"]})
    config = KL | {"latents_mean": [0.5, -1.0, 0.25, 2.0], "latents_std": [0.5, 2.0, 4.0, 8.0], "scaling_factor": 0.5}
    torch.manual_seed(0)
    AutoencoderKL(**config).save_pretrained(tmp_path / "vae")
    made = {}
    for name, scaled in (("plain", False), ("scaled", True)):
        asked = {"vae": str(tmp_path / "vae"), "scaled": scaled}
        output = encode_here(make_job(tmp_path / "in/images", tmp_path / "in/masks", tmp_path / name, **asked))
        made[name] = tensor_rows(output)["even"], Output.open(output).metadata
    (plain, made_plain), (scaled, made_scaled) = made["plain"], made["scaled"]
    mean, std = (torch.tensor(config[name]).view(4, 1, 1) for name in ("latents_mean", "latents_std"))
    found = for_diffusers(plain, made_plain, with_latents=False)["masked_image_latents"]
    assert torch.equal(found, (plain["samples"] - mean) / std * 0.5)
    assert torch.allclose(for_diffusers(scaled, made_scaled, with_latents=False)["masked_image_latents"], found)
    assert torch.allclose(for_comfyui(scaled, made_scaled)["samples"][0], plain["samples"], atol=1e-5)


class TestDifferences:
    """Differences to diffusers' own preprocessing of the same files, one per line of the README's table."""

    def test_none_if_sizes_are_multiples_and_the_mask_does_not_grow(self, made, pairs):
        rows, _ = made()
        _, mask, _ = preprocessed(pairs["even"])
        assert torch.equal(rows["even"]["noise_mask"][None].float(), mask)

    def test_other_sizes_are_cropped_here_and_resized_there(self, made, pairs):
        rows, _ = made()
        row, mask = rows["odd"], pairs["odd"][1]
        _, resized, _ = preprocessed(pairs["odd"])
        cropped = torch.from_numpy(mask[3:67, 1:105] > 127)
        assert (row["crop_top"], row["crop_left"]) == (3, 1)
        assert torch.equal(row["noise_mask"][0] > 0, cropped)
        assert resized.shape[2:] == cropped.shape
        assert not torch.equal(resized[0, 0] > 0, cropped)

    def test_the_mask_grows_here_and_the_masked_area_does_not(self, made):
        (grown, _), (plain, _) = made(grow_mask_by=6), made()
        for key, row in grown.items():
            assert torch.equal(row["samples"], plain[key]["samples"])
            assert row["noise_mask"].sum() > plain[key]["noise_mask"].sum()

    def test_masks_of_other_sizes_are_bilinear_here_and_lanczos_there(self, made, pairs):
        rows, _ = made()
        levels = torch.from_numpy(pairs["larger"][1] / np.float32(255))[None]
        bilinear = resize_mask(levels, 64, 96)
        _, lanczos, _ = preprocessed(pairs["larger"])
        assert torch.equal(rows["larger"]["noise_mask"].float(), bilinear.round())
        assert not torch.equal(rows["larger"]["noise_mask"][None].float(), lanczos)

    def test_exactly_half_is_kept_here_and_repainted_there(self, made, pairs):
        rows, _ = made()
        half = resize_mask(torch.from_numpy(pairs["larger"][1] / np.float32(255))[None], 64, 96)[None] == 0.5
        there = MASKS.preprocess(torch.full((1, 1, 8, 8), 0.5))
        assert half.any()
        assert not rows["larger"]["noise_mask"][None][half].any()
        assert there.all()

    def test_none_in_the_masked_image(self):
        """Pixels are masked around 0.5 here and around 0 there; the VAE gets the same values for every level."""
        levels = torch.arange(256, dtype=torch.float32).view(1, 16, 16, 1).expand(1, 16, 16, 3) / 255
        for repainted in (0.0, 1.0):
            here = to_vae_range(mask_image(levels, torch.full((1, 16, 16), repainted)))
            there = IMAGES.preprocess(levels.permute(0, 3, 1, 2)) * (repainted < 0.5)
            assert torch.equal(here, there)

    def test_float16_is_rounded(self, made):
        (halves, metadata), (whole, _) = made(samples_dtype="float16"), made()
        found = for_diffusers(halves["even"], metadata, with_latents=False)["masked_image_latents"]
        expected = for_diffusers(whole["even"], metadata, with_latents=False)["masked_image_latents"]
        assert 0 < ((found - expected) / expected).abs().max() <= 2**-11
