"""Batches on a device, without Ray: what comes out is the contract, whatever is asked for, in whatever order."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inpaint_encode import encode_for_inpaint, load_vae
from inpaint_encode.core.batch import Batch, OutOfMemory
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.core.out_of_memory import OomAdaptiveVae, cast_copy
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import posterior, to_vae_range
from inpaint_encode.vae.latents import check_supported, standard_normal
from inpaint_encode.vae.registry import crop_multiple, vae_metadata
from tests.metadata import metadata_for, row_metadata
from tests.vaes import SMALL, small_vae

HEIGHT, WIDTH = 24, 32

FIRST = [-0.6293669, 1.8853357, -1.3100953, -2.2523086]
"""The first values of a draw: they must not change, or rows of one output would be draws of two kinds."""


@pytest.fixture
def vae(vae_folder):
    return load_vae(VaeSource(vae=vae_folder))


@pytest.fixture
def overflowing(vae):
    """Overflows in float16 on all that is not gray, in its first layer; in float32 a norm makes it small again."""
    vae.encoder.conv_in.weight.mul_(3e5)
    return vae


@pytest.fixture(scope="module")
def plain(vae_folder):
    return encoder_of(load_vae(VaeSource(vae=vae_folder)), grow_mask_by=5)


def encoder_of(vae, **settings):
    metadata = metadata_for(vae, **{"samples_dtype": "float32", **settings})
    return BatchEncoder(vae, metadata, torch.device("cpu"), compiled=False)


def batch_of(seed: int, count: int = 2, height: int = HEIGHT, width: int = WIDTH):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (count, height, width, 3), np.uint8)
    masks = rng.integers(0, 2, (count, height, width), np.uint8)
    packed = [np.packbits(mask) for mask in masks]
    batch = Batch(
        height, width, [one.reshape(-1) for one in pixels], packed, [f"key/{index}" for index in range(count)]
    )
    return pixels, masks, batch


def posterior_of(vae, pixels):
    """What diffusers says of levels ``[B, H, W, 3]``, not grayed."""
    with torch.inference_mode():
        return vae.encode(to_vae_range(torch.from_numpy(pixels) / 255)).latent_dist


def test_a_batch_is_the_contract(plain, vae):
    pixels, masks, batch = batch_of(0)
    found = plain.launch(batch).result()
    expected = encode_for_inpaint(torch.from_numpy(pixels) / 255, torch.from_numpy(masks).float(), vae, 5)
    assert np.array_equal(found.noise_mask, expected.noise_mask[:, 0].numpy())
    assert np.abs(found.samples - expected.samples.numpy()).max() <= 1e-5
    assert found.finite.all()
    assert found.fits_stored_dtype.all()
    assert found.seconds.keys() == {"copy", "encode", "copy_back"}
    assert (found.original_samples, found.latent_mask) == (None, None)
    assert (any(found.tiled), list(found.in_float32), found.oom_steps) == (False, [], 0)


def test_what_is_launched_ahead_by_many_threads_is_the_same(plain):
    batches = [batch_of(seed)[2] for seed in range(12)]
    alone = [plain.launch(batch).result().samples for batch in batches]
    with ThreadPoolExecutor(4) as threads:
        launched = list(threads.map(plain.launch, batches))
    assert all(np.array_equal(one.result().samples, samples) for one, samples in zip(launched, alone, strict=True))


def test_an_error_of_the_device_comes_with_the_result(plain):
    wrong = batch_of(2, height=24, width=32)[2]._replace(height=2, width=384)
    launched = plain.launch(wrong)
    with pytest.raises(RuntimeError):
        launched.result()
    assert plain.launch(batch_of(3)[2]).result().finite.all()


class TestNotFinite:
    """A row that overflows is computed in float32, from the weights as they were loaded; the others stay."""

    @staticmethod
    def one_is_grey():
        _, masks, batch = batch_of(1, count=3)
        return batch._replace(masks=[batch.masks[0], np.packbits(np.ones_like(masks[1])), batch.masks[2]])

    def test_rows_that_overflow_are_those_of_float32(self, overflowing, vae_folder):
        batch = self.one_is_grey()
        exact = load_vae(VaeSource(vae=vae_folder))
        exact.encoder.conv_in.weight.mul_(3e5)
        expected = encoder_of(exact, compute_dtype="float32").launch(batch).result()
        found = encoder_of(overflowing, compute_dtype="float16", also_original=True).launch(batch).result()
        assert found.in_float32 == [0, 1, 2]  # the ungrayed latent of the gray row overflows, too
        found = encoder_of(overflowing, compute_dtype="float16").launch(batch).result()
        assert found.in_float32 == [0, 2]
        assert found.finite.all()
        assert np.abs(found.samples[[0, 2]] - expected.samples[[0, 2]]).max() <= 1e-5
        assert 0 < np.abs(found.samples[1] - expected.samples[1]).max() < 0.05

    def test_draws_and_masks_of_rows_encoded_again_are_their_own(self, overflowing):
        batch = self.one_is_grey()
        options = {"posterior": "sample", "latent_mask": "comfyui"}
        half = encoder_of(overflowing, compute_dtype="float16", **options).launch(batch).result()
        whole = encoder_of(overflowing, compute_dtype="float32", **options).launch(batch).result()
        assert half.in_float32 == [0, 2]
        assert np.abs(half.samples[[0, 2]] - whole.samples[[0, 2]]).max() <= 1e-5
        assert np.array_equal(half.latent_mask, whole.latent_mask)

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_what_float32_cannot_hold_either_stays_not_finite(self, overflowing, dtype):
        overflowing.encoder.conv_in.weight.mul_(4e33)
        found = encoder_of(overflowing, compute_dtype=dtype).launch(self.one_is_grey()).result()
        assert found.finite.tolist() == [False, True, False]
        assert list(found.in_float32) == ([0, 1, 2] if dtype == "float16" else [])

    def test_what_is_too_large_for_the_stored_type_is_no_overflow(self, vae):
        vae.quant_conv.weight.mul_(1e7)
        found = encoder_of(vae, samples_dtype="float16", compute_dtype="bfloat16").launch(batch_of(1)[2]).result()
        assert (found.finite.all(), found.fits_stored_dtype.any(), list(found.in_float32)) == (True, False, [])

    @pytest.mark.parametrize("name", SMALL)
    def test_a_cast_copy_is_the_cast_model_and_leaves_the_other(self, name):
        vae, cast = small_vae(name), small_vae(name).to(torch.bfloat16)
        before = {key: tensor.clone() for key, tensor in vae.state_dict().items()}
        copied = cast_copy(vae, torch.device("cpu"), torch.bfloat16)
        side = 2 * crop_multiple(vae)
        pixels = torch.rand(1, side, side, 3)
        assert torch.equal(posterior(copied, pixels).mean, posterior(cast, pixels).mean)
        assert all(torch.equal(tensor, before[key]) for key, tensor in vae.state_dict().items())

    def test_the_host_keeps_the_weights_as_they_were_loaded(self, vae, vae_folder):
        encoder_of(vae, compute_dtype="bfloat16").launch(batch_of(1)[2]).result()
        loaded = load_vae(VaeSource(vae=vae_folder)).state_dict()
        assert all(torch.equal(tensor, loaded[name]) for name, tensor in vae.state_dict().items())


class TestPosterior:
    """What is stored of a posterior: its mean, a draw or its moments."""

    def test_moments_are_the_means_and_then_the_log_variances(self, vae):
        pixels, _, batch = batch_of(4)
        encoder = encoder_of(vae, posterior="moments", also_original=True)
        found, expected = encoder.launch(batch).result(), posterior_of(vae, pixels)
        moments = torch.cat([expected.mean, expected.logvar], dim=1).numpy()
        assert found.samples.shape == moments.shape == found.original_samples.shape
        assert np.abs(found.original_samples - moments).max() <= 1e-5
        assert np.abs(found.samples - moments).max() > 0.01

    def test_a_draw_is_the_key_s_and_the_seed_s(self, vae):
        pixels, _, batch = batch_of(5, count=3)
        encoder = encoder_of(vae, posterior="sample", posterior_seed=7, also_original=True)
        found = encoder.launch(batch).result()
        expected = posterior_of(vae, pixels)
        for index, key in enumerate(batch.keys):
            noise = standard_normal(7, key, found.samples.shape[1:])
            drawn = expected.mean[index].numpy() + expected.std[index].numpy() * noise
            assert np.abs(found.original_samples[index] - drawn).max() <= 1e-5
        swapped = encoder.launch(batch.part([2, 0])).result()
        assert np.abs(swapped.samples - found.samples[[2, 0]]).max() <= 1e-5
        other = encoder_of(vae, posterior="sample", posterior_seed=8).launch(batch).result()
        assert np.abs(other.samples - found.samples).max() > 0.1

    def test_draws_are_normal_and_the_same_everywhere(self):
        drawn = standard_normal(0, "a/042", (4, 64, 64))
        assert drawn.dtype == np.float32
        assert abs(drawn.mean()) < 0.02
        assert abs(drawn.std() - 1) < 0.02
        assert drawn.ravel()[:4].tolist() == pytest.approx(FIRST, abs=1e-6)
        assert not np.array_equal(drawn, standard_normal(1, "a/042", (4, 64, 64)))
        assert not np.array_equal(drawn, standard_normal(0, "a/043", (4, 64, 64)))

    def test_scaled_latents_are_as_diffusers_takes_them(self, vae):
        batch = batch_of(6)[2]
        plain = encoder_of(vae).launch(batch).result()
        scaled = encoder_of(vae, scaled=True).launch(batch).result()
        assert np.abs(scaled.samples - plain.samples * 0.18215).max() <= 1e-6

    def test_what_a_vae_cannot_do_is_refused(self, vae):
        vae.register_to_config(scaling_factor=None)
        facts = vae_metadata(vae, VaeSource(vae="a/test"))
        check_supported(row_metadata(posterior="sample"), vae, facts)
        with pytest.raises(UsageError, match="scaled"):
            check_supported(row_metadata(scaled=True), vae, facts)

    @pytest.mark.parametrize("name", ["AutoencoderTiny", "AutoencoderDC"])
    @pytest.mark.parametrize("posterior", ["sample", "moments"])
    def test_a_class_without_a_posterior_refuses_by_name(self, name, posterior):
        vae = small_vae(name)
        facts = vae_metadata(vae, VaeSource(vae="a/test"))
        with pytest.raises(UsageError, match=f"--posterior {posterior}: {name} has no posterior; use --posterior mean"):
            check_supported(row_metadata(posterior=posterior), vae, facts)
        check_supported(row_metadata(), vae, facts)


class TestLatentMask:
    """A mask at the latent's size, by either rule, bit for bit."""

    @pytest.mark.parametrize("dtype", ["float16", "float32"])
    def test_comfyui_s_is_the_mean_of_each_cell_s_centre(self, vae, dtype):
        _, _, batch = batch_of(7)
        found = encoder_of(vae, latent_mask="comfyui", samples_dtype=dtype).launch(batch).result()
        cells = found.noise_mask.reshape(2, HEIGHT // 8, 8, WIDTH // 8, 8)
        assert found.latent_mask.dtype == dtype
        assert np.array_equal(found.latent_mask, cells[:, :, 3:5, :, 3:5].mean(axis=(2, 4)))
        bilinear = F.interpolate(torch.from_numpy(found.noise_mask)[:, None].float(), (3, 4), mode="bilinear")
        assert np.array_equal(found.latent_mask, bilinear[:, 0].numpy())

    def test_diffusers_is_each_cell_s_first_pixel_of_the_mask_that_is_not_grown(self, vae):
        _, masks, batch = batch_of(8)
        found = encoder_of(vae, latent_mask="diffusers", grow_mask_by=20).launch(batch).result()
        assert np.array_equal(found.latent_mask, masks[:, ::8, ::8])
        assert found.noise_mask.mean() > masks.mean()


class Crowded(nn.Module):
    """An encoder on a device that holds so many pixels and not one more."""

    def __init__(self, encoder: nn.Module, pixels: int) -> None:
        super().__init__()
        self.encoder, self.pixels, self.conv_in = encoder, pixels, getattr(encoder, "conv_in", None)
        self.given = []

    def forward(self, inputs):
        self.given.append(tuple(inputs.shape))
        if inputs[:, 0].numel() > self.pixels:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return self.encoder(inputs)


class TestOutOfMemory:
    """Fewer images at once, then tiles, then a reject; what worked is remembered by size."""

    @pytest.fixture
    def crowded(self, vae):
        def make(pixels, **settings):
            settings = {"tile_size": 64, **settings}
            encoder = encoder_of(vae, **settings)
            vae.encoder = Crowded(vae.encoder, pixels)
            return encoder, vae.encoder.given

        return make

    def test_the_batch_is_halved_and_what_worked_is_remembered(self, crowded, plain):
        encoder, given = crowded(3 * HEIGHT * WIDTH)
        _, _, batch = batch_of(9, count=8)
        found = encoder.launch(batch).result()
        assert found.oom_steps == 2
        assert not any(found.tiled)
        assert np.abs(found.samples - plain.launch(batch).result().samples).max() <= 1e-5
        assert [shape[0] for shape in given] == [8, 4, 2, 2, 2, 2]
        assert encoder.batch_size(HEIGHT, WIDTH) == 2
        assert encoder.batch_size(WIDTH, HEIGHT) == 8
        again = encoder.launch(batch).result()
        assert again.oom_steps == 0
        assert np.array_equal(again.samples, found.samples)

    def test_one_image_that_does_not_fit_goes_in_tiles(self, crowded, plain):
        encoder, given = crowded(64 * 64)
        batch = batch_of(10, height=96, width=160)[2]
        found = encoder.launch(batch).result()
        assert found.tiled == [True, True]
        assert found.oom_steps == 2
        assert found.finite.all()
        whole = plain.launch(batch).result().samples
        assert found.samples.shape == whole.shape
        assert not np.allclose(found.samples, whole, atol=1e-3)
        del given[:]
        assert encoder.launch(batch).result().oom_steps == 0
        assert set(given) == {(1, 3, 64, 64)}
        assert encoder.batch_size(96, 160) == 1

    def test_an_image_that_a_cpu_cannot_hold_goes_in_tiles_before_it_is_tried(self, crowded, monkeypatch):
        """The system would end the process, without an error of torch."""
        monkeypatch.setattr("inpaint_encode.core.out_of_memory.machine_memory", lambda: 100 * 100 * 5 * 4 * 8 / 0.8)
        encoder, given = crowded(10**6)
        found = encoder.launch(batch_of(10, height=96, width=160)[2]).result()
        assert (found.tiled, found.oom_steps) == ([True, True], 0)
        assert set(given) == {(1, 3, 64, 64)}
        assert not any(encoder.launch(batch_of(10, height=96, width=96)[2]).result().tiled)
        with pytest.raises(OutOfMemory):
            encoder.launch(batch_of(10, height=96, width=160)[2], tile=False).result()

    @pytest.mark.parametrize(
        "settings", [{"tile": False}, {"deterministic": True, "tile_size": 64}, {"tile_size": 128}]
    )
    def test_what_may_not_be_tiled_is_refused_and_no_other(self, crowded, settings):
        settings = {**settings, **({"tile_size": 512} if settings.get("tile") is False else {})}
        encoder, _ = crowded(32 * 64, **settings)
        try:
            with pytest.raises(OutOfMemory, match="one image does not fit into the memory"):
                encoder.launch(batch_of(11, height=64, width=96)[2]).result()
            assert encoder.launch(batch_of(11)[2]).result().finite.all()
        finally:
            torch.use_deterministic_algorithms(False)

    def test_tiles_can_be_forced_and_are_those_of_need(self, crowded, vae):
        batch = batch_of(12, height=96, width=160)[2]
        needed = crowded(64 * 64)[0].launch(batch).result()
        vae.encoder = vae.encoder.encoder
        encoder = encoder_of(vae, tile=True, tile_size=64)
        forced = encoder.launch(batch).result()
        assert forced.tiled == [True, True]
        assert np.abs(forced.samples - needed.samples).max() <= 1e-5
        small = encoder.launch(batch_of(12)[2]).result()
        assert small.tiled == [False, False]

    def test_an_overflow_in_float32_that_does_not_fit_is_no_silent_row(self, overflowing):
        encoder = encoder_of(overflowing, compute_dtype="float16")
        overflowing.encoder = Crowded(overflowing.encoder, 0)
        with pytest.raises(OutOfMemory) as raised:
            encoder.launch(batch_of(13)[2]).result()
        assert (raised.value.steps, raised.value.not_finite) == (2, 2)

    def test_both_latents_of_a_row_are_tiled_or_neither(self, vae, monkeypatch):
        batch = batch_of(14, count=1, height=96, width=160)[2]
        asked = {"also_original": True, "tile_size": 64}
        forced = encoder_of(vae, tile=True, **asked).launch(batch).result()
        encoder, plain, calls = encoder_of(vae, **asked), vae.encoder.forward, []

        def second_fails(inputs):
            calls.append(inputs)
            if len(calls) == 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return plain(inputs)

        monkeypatch.setattr(vae.encoder, "forward", second_fails)
        found = encoder.launch(batch).result()
        assert (found.tiled, found.oom_steps) == ([True], 1)
        assert np.abs(found.samples - forced.samples).max() <= 1e-5
        assert np.abs(found.original_samples - forced.original_samples).max() <= 1e-5

    @pytest.mark.parametrize("name", ["Wan 2.1", "AutoencoderKLQwenImage", "AutoencoderKLQwenImage21"])
    def test_a_video_vae_keeps_nothing_of_an_image_that_did_not_fit(self, name):
        vae = small_vae(name)
        fitting = OomAdaptiveVae(vae, 64)
        vae.encoder.norm_out = Crowded(vae.encoder.norm_out, 0)
        with pytest.raises(OutOfMemory):
            fitting.encode(torch.rand(1, 32, 32, 3), None)
        assert len(vae.encoder.norm_out.given) == 1
        assert vae._enc_feat_map == [None] * len(vae._enc_feat_map)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_deterministic_rows_are_the_same_bits_in_any_worker_and_order(overflowing, dtype):
    asked = {"compute_dtype": dtype, "deterministic": True, "posterior": "sample", "also_original": True}
    batch = TestNotFinite.one_is_grey()
    alone = [batch.part([index]) for index in range(3)]
    try:
        first, other = (encoder_of(overflowing, **asked) for _ in range(2))
        there = [first.launch(one) for one in alone]
        here = [other.launch(one) for one in reversed(alone)]
        for one, same in zip(there, reversed(here), strict=True):
            assert np.array_equal(one.result().samples, same.result().samples)
            assert np.array_equal(one.result().original_samples, same.result().original_samples)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestOnGpu:
    """The same with the device's own allocator in the place of an injected fault."""

    def test_an_allocator_limit_ends_with_all_rows(self, vae):
        device = torch.device("cuda")
        encoder = BatchEncoder(vae, metadata_for(vae, samples_dtype="float32"), device, compiled=False)
        batch = batch_of(0, count=8, height=1024, width=1024)[2]
        expected = encoder.launch(batch.part([0])).result().samples
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        needed = encoder._compute_vae._pixels  # what an estimate allows with all the memory
        total = torch.cuda.get_device_properties(device).total_memory
        share = 0.8 * torch.cuda.mem_get_info(device)[0] / needed * 3 * 1024**2 / total
        torch.cuda.set_per_process_memory_fraction(share + torch.cuda.memory_reserved(device) / total)
        try:
            found = encoder.launch(batch).result()
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        assert found.oom_steps > 0
        assert found.finite.all()
        assert encoder.batch_size(1024, 1024) < 8
        assert np.abs(found.samples[0] - expected[0]).max() <= 0.1 * np.abs(expected).max()

    def test_rows_that_overflow_are_those_of_float32(self, overflowing):
        batch = TestNotFinite.one_is_grey()
        expected = encoder_of(overflowing, compute_dtype="float32").launch(batch).result()
        metadata = metadata_for(overflowing, samples_dtype="float32", compute_dtype="float16")
        encoder = BatchEncoder(overflowing, metadata, torch.device("cuda"), compiled=False)
        found = encoder.launch(batch).result()
        assert found.in_float32 == [0, 2]
        assert np.abs(found.samples[[0, 2]] - expected.samples[[0, 2]]).max() <= 1e-4
        assert next(overflowing.parameters()).device.type == "cpu"

    def test_one_image_more_than_memory_goes_in_tiles(self, vae):
        metadata = metadata_for(vae, samples_dtype="float32", tile_size=256)
        encoder = BatchEncoder(vae, metadata, torch.device("cuda"), compiled=False)
        encoder._vae.encoder = Crowded(encoder._vae.encoder, 256 * 256)
        found = encoder.launch(batch_of(0, height=512, width=640)[2]).result()
        assert found.tiled == [True, True]
        assert found.finite.all()


def test_a_node_with_another_configuration_is_refused(vae_folder, tmp_path):
    """Its weights are the same, and its latents would not be."""
    source = VaeSource(vae=vae_folder)
    expected = metadata_for(load_vae(source))
    config = json.loads((Path(vae_folder) / "config.json").read_text())
    groups = {"norm_num_groups": config["norm_num_groups"] // 2}
    for changed, name in [({"scaling_factor": 0.5}, "scaling_factor 0.5 on"), (groups, "config_sha256"), ({}, "")]:
        folder = tmp_path / (name or "same")
        shutil.copytree(vae_folder, folder)
        (folder / "config.json").write_text(json.dumps(config | changed | {"_name_or_path": "elsewhere"}))
        load = partial(BatchEncoder.load, VaeSource(vae=str(folder)), expected, "cpu", compiled=False)
        if changed:
            with pytest.raises(JobFailed, match=f"is not the VAE that the output was encoded with: {name}"):
                load()
        else:
            assert load().launch(batch_of(0)[2]).result().finite.all()
