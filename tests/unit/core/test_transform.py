"""Steps 2 to 6 against golden vectors and properties, step 1 against torch itself."""

import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from inpaint_encode.core.geometry import crop_box
from inpaint_encode.core.transform import (
    binarize_mask,
    grow_mask,
    mask_image,
    resize_mask,
    resize_to_latent,
)
from inpaint_encode.vae.encode import to_vae_range

GOLDEN_SCRIPT = Path(__file__).parents[2] / "golden" / "make.py"
reference = SimpleNamespace(**runpy.run_path(str(GOLDEN_SCRIPT)))
golden = dict(np.load(reference.FILE))

each_ratio = pytest.mark.parametrize("ratio", reference.RATIOS)
quick = settings(max_examples=60, deadline=None, derandomize=True)
DTYPES = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
growths = st.integers(0, 64)
pictures = hnp.array_shapes(min_dims=2, max_dims=5, min_side=1, max_side=9)
masks = hnp.arrays(bool, pictures)


def unpacked(bits: np.ndarray, width: int) -> np.ndarray:
    return np.unpackbits(bits, axis=-1, count=width)


def same(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Every value, the shape and the type."""
    np.testing.assert_array_equal(actual.numpy(), expected, strict=True)


def unit(levels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(levels).float() / 255


class TestGolden:
    def test_the_reference_reproduces_the_golden_file(self):
        made = reference.cases()
        assert made.keys() == golden.keys()
        for name, array in made.items():
            np.testing.assert_array_equal(array, golden[name], strict=True, err_msg=name)

    @each_ratio
    def test_growth_after_the_crop(self, ratio):
        mask = torch.from_numpy(unpacked(golden["grow_mask"], 155))
        box = crop_box(*mask.shape, ratio)
        for k in range(65):
            same(grow_mask(mask[box.slices], k), unpacked(golden[f"grow_{ratio}"][k], box.width))

    def test_crop_of_every_side(self):
        for ratio, side, offset, length in golden["crops"].tolist():
            assert crop_box(side, 64, ratio) == (offset, 0, length, 64)
            assert crop_box(64, side, ratio) == (0, offset, 64, length)

    def test_binarise_every_level(self):
        binary = binarize_mask(torch.from_numpy(golden["binarise_in"]))
        same(binary, golden["binarise_out"].astype(np.float32))

    @pytest.mark.parametrize(("mask", "name"), [(0.0, "neutral_kept"), (1.0, "neutral_repainted")])
    def test_mask_image_at_every_level(self, mask, name):
        levels = unit(np.arange(256, dtype=np.uint8)).unsqueeze(-1)
        same(mask_image(levels, torch.full((256,), mask)), golden[name])

    def test_vae_range_of_every_level(self):
        levels = unit(np.arange(256, dtype=np.uint8)).view(1, 16, 16, 1)
        same(to_vae_range(levels), golden["vae_range"].reshape(1, 1, 16, 16))

    @each_ratio
    def test_steps_2_to_6(self, ratio):
        pixels, mask = unit(golden["walk_image"]), unit(golden["walk_mask"])
        box = crop_box(*mask.shape, ratio)
        binary = binarize_mask(mask[box.slices])
        same(binary.byte(), unpacked(golden[f"walk_{ratio}_binary"], box.width))
        same(mask_image(pixels[box.slices], binary), golden[f"walk_{ratio}_neutral"])
        same(grow_mask(binary, 6).byte(), unpacked(golden[f"walk_{ratio}_noise_mask"], box.width))


class TestResize:
    @quick
    @given(st.integers(1, 5), *[st.integers(1, 40)] * 4, st.integers(0, 2**31))
    def test_a_batch_equals_each_mask_alone(self, batch, h, w, height, width, seed):
        mask = torch.rand(batch, h, w, generator=torch.Generator().manual_seed(seed))
        resized = resize_mask(mask, height, width)
        assert resized.dtype == torch.float32
        for one, alone in zip(resized, mask, strict=True):
            expected = F.interpolate(alone[None, None], (height, width), mode="bilinear", align_corners=False)
            assert torch.equal(one, expected[0, 0])

    def test_equal_sizes_return_the_mask(self):
        mask = torch.rand(2, 5, 7)
        assert torch.equal(resize_mask(mask, 5, 7), mask)

    def test_half_pixel_centers(self):
        assert resize_mask(torch.tensor([[[0.0, 1.0]]]), 1, 4).tolist() == [[[0.0, 0.25, 0.75, 1.0]]]

    def test_no_antialiasing(self):
        assert resize_mask(torch.tensor([[[1.0, 0.0, 0.0, 1.0]]]), 1, 1).item() == 0.0


class TestCrop:
    @quick
    @given(st.sampled_from(reference.RATIOS), st.data())
    def test_inside_a_multiple_and_centred(self, ratio, data):
        height, width = (data.draw(st.integers(ratio, 5000)) for _ in "hw")
        box = crop_box(height, width, ratio)
        assert (box.height % ratio, box.width % ratio) == (0, 0)
        assert (box.top, box.left) == ((height % ratio) // 2, (width % ratio) // 2)
        assert 0 <= height - box.height < ratio and 0 <= width - box.width < ratio
        assert box.top + box.height <= height and box.left + box.width <= width

    def test_slices_select_the_crop(self):
        image = torch.arange(11 * 14).view(11, 14)
        assert torch.equal(image[crop_box(11, 14, 8).slices], image[1:9, 3:11])

    @each_ratio
    def test_a_side_below_the_multiple_is_rejected(self, ratio):
        assert crop_box(ratio, ratio, ratio) == (0, 0, ratio, ratio)
        for height, width in [(ratio - 1, 100), (100, ratio - 1)]:
            with pytest.raises(ValueError, match=f"{width} x {height} .* {ratio}"):
                crop_box(height, width, ratio)


class TestBinariseAndNeutralise:
    def test_one_half_becomes_0(self):
        assert binarize_mask(torch.tensor([0.5, 127 / 255, 128 / 255])).tolist() == [0.0, 0.0, 1.0]

    @quick
    @given(hnp.arrays(np.float32, (3, 5, 4, 3), elements=st.floats(0, 1, width=32)), st.integers(0, 2**31))
    def test_repainted_pixels_are_grey_and_others_keep_their_value(self, pixels, seed):
        mask = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(seed)).round()
        neutral = mask_image(torch.from_numpy(pixels), mask)
        assert neutral.dtype == torch.float32
        assert (neutral[mask == 1] == 0.5).all()
        half = np.float32(0.5)
        assert np.array_equal(neutral[mask == 0], ((pixels - half) + half)[mask.numpy() == 0])

    def test_vae_range_moves_channels_only(self):
        pixels = torch.rand(2, 4, 5, 3)
        expected = np.stack([reference.vae_range(image) for image in pixels.numpy()])
        same(to_vae_range(pixels), expected)


class TestGrow:
    @pytest.mark.parametrize(
        ("k", "first", "last"), [(2, 0, 1), (4, -1, 2), (5, -2, 2), (6, -2, 3), (63, -31, 31), (64, -31, 32)]
    )
    def test_reach_of_one_pixel(self, k, first, last):
        mask = torch.zeros(99, 99)
        mask[40, 50] = 1
        rows, columns = grow_mask(mask, k).nonzero(as_tuple=True)
        assert rows.unique().tolist() == list(range(40 + first, 40 + last + 1))
        assert columns.unique().tolist() == list(range(50 + first, 50 + last + 1))

    @quick
    @given(masks, growths)
    def test_equals_the_reference_for_each_mask_of_any_batch(self, mask, k):
        flat = mask.reshape(-1, *mask.shape[-2:])
        expected = np.stack([reference.grow(one, k) for one in flat]).reshape(mask.shape)
        same(grow_mask(torch.from_numpy(mask), k), expected)

    @quick
    @given(masks, growths, st.sampled_from(DTYPES))
    def test_keeps_shape_dtype_and_input(self, mask, k, dtype):
        tensor = torch.from_numpy(mask).to(dtype)
        before = tensor.clone()
        grown = grow_mask(tensor, k)
        assert (grown.shape, grown.dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(grown.bool(), grow_mask(torch.from_numpy(mask), k))
        grown.fill_(1)
        assert torch.equal(tensor, before)

    @quick
    @given(hnp.arrays(bool, (2, 6, 13)), growths)
    def test_union_grows_to_the_union(self, pair, k):
        a, b = torch.from_numpy(pair)
        assert torch.equal(grow_mask(a | b, k), grow_mask(a, k) | grow_mask(b, k))

    @quick
    @given(hnp.arrays(bool, (9, 7)), st.integers(0, 62))
    def test_growing_only_adds(self, mask, k):
        tensor = torch.from_numpy(mask)
        smaller, larger = grow_mask(tensor, k), grow_mask(tensor, k + 2)
        assert (tensor <= smaller).all() and (smaller <= larger).all()

    @quick
    @given(masks, st.sampled_from([0, 1]))
    def test_0_and_1_change_nothing(self, mask, k):
        assert np.array_equal(grow_mask(torch.from_numpy(mask), k), mask)

    @pytest.mark.parametrize("k", [-1, 65, 1000])
    def test_out_of_range_is_rejected(self, k):
        with pytest.raises(ValueError, match=f"{k}.*0..64"):
            grow_mask(torch.zeros(8, 8), k)

    def test_64_costs_little_more_than_6(self):
        """A convolution would cost 100 times as much, a separable one 10 times."""
        mask = (torch.rand(1024, 1024) < 0.001).float()
        best = {6: float("inf"), 64: float("inf")}
        for k in [6, 64] * 15:
            start = time.perf_counter()
            grow_mask(mask, k)
            best[k] = min(best[k], time.perf_counter() - start)
        assert best[64] < 4 * best[6]


class TestLatentMask:
    MASK = (torch.rand(2, 16, 24, generator=torch.Generator().manual_seed(0)) > 0.5).to(torch.uint8)

    def test_comfyui_is_the_mean_of_the_central_pixels(self):
        found = resize_to_latent(self.MASK, 2, 3, "comfyui")
        cells = self.MASK.float().unfold(1, 8, 8).unfold(2, 8, 8)[..., 3:5, 3:5]
        assert torch.allclose(found, cells.mean(dim=(-1, -2)))

    def test_diffusers_is_the_first_pixel(self):
        found = resize_to_latent(self.MASK, 2, 3, "diffusers")
        assert (found.dtype, found.shape) == (torch.float32, (2, 2, 3))
        assert torch.equal(found, self.MASK[:, ::8, ::8].float())
