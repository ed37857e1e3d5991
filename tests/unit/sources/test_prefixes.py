"""Pairs by file name, and the memory that listing needs."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import obstore
import pytest
import tenacity

from inpaint_encode.errors import UsageError
from inpaint_encode.output import plan
from inpaint_encode.schema import PAIRS
from inpaint_encode.settings import Source
from inpaint_encode.sources import find_pairs
from inpaint_encode.stores import s3 as clients
from inpaint_encode.stores import storage
from tests.unit.sources.make_sources import touch, triples


def find_in(folder, *, masks="", pattern=""):
    return find_pairs(Source(images=str(folder), masks=masks and str(masks), mask_pattern=pattern))


def test_several_masks_in_the_images_folder(tmp_path):
    touch(tmp_path, "b/a.jpg", "b/a_mask2.png", "b/a_mask10.png", "b/c.png", "b/d_mask0.png", "x_mask1.png", "n.txt")
    found = find_in(tmp_path, pattern="{stem}_mask{n}.png")
    assert triples(found, tmp_path) == [
        ("b/a_mask2", "b/a.jpg", "b/a_mask2.png", 2),
        ("b/a_mask10", "b/a.jpg", "b/a_mask10.png", 10),
    ]
    assert found.unpaired_images.to_pylist() == [
        f"{tmp_path}/{name}" for name in ("b/c.png", "b/d_mask0.png", "x_mask1.png")
    ]
    assert (found.unpaired_masks.to_pylist(), found.ignored_files) == ([], 1)


def test_one_mask_an_image_has_the_images_key(tmp_path):
    touch(tmp_path, "a.jpg", "a-masklabel.png", "c/a.jpg", "c/a-masklabel.png")
    assert triples(find_in(tmp_path, pattern="{stem}-masklabel.png"), tmp_path) == [
        ("a", "a.jpg", "a-masklabel.png", 0),
        ("c/a", "c/a.jpg", "c/a-masklabel.png", 0),
    ]


def test_suffixes_match_in_any_case_and_numbers_with_zeros_before_them(tmp_path):
    touch(tmp_path, "a.JPG", "a_mask1.PNG", "a_mask01.png", "b.jpg", "b_mask0.Png")
    found = find_in(tmp_path, pattern="{stem}_mask{n}.png")
    assert triples(found, tmp_path) == [
        ("a_mask01", "a.JPG", "a_mask01.png", 1),
        ("a_mask1", "a.JPG", "a_mask1.PNG", 1),
        ("b_mask0", "b.jpg", "b_mask0.Png", 0),
    ]


def test_a_text_before_the_stem(tmp_path):
    touch(tmp_path, "c/a.jpg", "c/mask3_a.png", "mask3_a.png")
    found = find_in(tmp_path, pattern="mask{n}_{stem}.png")
    assert triples(found, tmp_path) == [("c/mask3_a", "c/a.jpg", "c/mask3_a.png", 3)]


def test_a_mask_of_a_mask_is_an_unpaired_mask(tmp_path):
    touch(tmp_path, "a.png", "a_mask1.png", "a_mask1_mask2.png")
    found = find_in(tmp_path, pattern="{stem}_mask{n}.png")
    assert [row[0] for row in triples(found, tmp_path)] == ["a_mask1"]
    assert found.unpaired_masks.to_pylist() == [f"{tmp_path}/a_mask1_mask2.png"]


def test_two_folders(tmp_path):
    touch(tmp_path, "images/a.png", "images/a_mask1.png", "masks/a_mask0.png", "masks/b_mask0.png", "masks/c.png")
    found = find_in(tmp_path / "images", masks=tmp_path / "masks", pattern="{stem}_mask{n}.png")
    assert triples(found, tmp_path) == [("a_mask0", "images/a.png", "masks/a_mask0.png", 0)]
    assert found.unpaired_images.to_pylist() == [f"{tmp_path}/images/a_mask1.png"]
    assert found.unpaired_masks.to_pylist() == [f"{tmp_path}/masks/b_mask0.png", f"{tmp_path}/masks/c.png"]


def test_an_images_masks_are_neighbours_whatever_lies_between(tmp_path):
    touch(tmp_path, "a.png", "a_0.png", "a_b.png", "a_b_0.png", "a_3.png")
    keys = [row[0] for row in triples(find_in(tmp_path, pattern="{stem}_{n}.png"), tmp_path)]
    assert keys == ["a_0", "a_3", "a_b_0"]


def test_without_a_pair_the_error_names_an_example(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(UsageError, match=r"the mask of a\.png must be named a_mask0\.png"):
        find_in(tmp_path, pattern="{stem}_mask{n}.png")


@pytest.mark.parametrize("empty", ["images", "masks"])
def test_a_prefix_without_image_files_is_an_error(tmp_path, empty):
    touch(tmp_path, "images/a.png", "masks/a.png", f"{empty}/a.txt")
    (tmp_path / empty / "a.png").unlink()
    with pytest.raises(
        UsageError, match=rf"^--{empty} .*/{empty} contains no image files \(other files: 1\); the name"
    ):
        find_in(tmp_path / "images", masks=tmp_path / "masks")


def test_files_that_differ_in_the_extension_only_are_an_error(tmp_path):
    touch(tmp_path, "i/a.jpg", "i/a.png", "m/a.png")
    with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png have the same key, a \(1 such key\); a key is the path"):
        find_in(tmp_path / "i", masks=tmp_path / "m")
    touch(tmp_path, "i/b.jpg", "i/b.png")
    with pytest.raises(UsageError, match=r"\(2 such keys\)"):
        find_in(tmp_path / "i", masks=tmp_path / "m")


def test_one_prefix_without_a_pattern_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="--mask-pattern"):
        find_in(tmp_path, masks=tmp_path)


def test_below_a_prefix(prefix):
    for name in ("b/a.png", "c.webp", "notes.txt"):
        storage.write(f"{prefix}/{name}", name.encode())
    found = find_pairs(Source(images=prefix))
    pairs = found.with_uris(plan.added(PAIRS.empty_table(), found.pairs)).to_pylist()
    assert [(p["key"], p["image_uri"]) for p in pairs] == [("b/a", f"{prefix}/b/a.png"), ("c", f"{prefix}/c.webp")]
    assert [(p["mask_uri"], p["mask_version"]) for p in pairs] == [(p["image_uri"], p["image_version"]) for p in pairs]
    assert (found.ignored_files, found.image_and_mask_bytes) == (1, (13, 0))


OBJECTS = 100_000


MAX_BYTES = 150
"""Peak memory of the listing process for each object."""


MAX_BYTES_WITHOUT_SOME_MASKS = 250
"""The same if some masks are missing: then keys are looked up, and the pairs are copied."""


LIST = """
import pathlib, re, sys, time
from inpaint_encode.settings import Source
from inpaint_encode.sources import find_pairs

