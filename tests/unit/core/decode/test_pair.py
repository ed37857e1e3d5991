"""Decode rules, each against levels that the test made itself."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from inpaint_encode.core.decode import PairDecoder, upright_size
from inpaint_encode.core.decode import decode_image as image_of
from inpaint_encode.core.decode import decode_mask as mask_of
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import PairRejected
from tests.files import (
    COLOUR,
    COLOUR_ALPHA,
    GREY,
    GREY_ALPHA,
    PALETTE,
    grey_profile,
    matrix_profile,
    png,
    png_chunk,
    taller_png,
    tiff,
)

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16)
WIDE = np.array([[0, 255, 256, 32767], [32768, 33000, 65279, 65535]], np.uint16)
NOISE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
SMOOTH = np.stack([*np.mgrid[:48, :64], sum(np.mgrid[:48, :64])], axis=-1).astype(np.uint8) * 2
ADOBE_RGB = np.array([[0.60974, 0.20528, 0.14919], [0.31111, 0.62567, 0.06322], [0.01947, 0.06087, 0.74457]])
SRGB = np.array([[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]])
"""XYZ under D50 of red, green and blue, in columns."""
KINDS = {
    "JPEG": {},
    "JPEG progressive": {"progressive": True},
    "PNG": {},
    "WEBP": {},
    "WEBP lossless": {"lossless": True},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
    "TIFF lzw": {"compression": "tiff_lzw"},
    "TIFF jpeg": {"compression": "jpeg"},
    "AVIF": {},
}
"""How Pillow is to write each kind."""


PNGS = {
    "grey": lambda **options: png(NOISE[..., 0], GREY, **options),
    "grey of 1 bit": lambda **options: png(NOISE[..., 0] >> 7, GREY, 1, **options),
    "grey of 16 bits": lambda **options: png(NOISE[..., 0].astype(np.uint16) << 8, GREY, 16, **options),
    "colour": lambda **options: png(NOISE, COLOUR, **options),
    "colour of 16 bits": lambda **options: png(NOISE.astype(np.uint16) << 8, COLOUR, 16, **options),
    "palette": lambda **options: png(NOISE[..., 0] >> 4, PALETTE, 4, PLTE=NOISE[0, :16], **options),
    "grey and alpha": lambda **options: png(NOISE[..., :2], GREY_ALPHA, **options),
    "colour and alpha": lambda **options: png(np.dstack([NOISE, NOISE[..., 0]]), COLOUR_ALPHA, **options),
}


def srgb_curve(light: np.ndarray) -> np.ndarray:
    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


def decode_image(data: bytes) -> np.ndarray:
    return image_of(data).levels


def decode_mask(data: bytes, channel: str = "auto") -> np.ndarray:
    return mask_of(data, channel).levels


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def tiff_of_12_bits(values: np.ndarray) -> bytes:
    """One strip of grey, two levels in three bytes; written here, since tifffile does not without a codec."""
    height, width = values.shape
    packed = np.packbits((values.reshape(height, -1, 1) >> np.arange(11, -1, -1) & 1).reshape(height, -1), axis=1)
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 118, 277: 1, 278: height, 279: packed.size}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + packed.tobytes()


def turned_by(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


def caught_by(decode, *arguments) -> PairRejected:
    with pytest.raises(PairRejected) as caught:
        decode(*arguments)
    return caught.value


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
    def test_exif_that_cannot_be_read_says_nothing(self, kind, exif):
        data = encoded(Image.fromarray(NOISE), kind, exif=b"Exif\0\0" + exif)
        assert exif in data
        assert np.array_equal(decode_image(data), decode_image(encoded(Image.fromarray(NOISE), kind)))
        assert upright_size(data) == NOISE.shape[:2]

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
    @pytest.mark.parametrize(("levels", "repainted"), [((127, 128), (0, 1)), ((0, 255), (0, 1))])
    def test_threshold(self, levels, repainted):
        mask = np.repeat(np.array([levels], np.uint8), 2, axis=0)
        decoder = PairDecoder(sizing=Sizing(multiple=1))
        image = decoder.image(encoded(Image.new("RGB", (2, 2))))
        assert np.array_equal(decoder.mask(encoded(Image.fromarray(mask)), image), [repainted] * 2)

    def test_threshold_of_16_bits(self):
        decoder = PairDecoder(sizing=Sizing(multiple=1))
        image = decoder.image(encoded(Image.new("RGB", (4, 2))))
        assert np.array_equal(decoder.mask(encoded(Image.fromarray(WIDE)), image), WIDE >= 32768)

    @pytest.mark.parametrize("compression", [None, "zlib"])
    def test_white_is_white_in_a_tiff_whose_white_is_0(self, compression):
        for levels in (LEVELS, WIDE):
            inverted = np.iinfo(levels.dtype).max - levels
            data = tiff(inverted, photometric="miniswhite", compression=compression)
            assert np.array_equal(decode_mask(data), levels)

    def test_grey_of_12_bits_is_scaled(self):
        values = np.array([[0, 1, 2047, 2048], [2049, 4000, 4094, 4095]])
        found = decode_mask(tiff_of_12_bits(values))
        assert np.array_equal(found, np.round(values * 65535 / 4095))
        assert np.array_equal(found > 32767, values >= 2048)
        assert np.array_equal(decode_image(tiff_of_12_bits(values))[..., 0], np.round(np.round(found / 257)))

    @pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
    def test_a_grey_level_that_is_transparent(self, depth):
        values = np.arange(256).reshape(16, 16) % 2**depth
        level = 2**depth // 3 + 1 if depth < 16 else 77
        data = png(values, GREY, depth, png_chunk(b"tRNS", struct.pack(">H", level)))
        assert np.array_equal(decode_mask(data, "alpha"), np.where(values == level, 0, 255))
        assert caught_by(decode_mask, data).error == "mask.ambiguous"
        assert np.array_equal(decode_mask(data, "luma"), decode_mask(png(values, GREY, depth)))

    def test_a_colour_of_16_bits_that_is_transparent_cannot_be_told(self):
        colours = NOISE.astype(np.uint16) << 8
        data = png(colours, COLOUR, 16, png_chunk(b"tRNS", struct.pack(">3H", *colours[0, 0].tolist())))
        assert caught_by(decode_mask, data).error == caught_by(decode_mask, data, "alpha").error == "mask.unsupported"
        assert np.array_equal(decode_image(data), NOISE)

    def test_inverted_polarity_inverts_the_levels_first(self):
        image = PairDecoder(sizing=Sizing(multiple=1)).image(encoded(Image.new("RGB", (3, 1))))
        for polarity, repainted in (("white", [0, 0, 1]), ("black", [1, 0, 0])):
            decoder = PairDecoder(sizing=Sizing(multiple=1), mask_polarity=polarity)
            resized = png(np.array([[0, 255]]), GREY)
            assert decoder.mask(resized, image).tolist() == [repainted]  # the middle one is exactly half, and kept

    def test_a_file_without_alpha(self):
        for data in (encoded(Image.fromarray(LEVELS)), encoded(Image.fromarray(LEVELS), "JPEG")):
            with pytest.raises(PairRejected, match=r"16 x 16 pixels in .* no alpha channel") as caught:
                decode_mask(data, "alpha")
            assert caught.value.error == "mask.no_alpha"


class TestProfiles:
    @pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
    def test_colours_become_those_of_srgb(self, kind, options):
        colours = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
        data = encoded(Image.fromarray(colours), kind, icc_profile=matrix_profile(ADOBE_RGB, 563 / 256), **options)
        light = np.clip((colours / 255.0) ** (563 / 256) @ ADOBE_RGB.T @ np.linalg.inv(SRGB).T, 0, 1)
        found = decode_image(data)
        assert np.abs(found - 255 * srgb_curve(light)).max() <= 1.5
        assert np.abs(found - colours.astype(int)).max() > 100
        assert np.array_equal(image_of(data, icc="ignore").levels, colours)

    def test_palettes_and_turned_images_have_profiles_too(self):
        profile = matrix_profile(ADOBE_RGB, 563 / 256)
        colours = np.full((8, 16, 3), (0, 200, 0), np.uint8)
        light = np.clip((colours[0, 0] / 255) ** (563 / 256) @ ADOBE_RGB.T @ np.linalg.inv(SRGB).T, 0, 1)
        options = {"icc_profile": profile, "exif": turned_by(6)}
        for image, kind in ((Image.fromarray(colours), "JPEG"), (Image.fromarray(colours).quantize(4), "PNG")):
            found = decode_image(encoded(image, kind, **options))
            assert found.shape == (16, 8, 3)
            assert np.abs(found - 255 * srgb_curve(light)).max() <= 4

    @pytest.mark.parametrize("mode", ["L", "LA", "I;16"])
    def test_grey_with_a_profile_of_grey_or_of_colour(self, mode):
        levels = LEVELS.astype(np.uint16) * 257 if mode == "I;16" else LEVELS
        wanted = 255 * srgb_curve((LEVELS / 255) ** 1.8)
        for profile in (grey_profile(1.8), matrix_profile(SRGB, 1.8)):
            image = Image.fromarray(levels)
            data = encoded(image.convert("LA") if mode == "LA" else image, icc_profile=profile)
            assert np.abs(decode_image(data) - wanted[..., None]).max() <= 1.5

    @pytest.mark.parametrize(
        "profile",
        [
            b"no profile",
            matrix_profile(ADOBE_RGB, 2.2)[:300],
            grey_profile(1.0),
            matrix_profile(ADOBE_RGB, 2.2).replace(b"RGB ", b"CMYK"),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
            ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes(),
        ],
        ids=["garbage", "cut", "of grey", "of inks", "sRGB itself", "of no device"],
    )
    def test_one_that_says_nothing_of_the_levels_leaves_them(self, profile):
        colours = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
        assert np.array_equal(decode_image(encoded(Image.fromarray(colours), icc_profile=profile)), colours)

    def test_masks_are_not_colours(self):
        data = encoded(Image.fromarray(LEVELS), icc_profile=grey_profile(1.0))
        assert np.array_equal(decode_mask(data), LEVELS)


class TestOrientationOfOne:
    TALL, WIDE = Image.new("RGB", (32, 48)), Image.new("RGB", (48, 32))

    def reject(self, image: bytes, mask: bytes) -> PairRejected:
        decoder = PairDecoder(sizing=Sizing(multiple=8))
        return caught_by(decoder.mask, mask, decoder.image(image))

    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
    def test_a_mask_that_lies_across_is_rejected_by_name(self, kind):
        photo = encoded(self.WIDE, kind, exif=turned_by(6))
        for mask in (self.WIDE, self.WIDE.resize((97, 64))):
            rejection = self.reject(photo, encoded(mask.convert("L")))
            assert rejection.error == "orientation.mismatch"
            assert "image is 48 x 32 pixels upright" in rejection.message
        rejection = self.reject(encoded(self.WIDE), encoded(self.WIDE.convert("L"), kind, exif=turned_by(8)))
        assert (rejection.error, "mask's EXIF" in rejection.message) == ("orientation.mismatch", True)

    def test_all_others_are_taken(self):
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


class TestRejected:
    @pytest.mark.parametrize("kind", sorted(KINDS))
    @pytest.mark.parametrize("levels", [NOISE, SMOOTH], ids=["noise", "smooth"])
    def test_a_file_that_ends_early_is_never_half_grey(self, kind, levels):
        data = encoded(Image.fromarray(levels), kind.partition(" ")[0], **KINDS[kind])
        whole = decode_image(data)
        cuts = {*range(0, len(data), 1 + len(data) // 60), *range(len(data) - 30, len(data))}
        rejected = 0
        for cut in cuts:
            try:
                assert np.array_equal(decode_image(data[:cut]), whole), cut  # what is missing held no levels
            except PairRejected as rejection:
                assert rejection.error in {"decode.truncated", "decode.corrupt", "decode.not_an_image"}
                rejected += 1
        assert rejected >= len(cuts) - 2

    @pytest.mark.parametrize("kind", PNGS)
    @pytest.mark.parametrize("interlaced", [False, True])
    def test_a_png_whose_data_do_not_fill_its_size(self, kind, interlaced):
        whole = PNGS[kind](interlaced=interlaced)
        assert decode_image(whole).shape == NOISE.shape
        for height in (49, 50, 96, 97):
            data = taller_png(whole, height)
            wanted = (
                {"truncated", "corrupt"} if interlaced else {"truncated"}
            )  # rows of passes may not be rows any more
            assert caught_by(decode_image, data).error.removeprefix("decode.") in wanted
            assert caught_by(decode_mask, data, "luma").error.removeprefix("mask.") in wanted

    @pytest.mark.parametrize("interlaced", [False, True])
    @pytest.mark.parametrize(("depth", "level"), [(1, 0), (1, 1), (2, 0), (4, 0), (8, 0), (8, 1), (16, 0), (16, 258)])
    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 7), (9, 16)])
    def test_one_level_all_over_is_no_lack_of_data(self, size, depth, level, interlaced):
        data = png(np.full(size, level, np.uint16), GREY, depth, interlaced=interlaced)
        assert np.array_equal(decode_mask(data), np.full(size, level * (255 if depth == 1 else 1)))
        assert caught_by(decode_mask, taller_png(data, size[0] + 1)).error == "mask.truncated"

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"rowsperstrip": 8},
            {"tile": (32, 32)},
            {"planarconfig": "separate"},
            {"planarconfig": "separate", "tile": (32, 32)},
        ],
    )
    def test_a_tiff_whose_strips_or_tiles_do_not_fill_its_size(self, options):
        planes = np.ascontiguousarray(NOISE.transpose(2, 0, 1)) if "planarconfig" in options else NOISE
        whole = tiff(planes, photometric="rgb", **options)
        height = struct.pack("<HHII", 257, 4, 1, 48)
        assert np.array_equal(decode_image(whole), NOISE) and whole.count(height) == 1
        data = whole.replace(height, struct.pack("<HHII", 257, 4, 1, 96))
        assert caught_by(decode_image, data).error == "decode.truncated"
        assert caught_by(decode_mask, data).error == "mask.truncated"

    @pytest.mark.parametrize("options", [{}, {"interlace": 0}, {"transparency": 85}, {"transparency": 0}])
    def test_a_gif_whose_data_do_not_fill_its_frame(self, options):
        for levels in (NOISE[..., 0], np.full((48, 64), 85, np.uint8), np.zeros((48, 64), np.uint8)):
            whole = encoded(Image.fromarray(levels), "GIF", **options)
            assert np.array_equal(decode_mask(whole, "luma"), levels)
            for height in (49, 50, 96, 97):
                data = whole.replace(struct.pack("<HH", 64, 48), struct.pack("<HH", 64, height))
                assert caught_by(decode_image, data).error == "decode.truncated"

    def test_names(self):
        assert caught_by(decode_image, b"").error == "decode.not_an_image"
        assert caught_by(decode_image, b"<html>gone</html>").error == "decode.not_an_image"
        jpeg = encoded(Image.effect_noise((64, 64), 50), "JPEG")
        assert caught_by(decode_image, jpeg[: len(jpeg) // 2]).error == "decode.truncated"
        assert caught_by(decode_mask, jpeg[: len(jpeg) // 2]).error == "mask.truncated"
        webp = encoded(Image.effect_noise((64, 64), 50), "WEBP")
        rejection = caught_by(decode_image, webp[:-9])
        assert (rejection.error, f"{len(webp):,} bytes" in rejection.message) == ("decode.truncated", True)
        assert caught_by(decode_mask, encoded(Image.new("L", (8, 8)))[:20]).error == "mask.corrupt"

    @pytest.mark.parametrize("mode", ["RGB", "CMYK"])
    @pytest.mark.parametrize("damage", ["cut, with an end marker", "a missing middle"])
    def test_jpeg_damage_that_pillow_shrugs_at(self, damage, mode):
        whole = encoded(Image.effect_noise((96, 96), 60).convert(mode), "JPEG")
        third = len(whole) // 3
        data = whole[: 2 * third] + b"\xff\xd9" if damage.startswith("cut") else whole[:third] + whole[2 * third :]
        Image.open(io.BytesIO(data)).load()
        assert caught_by(decode_image, data).error == "decode.corrupt"
        assert caught_by(decode_mask, data).error == "mask.corrupt"

    def test_a_flipped_bit_of_a_png_is_found_wherever_its_levels_depend_on_it(self):
        shape = np.hypot(*np.mgrid[-40:40, -40:40]) < 25
        data = png(shape * 255, GREY, 8)
        for at, bit in enumerate(np.random.default_rng(0).integers(0, 8, len(data))):
            damaged = bytearray(data)
            damaged[at] ^= 1 << bit
            assert caught_by(decode_mask, bytes(damaged)).error.startswith("mask.")

    def test_a_bomb_is_refused_by_its_header(self):
        header = struct.pack(">IIBBBBB", 30_000, 30_001, 1, GREY, 0, 0, 0)
        bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b""))
        rejection = caught_by(decode_image, bomb)
        assert rejection.error == "decode.too_large"
        assert "30000 x 30001 pixels; --max-pixels allows 64,000,000" in rejection.message
        small = encoded(Image.new("L", (20, 10)))
        assert image_of(small, max_pixels=200).levels.shape == (10, 20, 3)
        assert caught_by(lambda: image_of(small, max_pixels=199)).error == "decode.too_large"
        assert caught_by(lambda: mask_of(small, max_pixels=199)).error == "mask.too_large"

    @pytest.mark.parametrize("values", [np.zeros((4, 4), np.int32), np.zeros((4, 4), np.float32)])
    def test_levels_of_no_stated_range(self, values):
        data = encoded(Image.fromarray(values), "TIFF")
        assert caught_by(decode_image, data).error == "decode.unsupported"
        assert caught_by(decode_mask, data).error == "mask.unsupported"

    def test_a_colour_space_that_cannot_be_converted(self):
        lab = encoded(Image.new("LAB", (4, 4)), "TIFF")
        assert caught_by(decode_mask, lab).error == "mask.corrupt"

    def test_formats_that_are_not_listed_are_not_tried(self):
        assert caught_by(decode_image, encoded(Image.new("RGB", (8, 8)), "PCX")).error == "decode.not_an_image"
        assert caught_by(decode_image, encoded(Image.new("RGB", (8, 8)), "EPS")).error == "decode.not_an_image"

    def test_a_side_below_the_multiple(self):
        decoder = PairDecoder(sizing=Sizing(multiple=8))
        rejection = caught_by(decoder.image, encoded(Image.new("RGB", (64, 7))))
        assert (rejection.error, "7 x 64" in rejection.message) == ("size.too_small", True)
