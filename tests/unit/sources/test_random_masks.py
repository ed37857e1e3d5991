"""Random masks: how they are drawn, and the pairs that they make."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.settings import Source
from inpaint_encode.sources import PairReader, open_source
from inpaint_encode.sources.random_masks import RandomMask
from inpaint_encode.stores import storage
from tests.unit.sources.make_sources import (
    found_pairs,
    noise,
    read_all,
    sample,
    write_manifest,
    write_parquet,
    write_tar,
)

GOLDEN = {
    ("brush", 512, 512): "a30be106bb43adf0",
    ("brush", 300, 801): "29a1893ae21703c5",
    ("box", 512, 512): "afc6a05e998aa3d5",
    ("mixed", 33, 64): "d8d489719afa5094",
}


def hash_of_masks(style: str, height: int, width: int) -> str:
    """Return the hash of eight masks: two seeds, two keys, two indices."""
    whole = hashlib.sha256()
    for seed, key, index in [(s, k, i) for s in (0, 1) for k in ("a/042", "ü") for i in (0, 1)]:
        whole.update(np.packbits(RandomMask(style, seed, key, index).draw(height, width)).tobytes())
    return whole.hexdigest()[:16]


@pytest.mark.parametrize(("style", "height", "width"), GOLDEN)
def test_every_machine_draws_these_bits(style, height, width):
    assert hash_of_masks(style, height, width) == GOLDEN[style, height, width]


def test_seed_key_and_index_each_make_another_mask():
    masks = [RandomMask("brush", seed, key, index) for seed in (0, 1) for key in ("a", "b") for index in (0, 1)]
    assert len({mask.draw(64, 64).tobytes() for mask in masks}) == 8


@pytest.mark.parametrize("style", ["brush", "box", "mixed"])
@pytest.mark.parametrize("size", [(256, 256), (200, 640)])
def test_a_mask_is_never_empty_nor_full_and_not_always_alike(style, size):
    masks = [RandomMask(style, 0, str(key), 0).draw(*size) for key in range(200)]
    shares = [np.count_nonzero(mask) / mask.size for mask in masks]
    assert {level for mask in masks for level in np.unique(mask)} == {0, 255}
    assert 0.001 < min(shares) < 0.06
    assert 0.15 < max(shares) < 0.8
    assert 0.05 < np.median(shares) < 0.3


def test_boxes_keep_to_their_sizes():
    for key in range(100):
        mask = RandomMask("box", 0, str(key), 0).draw(80, 160) > 0
        rows_of, columns_of = mask.any(axis=1), mask.any(axis=0)
        assert rows_of.sum() >= 10 and columns_of.sum() >= 20
        assert mask.sum() <= 4 * 40 * 80


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 5_000), (5_000, 1)])
def test_any_size_can_be_drawn_on(size):
    for key in range(20):
        assert RandomMask("mixed", 0, str(key), 0).draw(*size).shape == size


def test_images_of_a_prefix(tmp_path):
    for name in ("a.png", "b/c.jpg", "notes.txt"):
        storage.write(f"{tmp_path}/{name}", b"1")
    source = open_source(Source(images=str(tmp_path), random_masks=2, mask_style="box", mask_seed=7))
    pairs = read_all(source).to_pylist()
    assert [(p["key"], p["image_uri"].removeprefix(f"{tmp_path}/"), p["mask_uri"]) for p in pairs] == [
        ("a", "a.png", "random:box?seed=7&index=0"),
        ("a/1", "a.png", "random:box?seed=7&index=1"),
        ("b/c", "b/c.jpg", "random:box?seed=7&index=0"),
        ("b/c/1", "b/c.jpg", "random:box?seed=7&index=1"),
    ]
    assert [pair["mask_index"] for pair in pairs] == [0, 1, 0, 1]
    assert source.left_out.ignored_files == 1


def test_images_of_lists_rows_and_tars(tmp_path):
    write_parquet(f"{tmp_path}/uris.parquet", {"image": ["a.jpg", "b.jpg"], "mask": ["a.png", "b.png"]})
    write_parquet(f"{tmp_path}/rows.parquet", {"image": [noise(1)], "mask": [noise(2)]})
    write_tar(f"{tmp_path}/x.tar", sample("s"))
    for name, keys in {
        "uris.parquet": ["a", "a/1", "b", "b/1"],
        "rows.parquet": ["rows/0", "rows/0/1"],
        "x.tar": ["x/s", "x/s/1"],
    }.items():
        pairs = found_pairs(Source(pairs=f"{tmp_path}/{name}", random_masks=2))
        assert [pair["key"] for pair in pairs] == keys
        assert pairs[1]["mask_uri"] == "random:mixed?seed=0&index=1"


def test_a_resized_image_has_its_mask_drawn_at_its_new_size():
    image = io.BytesIO()
    Image.new("RGB", (90, 60)).save(image, "PNG")
    decoder = PairDecoder(sizing=Sizing(multiple=8, resize=32))
    decoded = decoder.image(image.getvalue())
    mask = RandomMask("box", 0, "k", 0)
    assert np.array_equal(decoder.mask(mask, decoded), mask.draw(32, 48) > 0)


def test_the_order_and_the_thread_of_drawing_change_nothing():
    image = io.BytesIO()
    Image.new("RGB", (70, 50)).save(image, "PNG")
    decoder = PairDecoder(sizing=Sizing(multiple=8))
    decoded = decoder.image(image.getvalue())
    pairs = [
        {"key": f"k/{n}", "mask_uri": f"random:brush?seed=3&index={n}", "mask_version": "drawn-1"} for n in range(6)
    ]

    def draw(pair):
        return decoder.mask(PairReader().read(pair["mask_uri"], key=pair["key"]).data, decoded).tobytes()

    expected = [draw(pair) for pair in pairs]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, reversed(pairs))) == expected[::-1]
    whole = RandomMask("brush", 3, "k/2", 2).draw(50, 70)[1:49, 3:67] > 0
    assert expected[2] == whole.astype(np.uint8).tobytes()


def test_two_lines_of_one_image_with_random_masks(tmp_path):
    lines = [{"image": "a.jpg", "id": "x"}, {"image": "a.jpg", "id": "y"}]
    path = str(write_manifest(tmp_path / "m.jsonl", lines))
    pairs = found_pairs(Source(pairs=path, random_masks=2, key_column="id"))
    assert [(pair["key"], pair["line"]) for pair in pairs] == [("x", 0), ("x/1", 0), ("y", 1), ("y/1", 1)]
