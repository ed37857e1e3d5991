"""Rules for one file, each against levels that the test made itself."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from inpaint_encode.core.decode import decode_image as image_of
from inpaint_encode.core.decode import decode_mask as mask_of
from inpaint_encode.core.decode import upright_size
from inpaint_encode.errors import PairRejected
from tests.files import (
    COLOUR,
    GREY,
    png,
    png_chunk,
    tiff,
)

from .samples import (
    KINDS,
    LEVELS,
    NOISE,
    SMOOTH,
    WIDE,
    caught_by,
    decode_image,
    decode_mask,
    encoded,
    tiff_of_12_bits,
    turned_by,
)


class TestImages:
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation_is_applied_once(self, orientation, kind):
        colours = np.stack([LEVELS[:4], LEVELS[4:8], LEVELS[8:12]], axis=-1)
        data = encoded(Image.fromarray(colours), kind, exif=turned_by(orientation))
        assert np.array_equal(decode_image(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data)))))
        turned = colours if orientation < 5 else colours.swapaxes(0, 1)
        assert decode_image(data).shape == turned.shape

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
    @pytest.mark.parametrize("exif", [b"garbage!", b"XX*\0\x08\0\0\0", b"II*\0\xff\xff\0\0", b"MM\0*"])
    def test_damaged_exif_is_ignored(self, kind, exif):
        data = encoded(Image.fromarray(NOISE), kind, exif=b"Exif\0\0" + exif)
        assert exif in data
        assert np.array_equal(decode_image(data), decode_image(encoded(Image.fromarray(NOISE), kind)))
        assert upright_size(data) == NOISE.shape[:2]

    @pytest.mark.parametrize("size", [(64, 48), (33, 17), (1, 1)])
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 3}])
    def test_jpeg_levels_equal_pillows(self, size, subsampling, options):
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        data = encoded(Image.fromarray(noise), "JPEG", quality=90, subsampling=subsampling, **options)
        assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data))))

    @pytest.mark.parametrize(("mode", "options"), [("L", {}), ("CMYK", {}), ("RGB", {"keep_rgb": True})])
    def test_grey_cmyk_and_rgb_jpeg(self, mode, options):
        data = encoded(Image.effect_noise((40, 30), 60).convert(mode), "JPEG", **options)
        assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


class TestMasks:
    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_tiff_that_stores_white_as_0(self, compression):
        for levels in (LEVELS, WIDE):
            inverted = np.iinfo(levels.dtype).max - levels
            data = tiff(inverted, photometric="miniswhite", compression=compression)
            assert np.array_equal(decode_mask(data), levels)

    def test_12_bit_grey_is_scaled(self):
        values = np.array([[0, 1, 2047, 2048], [2049, 4000, 4094, 4095]])
        found = decode_mask(tiff_of_12_bits(values))
        assert np.array_equal(found, np.round(values * 65535 / 4095))
        assert np.array_equal(found > 32767, values >= 2048)
        assert np.array_equal(decode_image(tiff_of_12_bits(values))[..., 0], np.round(np.round(found / 257)))

    @pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
    def test_transparent_grey_level(self, depth):
        values = np.arange(256).reshape(16, 16) % 2**depth
        level = 2**depth // 3 + 1 if depth < 16 else 77
        data = png(values, GREY, depth, png_chunk(b"tRNS", struct.pack(">H", level)))
        assert np.array_equal(decode_mask(data, "alpha"), np.where(values == level, 0, 255))
        assert caught_by(decode_mask, data).error == "mask.ambiguous"
        assert np.array_equal(decode_mask(data, "luma"), decode_mask(png(values, GREY, depth)))

    def test_transparent_16_bit_color_is_rejected(self):
        colours = NOISE.astype(np.uint16) << 8
        data = png(colours, COLOUR, 16, png_chunk(b"tRNS", struct.pack(">3H", *colours[0, 0].tolist())))
        assert caught_by(decode_mask, data).error == caught_by(decode_mask, data, "alpha").error == "mask.unsupported"
        assert np.array_equal(decode_image(data), NOISE)

    def test_mask_without_alpha(self):
        for data in (encoded(Image.fromarray(LEVELS)), encoded(Image.fromarray(LEVELS), "JPEG")):
            with pytest.raises(PairRejected, match=r"16 x 16 pixels in .* no alpha channel") as caught:
                decode_mask(data, "alpha")
            assert caught.value.error == "mask.no_alpha"


class TestRejected:
    def test_names_of_rejections(self):
        assert caught_by(decode_image, b"").error == "image.not_an_image"
        assert caught_by(decode_image, b"<html>gone</html>").error == "image.not_an_image"
        jpeg = encoded(Image.effect_noise((64, 64), 50), "JPEG")
        assert caught_by(decode_image, jpeg[: len(jpeg) // 2]).error == "image.truncated"
        assert caught_by(decode_mask, jpeg[: len(jpeg) // 2]).error == "mask.truncated"
        webp = encoded(Image.effect_noise((64, 64), 50), "WEBP")
        rejection = caught_by(decode_image, webp[:-9])
        assert (rejection.error, f"{len(webp):,} bytes" in rejection.message) == ("image.truncated", True)
        assert caught_by(decode_mask, encoded(Image.new("L", (8, 8)))[:20]).error == "mask.corrupt"

    @pytest.mark.parametrize("kind", sorted(KINDS))
    @pytest.mark.parametrize("levels", [NOISE, SMOOTH], ids=["noise", "smooth"])
    def test_cut_file_is_rejected_or_complete(self, kind, levels):
        data = encoded(Image.fromarray(levels), kind.partition(" ")[0], **KINDS[kind])
        whole = decode_image(data)
        cuts = {*range(0, len(data), 1 + len(data) // 60), *range(len(data) - 30, len(data))}
        rejected = 0
        for cut in cuts:
            try:
                assert np.array_equal(decode_image(data[:cut]), whole), cut  # what is missing held no levels
            except PairRejected as rejection:
                assert rejection.error in {"image.truncated", "image.corrupt", "image.not_an_image"}
                rejected += 1
        assert rejected >= len(cuts) - 2

    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    @pytest.mark.parametrize("damage", ["cut, with an end marker", "a missing middle"])
    def test_jpeg_damage_that_pillow_accepts(self, damage, mode):
        whole = encoded(Image.effect_noise((96, 96), 60).convert(mode), "JPEG")
        third = len(whole) // 3
        data = whole[: 2 * third] + b"\xff\xd9" if damage.startswith("cut") else whole[:third] + whole[2 * third :]
        Image.open(io.BytesIO(data)).load()
        assert caught_by(decode_image, data).error == "image.corrupt"
        assert caught_by(decode_mask, data).error == "mask.corrupt"

    def test_too_many_pixels_are_rejected_by_the_header(self):
        header = struct.pack(">IIBBBBB", 30_000, 30_001, 1, GREY, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b""))
        rejection = caught_by(decode_image, bomb)
        assert rejection.error == "image.too_large"
        assert "30000 x 30001 pixels; --max-pixels allows 64,000,000" in rejection.message
        small = encoded(Image.new("L", (20, 10)))
        assert image_of(small, max_pixels=200).levels.shape == (10, 20, 3)
        assert caught_by(lambda: image_of(small, max_pixels=199)).error == "image.too_large"
        assert caught_by(lambda: mask_of(small, max_pixels=199)).error == "mask.too_large"

    @pytest.mark.parametrize("values", [np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)])
    def test_32_bit_and_float_levels_are_rejected(self, values):
        data = encoded(Image.fromarray(values), "TIFF")
        assert caught_by(decode_image, data).error == "image.unsupported"
        assert caught_by(decode_mask, data).error == "mask.unsupported"

    def test_color_space_without_a_conversion(self):
        lab = encoded(Image.new("LAB", (4, 4)), "TIFF")
        assert caught_by(decode_mask, lab).error == "mask.corrupt"

    def test_other_formats_are_not_tried(self):
        assert caught_by(decode_image, encoded(Image.new("RGB", (8, 8)), "PCX")).error == "image.not_an_image"
        assert caught_by(decode_image, encoded(Image.new("RGB", (8, 8)), "EPS")).error == "image.not_an_image"
