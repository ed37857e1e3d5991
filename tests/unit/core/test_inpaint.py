"""`encode_for_inpaint`: its result follows from the steps in `transform`, and wrong arguments are named."""

import numpy as np
import pytest
import torch

from inpaint_encode import encode_for_inpaint, load_vae
from inpaint_encode.core.transform import binarize_mask, grow_mask, mask_image, resize_mask
from inpaint_encode.settings import VaeSource
from inpaint_encode.vae.encode import posterior

PIXELS = torch.rand(2, 35, 50, 3, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(2, 20, 30, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def vae(vae_folder):
    return load_vae(VaeSource(vae=vae_folder))


def test_the_steps(vae):
    samples, noise_mask = encode_for_inpaint(PIXELS, MASK, vae, 5)
    binary = binarize_mask(resize_mask(MASK, 35, 50)[:, 1:33, 1:49])
    expected = posterior(vae, mask_image(PIXELS[:, 1:33, 1:49], binary)).mean
    assert torch.equal(samples, expected)
    assert torch.equal(noise_mask, grow_mask(binary, 5)[:, None])
    assert (noise_mask.dtype, noise_mask.shape) == (torch.float32, (2, 1, 32, 48))


def test_what_is_accepted(vae):
    expected = encode_for_inpaint(PIXELS, MASK[:1].expand(2, -1, -1), vae)
    for pixels, mask in (
        (PIXELS, MASK[:1]),
        (torch.cat([PIXELS, torch.rand(2, 35, 50, 1)], dim=-1), MASK[:1]),
        (PIXELS.double(), MASK[:1].double()),
        (PIXELS.clone().requires_grad_(), MASK[:1]),
    ):
        found = encode_for_inpaint(pixels, mask, vae)
        assert torch.equal(found.samples, expected.samples) and torch.equal(found.noise_mask, expected.noise_mask)
    for extremes in (torch.zeros_like(PIXELS), torch.ones_like(PIXELS)):
        assert encode_for_inpaint(extremes, extremes[..., 0], vae).samples.isfinite().all()


def with_value(tensor: torch.Tensor, value: float) -> torch.Tensor:
    tensor = tensor.clone()
    tensor.view(-1)[-1] = value
    return tensor


WRONG_PIXELS = {
    "uint8": ((PIXELS * 255).byte(), TypeError, "got uint8: divide by 255"),
    "int64": ((PIXELS * 255).long(), TypeError, "got int64: convert to float in 0..1"),
    "numpy": (PIXELS.numpy(), TypeError, "got ndarray, not a torch.Tensor"),
    "0..255": (PIXELS * 255, ValueError, r"got values from \S+ to 25\S+: divide by 255"),
    "-1..1": (PIXELS * 2 - 1, ValueError, r"got values from -\S+ to 0\.\d+: use \(x \+ 1\) / 2"),
    "just above 1": (with_value(PIXELS, 1.01), ValueError, r"got values from \S+ to 1\.01"),
    "NaN": (with_value(PIXELS, float("nan")), ValueError, "got NaN"),
    "infinity": (with_value(PIXELS, float("inf")), ValueError, r"got values from \S+ to inf"),
    "channels first": (
        PIXELS.movedim(-1, 1),
        ValueError,
        r"got channels first \[2, 3, 35, 50\]: use pixels.movedim\(1, -1\)",
    ),
    "one image": (PIXELS[0], ValueError, r"got one image \[35, 50, 3\]: use pixels\[None\]"),
    "two dimensions": (PIXELS[0, ..., 0], ValueError, r"got 2 dimensions: \[35, 50\]"),
    "five dimensions": (PIXELS[None], ValueError, r"got 5 dimensions: \[1, 2, 35, 50, 3\]"),
    "grey": (PIXELS[..., :1], ValueError, r"got 1 channels in \[2, 35, 50, 1\]: repeat gray with pixels.expand"),
    "two channels": (PIXELS[..., :2], ValueError, r"got 2 channels in \[2, 35, 50, 2\]"),
    "five channels": (PIXELS[..., [0, 1, 2, 0, 1]], ValueError, r"got 5 channels in \[2, 35, 50, 5\]"),
    "no image": (PIXELS[:0], ValueError, r"got an empty tensor \[0, 35, 50, 3\]"),
}


@pytest.mark.parametrize("case", WRONG_PIXELS)
def test_wrong_pixels(vae, case):
    pixels, error, sentence = WRONG_PIXELS[case]
    mask = MASK[:1] if case == "no image" else MASK
    with pytest.raises(error, match=r"^pixels must be float \[B, H, W, 3\] in 0\.\.1; " + sentence):
        encode_for_inpaint(pixels, mask, vae)


WRONG_MASKS = {
    "uint8": ((MASK * 255).byte(), TypeError, "got uint8: divide by 255"),
    "bool": (MASK > 0.5, TypeError, r"got bool: use \.float\(\)"),
    "numpy": (np.zeros((2, 20, 30)), TypeError, "got ndarray, not a torch.Tensor"),
    "0..255": (MASK * 255, ValueError, r"got values from \S+ to 25\S+: divide by 255"),
    "below 0": (with_value(MASK, -2.0), ValueError, r"got values from -2 to 0\.\d+"),
    "NaN": (with_value(MASK, float("nan")), ValueError, "got NaN"),
    "no batch": (MASK[0], ValueError, r"got \[20, 30\] without a batch dimension: use mask\[None\]"),
    "channels first": (MASK[:, None], ValueError, r"got a channel axis in \[2, 1, 20, 30\]: use mask\.squeeze\(1\)"),
    "channels last": (MASK[..., None], ValueError, r"got a channel axis in \[2, 20, 30, 1\]: use mask\.squeeze\(3\)"),
    "three channels": (
        MASK[..., None].expand(-1, -1, -1, 3),
        ValueError,
        r"got 4 dimensions: \[2, 20, 30, 3\]",
    ),
    "another batch": (MASK[[0, 1, 0]], ValueError, "got 3 masks for 2 images: give one for each image, or one for all"),
    "no pixel": (MASK[:, :0], ValueError, r"got an empty tensor \[2, 0, 30\]"),
}


@pytest.mark.parametrize("case", WRONG_MASKS)
def test_wrong_masks(vae, case):
    mask, error, sentence = WRONG_MASKS[case]
    with pytest.raises(
        error, match=r"^mask must be float \[B, h, w\] or \[1, h, w\] in 0\.\.1, 1 = repaint; " + sentence
    ):
        encode_for_inpaint(PIXELS, mask, vae)


def test_other_wrong_arguments(vae):
    with pytest.raises(TypeError, match="vae must be a loaded diffusers VAE, such as load_vae returns; got str"):
        encode_for_inpaint(PIXELS, MASK, "path/to/vae")
    with pytest.raises(ValueError, match=r"grow_mask_by is 65; it must be in 0\.\.64"):
        encode_for_inpaint(PIXELS, MASK, vae, 65)
    with pytest.raises(ValueError, match="50 x 7 pixels: the VAE needs at least 8 pixels on each side"):
        encode_for_inpaint(PIXELS[:, :7], MASK, vae)
