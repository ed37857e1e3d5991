"""Resize and crop of images and masks, and the way back to source coordinates."""

import io

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data as photographs

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import CropBox, Geometry, Sizing, bucket_sizes
from inpaint_encode.errors import PairRejected, UsageError
from inpaint_encode.output.resume import validate_sizes
from tests.files import COLOUR, GREY, png
from tests.metadata import row_metadata

BUDGET = 2**20


@pytest.mark.parametrize(
    ("options", "size", "wanted"),
    [
        ({}, (515, 770), (515, 770, (1, 1, 512, 768))),
        ({"resize": 512}, (1000, 1501), (512, 769, (0, 0, 512, 768))),
        ({"resize": 512}, (3000, 1000), (1536, 512, (0, 0, 1536, 512))),
        ({"resize": 500}, (500, 800), (500, 800, (2, 0, 496, 800))),
        ({"resize": 512, "upscale": True}, (100, 256), (512, 1311, (0, 3, 512, 1304))),
        ({"resolution": "768x512"}, (1000, 1200), (640, 768, (64, 0, 512, 768))),
        ({"resolution": "768x512"}, (700, 3000), (512, 2194, (0, 713, 512, 768))),
        ({"resolution": "64x64", "upscale": True}, (1, 3), (64, 192, (0, 64, 64, 64))),
        ({"buckets": BUDGET}, (2000, 2000), (1024, 1024, (0, 0, 1024, 1024))),
        ({"buckets": BUDGET}, (2000, 3000), (832, 1248, (0, 16, 832, 1216))),
        ({"buckets": BUDGET}, (2000, 20_000), (512, 5120, (0, 1536, 512, 2048))),
        ({"buckets": 512 * 512, "bucket_step": 32}, (1600, 900), (683, 384, (5, 0, 672, 384))),
    ],
)
def test_resize_and_crop(options, size, wanted):
    found = Sizing(multiple=8, **options).fit(*size)
    assert found == Geometry(*wanted[:2], CropBox(*wanted[2]))


