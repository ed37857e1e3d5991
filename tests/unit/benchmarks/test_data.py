from pathlib import Path

import numpy as np
from PIL import Image

from jobs.benchmarks.data import MIXED, SQUARE_64, SQUARE_512, PairSet, pair_uris, write_pairs

from .conftest import SIZES


def test_sizes_take_turns_and_files_repeat(pairs):
    sizes = [Image.open(pair.image).size for pair in pairs]
    assert sizes == [SIZES[index % 8 % 4] for index in range(10)]
    assert [Image.open(pair.mask).size for pair in pairs] == sizes
    assert Path(pairs[9].image).samefile(pairs[1].image)
    assert len({Path(pair.image).read_bytes() for pair in pairs}) == 8


def test_images_are_rgb_jpeg_and_masks_are_grey_png(pairs):
    for pair in pairs:
        with Image.open(pair.image) as image, Image.open(pair.mask) as mask:
            assert (image.format, image.mode, mask.format, mask.mode) == ("JPEG", "RGB", "PNG", "L")
            assert 0 < np.asarray(mask).mean() < 250


def test_pairs_are_the_same_each_time(pairs, tmp_path):
    second = write_pairs(tmp_path / "second", PairSet("second", SIZES), 3)
    assert [Path(pair.image).read_bytes() for pair in second] == [Path(pair.image).read_bytes() for pair in pairs[:3]]


def test_sizes_of_the_sets():
    assert SQUARE_512.sizes == ((512, 512),)
    assert SQUARE_64.sizes == ((64, 64),)
    assert len(set(MIXED.sizes)) == 12
    assert max(max(size) for size in MIXED.sizes) == 1024


def test_a_folder_has_a_thousand_keys():
    assert pair_uris("s3://b/p", 1001)[-1] == ("0001/0001000", *(
        f"s3://b/p/{side}/0001/0001000.{suffix}" for side, suffix in (("images", "jpg"), ("masks", "png"))
    ))  # fmt: skip
