"""An image and its mask: threshold, polarity, size and orientation."""

import numpy as np
import pytest
from PIL import Image

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import PairRejected
from tests.files import (
    GREY,
    png,
)

from .samples import WIDE, caught_by, encoded, turned_by


@pytest.mark.parametrize(("levels", "repainted"), [((127, 128), (0, 1)), ((0, 255), (0, 1))])
def test_threshold(levels, repainted):
    mask = np.repeat(np.array([levels], np.uint8), 2, axis=0)
    decoder = PairDecoder(sizing=Sizing(multiple=1))
    image = decoder.image(encoded(Image.new("RGB", (2, 2))))
    assert np.array_equal(decoder.mask(encoded(Image.fromarray(mask)), image), [repainted] * 2)


def test_threshold_of_16_bits():
    decoder = PairDecoder(sizing=Sizing(multiple=1))
    image = decoder.image(encoded(Image.new("RGB", (4, 2))))
    assert np.array_equal(decoder.mask(encoded(Image.fromarray(WIDE)), image), WIDE >= 32768)


def test_polarity_is_applied_before_the_resize():
    image = PairDecoder(sizing=Sizing(multiple=1)).image(encoded(Image.new("RGB", (3, 1))))
    for polarity, repainted in (("white", [0, 0, 1]), ("black", [1, 0, 0])):
        decoder = PairDecoder(sizing=Sizing(multiple=1), mask_polarity=polarity)
        resized = png(np.array([[0, 255]]), GREY)
        assert decoder.mask(resized, image).tolist() == [repainted]  # the middle one is exactly half, and kept


def test_a_side_below_the_multiple():
    decoder = PairDecoder(sizing=Sizing(multiple=8))
    rejection = caught_by(decoder.image, encoded(Image.new("RGB", (64, 7))))
    assert (rejection.error, "64 x 7" in rejection.message) == ("size.too_small", True)


class TestOrientationMismatch:
    TALL, WIDE = Image.new("RGB", (32, 48)), Image.new("RGB", (48, 32))

    def reject(self, image: bytes, mask: bytes) -> PairRejected:
        decoder = PairDecoder(sizing=Sizing(multiple=8))
        return caught_by(decoder.mask, mask, decoder.image(image))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_mismatch_is_rejected(self, kind):
        photo = encoded(self.WIDE, kind, exif=turned_by(6))
        for mask in (self.WIDE, self.WIDE.resize((97, 64))):
            rejection = self.reject(photo, encoded(mask.convert("L")))
            assert rejection.error == "orientation.mismatch"
            assert "the image is 32 x 48 pixels and the mask" in rejection.message
        rejection = self.reject(encoded(self.WIDE), encoded(self.WIDE.convert("L"), kind, exif=turned_by(8)))
        assert (rejection.error, "EXIF rotates only the mask" in rejection.message) == ("orientation.mismatch", True)

    def test_all_other_pairs_are_decoded(self):
        decoder = PairDecoder(sizing=Sizing(multiple=8))
        across, square = encoded(self.WIDE, exif=turned_by(6)), Image.new("L", (40, 40))
        for image, mask in (
            (across, encoded(self.TALL.convert("L"))),
            (across, encoded(self.WIDE.convert("L"), exif=turned_by(8))),
            (across, encoded(square)),
            (encoded(self.WIDE), encoded(self.TALL.convert("L"))),
            (encoded(self.WIDE, exif=turned_by(3)), encoded(self.WIDE.convert("L"))),
            (encoded(square, exif=turned_by(6)), encoded(square)),
        ):
            found = decoder.image(image)
            assert decoder.mask(mask, found).shape == found.pixels.shape[:2]