@pytest.mark.parametrize(
    ("options", "size", "sentence"),
    [
        ({}, (7, 64), "64 x 7 pixels: the VAE needs at least 8 pixels on each side"),
        ({"resize": 512}, (511, 900), "900 x 511 pixels would have to be enlarged to 902 x 512; --upscale allows it"),
        ({"resolution": "64x64"}, (63, 640), "640 x 63 .* 650 x 64"),
        ({"buckets": BUDGET}, (1023, 1024), "1024 x 1023 .* 1025 x 1024"),
    ],
)
def test_images_are_enlarged_only_with_upscale(options, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        Sizing(multiple=8, **options).fit(*size)
    decoder = PairDecoder(sizing=Sizing(multiple=8, **options))
    with pytest.raises(PairRejected, match=sentence) as caught:
        decoder.image(png(np.zeros((*size, 3), np.uint8), COLOUR))
    assert caught.value.error == "size.too_small"


def test_max_pixels_limits_enlarging():
    decoder = PairDecoder(sizing=Sizing(multiple=8, resize=512, upscale=True), max_pixels=1_000_000)
    with pytest.raises(PairRejected, match="enlarged to 2048 x 512 pixels, more than --max-pixels 1,000,000") as caught:
        decoder.image(png(np.zeros((4, 16, 3), np.uint8), COLOUR))
    assert caught.value.error == "size.too_large"


class TestBuckets:
    def test_sdxl_buckets(self):
        """Some of the sizes in the appendix of SDXL's report."""
        some = {512: 2048, 576: 1792, 640: 1536, 704: 1472, 768: 1344, 832: 1216, 896: 1152, 960: 1088, 1024: 1024}
        assert {*some.items(), *((long, short) for short, long in some.items())} <= set(bucket_sizes(BUDGET, 64))

    @given(st.integers(64 * 64, 4 * BUDGET), st.sampled_from((8, 16, 32, 64)))
    def test_buckets_respect_budget_and_step(self, pixels, step):
        sizes = bucket_sizes(pixels, step)
        side = int(pixels**0.5) // step * step
        assert (side, side) in sizes
        assert all(h * w <= pixels and not h % step and not w % step for h, w in sizes)
        assert {(w, h) for h, w in sizes} == set(sizes)

    @given(st.integers(1, 5000), st.integers(1, 5000))
    def test_the_closest_bucket_is_used(self, height, width):
        crop = Sizing(multiple=8, buckets=BUDGET, upscale=True).fit(height, width).crop
        distances = {size: abs(np.log(size[0] * width / (size[1] * height))) for size in bucket_sizes(BUDGET, 64)}
        assert distances[crop.height, crop.width] <= min(distances.values()) + 1e-9


SIZINGS = [
    {},
    {"resize": 96},
    {"resolution": "160x96"},
    {"buckets": 128 * 128, "bucket_step": 32},
    {"resize": 400, "upscale": True},
]


@pytest.mark.parametrize("options", SIZINGS)
@pytest.mark.parametrize("size", [(203, 310), (317, 198)])
def test_crop_coordinates_map_to_the_source(options, size):
    """A bright spot is where the README's formula puts it, in the image and in the mask."""
    height, width = size
    spot = height * 0.45, width * 0.57
    distance = np.hypot(*(np.mgrid[:height, :width] - np.reshape(spot, (2, 1, 1))))
    light = (255 * np.exp(-((distance / 12) ** 2))).astype(np.uint8)
    decoder = PairDecoder(sizing=Sizing(multiple=8, **options))
    image = decoder.image(png(np.stack([light] * 3, axis=-1), COLOUR))
    mask = decoder.mask(png((distance < 30) * 255, GREY), image)
    for found in (image.pixels[..., 0].astype(float), mask.astype(float)):
        assert found.shape == (image.geometry.crop.height, image.geometry.crop.width)
        at_y, at_x = ((grid * found).sum() / found.sum() for grid in np.mgrid[: found.shape[0], : found.shape[1]])
        row = {**image.geometry._asdict(), "crop_top": image.geometry.crop.top, "crop_left": image.geometry.crop.left}
        source_y = (row["crop_top"] + at_y + 0.5) * image.source_height / row["resized_height"] - 0.5
        source_x = (row["crop_left"] + at_x + 0.5) * image.source_width / row["resized_width"] - 0.5
        assert (source_y, source_x) == pytest.approx(spot, abs=0.6)


@pytest.mark.parametrize("options", SIZINGS[1:])
def test_pixels_are_resized_by_lanczos_and_masks_bilinearly(options):
    photo = photographs.chelsea()
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.integers(0, 256, size), np.ones((5, 5), int)) for size in ((60, 90), (20, 30))]
    decoder = PairDecoder(sizing=Sizing(multiple=8, **options))
    image = decoder.image(png(photo, COLOUR))
    size = image.geometry.resized_height, image.geometry.resized_width
    resized = Image.open(io.BytesIO(png(photo, COLOUR))).resize(size[::-1], Image.Resampling.LANCZOS)
    assert np.array_equal(image.pixels, np.asarray(resized)[image.geometry.crop.slices])
    for levels in (*masks, np.kron(masks[0], np.ones((4, 4), int))):
        wanted = F.interpolate(torch.from_numpy(levels / 255).float()[None, None], size, mode="bilinear")[0, 0].round()
        assert np.array_equal(decoder.mask(png(levels, GREY), image), wanted.numpy()[image.geometry.crop.slices])


@pytest.mark.parametrize(
    ("options", "ratio", "sentence"),
    [
        ({"resolution": "1000x700"}, 16, "1000x700 must be a multiple of 16 for this VAE; the nearest is 992x704"),
        (
            {"buckets": BUDGET, "bucket_step": 48},
            32,
            "--bucket-step 48 must be a multiple of 32 for this VAE; give --bucket-step 64",
        ),
        ({"buckets": 4000}, 8, "--buckets 4000 is less than one bucket of 64 x 64 pixels; give --buckets 4096 or more"),
        ({"resize": 8}, 16, "--resize 8 must be at least 16 for this VAE; give --resize 16 or more"),
    ],
)
def test_sizes_that_the_vae_cannot_encode(options, ratio, sentence):
    with pytest.raises(UsageError, match=sentence):
        validate_sizes(row_metadata(**options, crop_multiple=ratio))
    validate_sizes(row_metadata(resolution="992x704", crop_multiple=16))
    validate_sizes(row_metadata(crop_multiple=ratio))
