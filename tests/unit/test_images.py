"""Decode rules, each against levels that the test made itself."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from inpaint_encode.errors import PairRejected
from inpaint_encode.geometry import Sizing
from inpaint_encode.images import PairDecoder
from inpaint_encode.images import decode_image as image_of
from inpaint_encode.images import decode_mask as mask_of

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
WIDE = np.array([[0, 255, 256, 32767], [32768, 33000, 65279, 65535]], np.uint16)


def decode_image(data: bytes) -> np.ndarray:
    return image_of(data).levels


def decode_mask(data: bytes, channel: str = "auto") -> np.ndarray:
    return mask_of(data, channel).levels


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


class TestImages:
    def test_rgb_and_grey_are_taken_as_they_are(self):
        colours = np.stack([LEVELS, LEVELS.T, 255 - LEVELS], axis=-1)
        assert np.array_equal(decode_image(encoded(Image.fromarray(colours))), colours)
        assert np.array_equal(decode_image(encoded(Image.fromarray(LEVELS))), np.stack([LEVELS] * 3, axis=-1))

    def test_alpha_is_dropped_not_blended(self):
        pixels = np.stack([LEVELS, LEVELS.T, 255 - LEVELS, LEVELS], axis=-1)
        assert np.array_equal(decode_image(encoded(Image.fromarray(pixels, "RGBA"))), pixels[..., :3])

    def test_16_bit_grey_is_rounded_not_clipped(self):
        found = decode_image(encoded(Image.fromarray(WIDE)))
        assert np.array_equal(found, np.stack([np.round(WIDE / 257)] * 3, axis=-1))

    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_applied_once(self, orientation, kind):
        exif = Image.Exif()
        exif[0x0112] = orientation
        colours = np.stack([LEVELS[:4], LEVELS[4:8], LEVELS[8:12]], axis=-1)
        data = encoded(Image.fromarray(colours), kind, exif=exif)
        assert np.array_equal(decode_image(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
        turned = colours if orientation < 5 else colours.swapaxes(0, 1)
        assert decode_image(data).shape == turned.shape

    @pytest.mark.parametrize("size", [(64, 48), (33, 17), (1, 1)])
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
    def test_jpeg_has_the_levels_that_pillow_decodes(self, size, subsampling, options):
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        data = encoded(Image.fromarray(noise), "JPEG", quality=90, subsampling=subsampling, **options)
        assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))

    @pytest.mark.parametrize(("mode", "options"), [("L", {}), ("CMYK", {}), ("RGB", {"keep_rgb": True})])
    def test_jpeg_of_other_colours(self, mode, options):
        data = encoded(Image.effect_noise((40, 30), 60).convert(mode), "JPEG", **options)
        assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


class TestMasks:
    @pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
    def test_grey_in_any_mode_keeps_its_levels(self, mode):
        assert np.array_equal(decode_mask(encoded(Image.fromarray(LEVELS).convert(mode))), LEVELS)

    @pytest.mark.parametrize("mode", ["L", "RGB"])
    def test_jpeg(self, mode):
        data = encoded(Image.effect_noise((40, 30), 60).convert(mode), "JPEG")
        assert np.array_equal(decode_mask(data), np.asarray(Image.open(io.BytesIO(data)).convert("L")))

    def test_one_bit(self):
        assert np.array_equal(decode_mask(encoded(Image.fromarray(LEVELS > 99))), (LEVELS > 99) * np.uint8(255))

    def test_16_bit_keeps_its_precision(self):
        assert np.array_equal(decode_mask(encoded(Image.fromarray(WIDE))), WIDE)

    @pytest.mark.parametrize(("levels", "repainted"), [((127, 128), (0, 1)), ((0, 255), (0, 1))])
    def test_threshold(self, levels, repainted):
        mask = np.repeat(np.array([levels], np.uint8), 2, axis=0)
        decoder = PairDecoder(sizing=Sizing(ratio=1))
        image = decoder.image(encoded(Image.new("RGB", (2, 2))))
        assert np.array_equal(decoder.mask(encoded(Image.fromarray(mask)), image), [repainted] * 2)

    def test_threshold_of_16_bits(self):
        decoder = PairDecoder(sizing=Sizing(ratio=1))
        image = decoder.image(encoded(Image.new("RGB", (4, 2))))
        assert np.array_equal(decoder.mask(encoded(Image.fromarray(WIDE)), image), WIDE >= 32768)

    @pytest.mark.parametrize("size", [(4, 2), (8, 4)])
    def test_inverted_polarity_inverts_the_levels_first(self, size):
        levels = np.repeat(np.repeat(np.array([[0, 127, 128, 255]], np.uint8), 2, axis=0), size[0] // 4, axis=1)
        data = encoded(Image.fromarray(np.repeat(levels, size[1] // 2, axis=0)))
        for polarity, repainted in (("white", [0, 0, 1, 1]), ("black", [1, 1, 0, 0])):
            decoder = PairDecoder(sizing=Sizing(ratio=1), mask_polarity=polarity)
            image = decoder.image(encoded(Image.new("RGB", size)))
            assert decoder.mask(data, image)[0, :: size[0] // 4].tolist() == repainted

    def test_channels(self):
        pixels = np.stack([LEVELS, LEVELS.T, 255 - LEVELS, LEVELS[::-1]], axis=-1)
        data = encoded(Image.fromarray(pixels, "RGBA"))
        for index, channel in enumerate(("red", "green", "blue", "alpha")):
            assert np.array_equal(decode_mask(data, channel), pixels[..., index])
        grey = encoded(Image.fromarray(pixels[..., :3]).convert("L"))
        assert np.array_equal(decode_mask(data, "luma"), decode_mask(grey))
        with pytest.raises(PairRejected, match=r"RGBA|PNG of 16 x 16 .* alpha goes down to 0 of 255") as caught:
            decode_mask(data)
        assert caught.value.error == "mask.ambiguous"
        with pytest.raises(PairRejected, match="no alpha channel") as caught:
            decode_mask(grey, "alpha")
        assert caught.value.error == "mask.no_alpha"


class TestRejected:
    def reject(self, data: bytes, decode=decode_image) -> PairRejected:
        with pytest.raises(PairRejected) as caught:
            decode(data)
        return caught.value

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
    def test_a_file_that_ends_early_is_never_half_grey(self, kind):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
        data = encoded(Image.fromarray(noise), kind)
        assert self.reject(data[: len(data) // 2]).error.startswith("decode.")

    def test_names(self):
        assert self.reject(b"").error == "decode.not_an_image"
        assert self.reject(b"<html>gone</html>").error == "decode.not_an_image"
        jpeg = encoded(Image.effect_noise((64, 64), 50), "JPEG")
        assert self.reject(jpeg[: len(jpeg) // 2]).error == "decode.truncated"
        assert self.reject(jpeg[: len(jpeg) // 2], decode_mask).error == "mask.truncated"

    @pytest.mark.parametrize("damage", ["cut, with an end marker", "a missing middle"])
    def test_jpeg_damage_that_pillow_shrugs_at(self, damage):
        whole = encoded(Image.effect_noise((96, 96), 60).convert("RGB"), "JPEG")
        third = len(whole) // 3
        data = whole[: 2 * third] + b"\xff\xd9" if damage.startswith("cut") else whole[:third] + whole[2 * third :]
        Image.open(io.BytesIO(data)).load()
        assert self.reject(data).error == "decode.corrupt"
        assert self.reject(data, decode_mask).error == "mask.corrupt"

    def test_a_bomb_is_refused_by_its_header(self):
        bomb = encoded(Image.new("1", (30_000, 30_000)))
        rejection = self.reject(bomb)
        assert rejection.error == "decode.too_large"
        assert "30000 x 30000" in rejection.message

    @pytest.mark.parametrize("values", [np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)])
    def test_levels_of_no_stated_range(self, values):
        data = encoded(Image.fromarray(values), "TIFF")
        assert self.reject(data).error == "decode.unsupported"
        assert self.reject(data, decode_mask).error == "mask.unsupported"

    def test_a_colour_space_that_cannot_be_converted(self):
        lab = encoded(Image.new("LAB", (4, 4)), "TIFF")
        assert self.reject(lab, decode_mask).error == "mask.corrupt"

    def test_formats_that_are_not_listed_are_not_tried(self):
        assert self.reject(encoded(Image.new("RGB", (8, 8)), "PCX")).error == "decode.not_an_image"
        assert self.reject(encoded(Image.new("RGB", (8, 8)), "EPS")).error == "decode.not_an_image"

    def test_a_side_below_the_multiple(self):
        with pytest.raises(PairRejected, match="7 x 64") as caught:
            PairDecoder(sizing=Sizing(ratio=8)).image(encoded(Image.new("RGB", (64, 7))))
        assert caught.value.error == "size.too_small"
