"""Estimates of a job against the test's own counts."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import VaeSource
from inpaint_encode.tools.plan.sampling import Estimate
from inpaint_encode.vae.load import load_vae

from .conftest import BAD, CHANNELS, CHUNK_ROWS, PAIRS, SCALE_FACTOR, estimate_of, images_of, true_sizes


class TestWhole:
    """If the sample is the whole source, every number is a count."""

    @pytest.fixture(scope="class")
    def job(self, folder):
        return estimate_of(folder, sample=10_000)

    def test_counts(self, job, folder):
        count = PAIRS + 6
        assert job.all_sampled
        assert (job.pairs, job.sampled, job.chunks) == (count, count, math.ceil(count / CHUNK_ROWS))
        assert (job.unpaired_images, job.unpaired_masks, job.ignored_files) == (1, 2, 1)
        assert job.source_image_bytes == sum(path.stat().st_size for path in images_of(folder))
        masks = [path for path in (folder / "masks").rglob("*.png") if "lone" not in path.stem]
        assert job.source_mask_bytes == sum(path.stat().st_size for path in masks)

    def test_the_histogram_of_sizes(self, job, folder):
        expected = Counter(size for size in true_sizes(folder) if size)
        assert {(size.height, size.width): size.images for size in job.sizes} == expected
        assert expected[80, 48] >= 1  # the rotated one, stored as 48 x 80
        assert [size.images for size in job.sizes] == sorted(expected.values(), reverse=True)
        for size in job.sizes:
            assert size.share == Estimate(size.images / job.pairs, 0.0)

    def test_rejects_by_error(self, job):
        assert {one.error: one.images for one in job.rejects} == BAD
        assert job.rejected == Estimate(sum(BAD.values()) / job.pairs, 0.0)

    def test_means_and_bytes(self, job, folder):
        pixels = [height * width for height, width in filter(None, true_sizes(folder))]
        assert job.megapixels.value == pytest.approx(np.mean(pixels) / 1e6)
        assert job.latent_bytes.value == pytest.approx(sum(pixels) / SCALE_FACTOR**2 * CHANNELS * 2)
        assert job.mask_bytes.value == pytest.approx(sum(pixels) / 8)
        estimates = (job.megapixels, job.latent_bytes, job.mask_bytes)
        assert [one.half_width for one in estimates] == [0.0] * 3

    def test_latent_bytes_include_every_latent_column(self, folder, job):
        settings = {"posterior": "moments", "also_original": True, "latent_mask": "comfyui"}
        more = estimate_of(folder, sample=10_000, rows=settings)
        assert more.latent_bytes.value == pytest.approx((2 * 2 * 4 + 1) / 4 * job.latent_bytes.value)

    def test_a_vae_with_values_that_are_not_finite_is_an_error(self, folder, vae_folder, tmp_path):
        vae = load_vae(VaeSource(vae=vae_folder))
        vae.quant_conv.bias.fill_(float("nan"))
        vae.save_pretrained(tmp_path)
        with pytest.raises(UsageError, match="values that are not finite; give undamaged weights"):
            estimate_of(folder, sample=10, vae=str(tmp_path))

    def test_latent_bytes_follow_the_stored_type_and_the_vae(self, folder, job, vae_folder):
        wide = estimate_of(folder, sample=10_000, vae=vae_folder, rows={"samples_dtype": "float32"})
        assert wide.latent_bytes.value == pytest.approx(2 * job.latent_bytes.value)
        assert (job.latents.assumed, wide.latents.assumed) == (True, False)

    def test_sizes_and_limits_apply_as_in_the_job(self, folder):
        given = {"decoding": {"resolution": "48x32", "upscale": True}, "limits": {"max_bytes": 600}}
        job = estimate_of(folder, sample=10_000, **given)
        assert {(size.height, size.width) for size in job.sizes} == {(32, 48)}
        over = sum(path.stat().st_size > 600 for path in images_of(folder))
        assert {one.error: one.images for one in job.rejects}["fetch.too_large"] == over > 0
        large = estimate_of(folder, sample=10_000, decoding={"resize": 20_000, "upscale": True})
        assert large.sizes == [] and {one.error for one in large.rejects} >= {"size.too_large"}
        with pytest.raises(
            UsageError, match="--resolution 50x30 is not a multiple of the VAE's 8 pixels; the nearest is 48x32"
        ):
            estimate_of(folder, decoding={"resolution": "50x30"})


class TestSample:
    def test_errors_shrink_with_the_sample(self, folder):
        estimates = [estimate_of(folder, sample=count) for count in (15, 60, 110, 1_000)]
        for name in ("rejected", "megapixels", "latent_bytes", "mask_bytes"):
            errors = [getattr(job, name).half_width for job in estimates]
            assert errors == sorted(errors, reverse=True), name
            assert errors[0] > 2 * errors[1] > errors[-1] == 0, name

    def test_the_same_seed_draws_the_same_sample(self, folder):
        one, same, other = (estimate_of(folder, sample=30, seed=seed).as_dict() for seed in (1, 1, 2))
        assert one == same != other

    def test_json_of_a_sample_of_one_has_no_nan(self, folder):
        single = estimate_of(folder, sample=1).as_dict()
        assert single["megapixels"]["half_width"] is None
        json.dumps(single, allow_nan=False)