def resident(what):
    return 1024 * int(re.search(rf"{what}:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

def pairs_below(prefix):
    return find_pairs(Source(images=f"{prefix}/images", masks=f"{prefix}/masks"))

pairs_below(sys.argv[1])  # warm-up: the memory of clients and libraries is not measured
before = resident("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")
begun = time.monotonic()
found = pairs_below(sys.argv[2])
seconds = time.monotonic() - begun
print(found.pairs.num_rows, seconds, resident("VmHWM") - before, found.pairs.nbytes)
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_objects_under_one_prefix(s3):
    small, large = s3.uri("listing-small"), s3.uri("listing-large")
    begun = time.monotonic()
    fill(small, 2_000)
    fill(large, OBJECTS)
    print(f"\n{OBJECTS:,} objects written in {time.monotonic() - begun:,.0f} s")
    assert bytes_an_object(small, large, OBJECTS // 2) <= MAX_BYTES
    for number in range(0, OBJECTS // 2, 100):
        storage.delete(f"{large}/masks/{number // 1000:03d}/photograph-{number:06d}.png")
    assert bytes_an_object(small, large, OBJECTS // 200 * 99) <= MAX_BYTES_WITHOUT_SOME_MASKS


def bytes_an_object(small: str, large: str, expected: int) -> float:
    done = subprocess.run([sys.executable, "-c", LIST, small, large], capture_output=True, text=True, check=True)
    pairs, seconds, peak, kept = map(float, done.stdout.split())
    print(
        f"{pairs:,.0f} pairs of {OBJECTS:,} objects found in {seconds:.1f} s; memory rose by {peak / 1e6:.1f} MB at "
        f"most, {peak / OBJECTS:.0f} bytes an object, of which the table of pairs keeps {kept / OBJECTS:.0f}"
    )
    assert pairs == expected
    return peak / OBJECTS


def fill(prefix: str, objects: int) -> None:
    """Write one image and one mask for every two objects, in folders of a thousand."""
    bucket, _, below = prefix.removeprefix("s3://").partition("/")
    put = tenacity.retry(stop=tenacity.stop_after_attempt(6), wait=tenacity.wait_exponential_jitter(0.1))(obstore.put)

    def write(number: int) -> None:
        name = f"{number // 1000:03d}/photograph-{number:06d}"
        for path in (f"images/{name}.jpg", f"masks/{name}.png"):
            put(clients.connect(bucket), f"{below}/{path}", b"1")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(objects // 2)))
