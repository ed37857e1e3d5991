"""Pairs by file name: how they are matched, in memory and on disk, and the memory that listing needs."""

import subprocess
import sys
from contextlib import contextmanager

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inpaint_encode.errors import UsageError
from inpaint_encode.schema import SOURCE_PAIRS
from inpaint_encode.settings import Source
from inpaint_encode.sources import hash_buckets, image_files, pairs, prefixes
from inpaint_encode.sources.prefixes import open_prefixes
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import DEFAULT_ACCESS, Listed
from tests.unit.sources.make_sources import touch


class Found:
    """All pairs of a source, in their order, and what belongs to no pair."""

    def __init__(self, source: Source) -> None:
        self.source = open_prefixes(source, DEFAULT_ACCESS)
        batches = [batch.pairs for batch in self.source.batches({})]
        assert all(batch.schema == SOURCE_PAIRS and 0 < batch.num_rows <= pairs.BATCH_PAIRS for batch in batches)
        self.pairs = pa.concat_tables(batches).to_pylist()
        self.left_out = self.source.left_out

    def triples(self, folder) -> list[tuple]:
        """Return ``key, image, mask, mask_index``; paths are relative to the folder."""
        below = len(str(folder)) + 1
        return [(p["key"], p["image_uri"][below:], p["mask_uri"][below:], p["mask_index"]) for p in self.pairs]

    def unpaired(self, folder) -> tuple[list[str], list[str]]:
        """Return the unpaired images and masks, sorted."""
        left = self.left_out
        assert left.unpaired_images == len(left.unpaired_image_uris)
        assert left.unpaired_masks == len(left.unpaired_mask_uris)
        both = (left.unpaired_image_uris, left.unpaired_mask_uris)
        return tuple(sorted(uri.removeprefix(f"{folder}/") for uri in uris) for uris in both)


@contextmanager
def rows_in_memory(rows: int):
    """Write more than ``rows`` files to disk, in pieces of at most so many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hash_buckets, "MEMORY_ROWS", rows)
        patch.setattr(hash_buckets, "BUCKETS", 5)  # a tenth of the time of 256
        patch.setattr(image_files, "_PARSED_FILES", max(1, rows))
        yield


@pytest.fixture(params=["memory", "disk"])
def place(request):
    """Where the files are joined: a listing of three files is on disk, too."""
    with rows_in_memory(2 if request.param == "disk" else hash_buckets.MEMORY_ROWS):
        yield request.param


@pytest.fixture
def find_in(place):
    """Find the pairs below a folder. From a disk, pairs come in any order of images, and are sorted here."""

    def find(folder, *, masks="", pattern=""):
        found = Found(Source(images=str(folder), masks=masks and str(masks), mask_pattern=pattern))
        if place == "disk":
            found.pairs.sort(key=lambda pair: (pair["image_uri"], pair["mask_index"], pair["key"]))
        return found

    return find


def test_several_masks_in_the_images_folder(find_in, tmp_path):
    touch(tmp_path, "b/a.jpg", "b/a_mask2.png", "b/a_mask10.png", "b/c.png", "b/d_mask0.png", "x_mask1.png", "n.txt")
    found = find_in(tmp_path, pattern="{stem}_mask{n}.png")
    assert found.triples(tmp_path) == [
        ("b/a_mask2", "b/a.jpg", "b/a_mask2.png", 2),
        ("b/a_mask10", "b/a.jpg", "b/a_mask10.png", 10),
    ]
    assert found.unpaired(tmp_path) == (["b/c.png", "b/d_mask0.png", "x_mask1.png"], [])
    assert (found.left_out.ignored_files, found.source.objects_listed) == (1, 7)
    assert found.source.image_and_mask_bytes == (len("b/a.jpg"), len("b/a_mask2.png" + "b/a_mask10.png"))


def test_one_mask_an_image_has_the_images_key(find_in, tmp_path):
    touch(tmp_path, "a.jpg", "a-masklabel.png", "c/a.jpg", "c/a-masklabel.png")
    assert find_in(tmp_path, pattern="{stem}-masklabel.png").triples(tmp_path) == [
        ("a", "a.jpg", "a-masklabel.png", 0),
        ("c/a", "c/a.jpg", "c/a-masklabel.png", 0),
    ]


def test_suffixes_match_in_any_case_and_numbers_with_zeros_before_them(find_in, tmp_path):
    touch(tmp_path, "a.JPG", "a_mask1.PNG", "a_mask01.png", "b.jpg", "b_mask0.Png")
    assert find_in(tmp_path, pattern="{stem}_mask{n}.png").triples(tmp_path) == [
        ("a_mask01", "a.JPG", "a_mask01.png", 1),
        ("a_mask1", "a.JPG", "a_mask1.PNG", 1),
        ("b_mask0", "b.jpg", "b_mask0.Png", 0),
    ]


def test_a_text_before_the_stem(find_in, tmp_path):
    touch(tmp_path, "c/a.jpg", "c/mask3_a.png", "mask3_a.png")
    found = find_in(tmp_path, pattern="mask{n}_{stem}.png")
    assert found.triples(tmp_path) == [("c/mask3_a", "c/a.jpg", "c/mask3_a.png", 3)]


def test_a_mask_of_a_mask_is_an_unpaired_mask(find_in, tmp_path):
    touch(tmp_path, "a.png", "a_mask1.png", "a_mask1_mask2.png", "a_mask1_mask2_mask3.png")
    found = find_in(tmp_path, pattern="{stem}_mask{n}.png")
    assert [row[0] for row in found.triples(tmp_path)] == ["a_mask1"]
    assert found.unpaired(tmp_path) == ([], ["a_mask1_mask2.png", "a_mask1_mask2_mask3.png"])


def test_of_two_files_with_one_key_the_one_with_another_suffix_is_an_image(find_in, tmp_path):
    touch(tmp_path, "a.jpg", "a_mask.jpg", "a_mask.png", "a_mask_mask.png")
    found = find_in(tmp_path, pattern="{stem}_mask.png")
    assert found.triples(tmp_path) == [
        ("a", "a.jpg", "a_mask.png", 0),
        ("a_mask", "a_mask.jpg", "a_mask_mask.png", 0),
    ]


def test_two_folders(find_in, tmp_path):
    touch(tmp_path, "images/a.png", "images/a_mask1.png", "masks/a_mask0.png", "masks/b_mask0.png", "masks/c.png")
    found = find_in(tmp_path / "images", masks=tmp_path / "masks", pattern="{stem}_mask{n}.png")
    assert found.triples(tmp_path) == [("a_mask0", "images/a.png", "masks/a_mask0.png", 0)]
    assert found.unpaired(tmp_path) == (["images/a_mask1.png"], ["masks/b_mask0.png", "masks/c.png"])


def test_masks_in_a_folder_of_the_images(find_in, tmp_path):
    touch(tmp_path, "a.jpg", "b/c.jpg", "b/d.jpg", "masks/a.png", "masks/b/c.png", "masks/n.txt")
    found = find_in(tmp_path, masks=tmp_path / "masks")
    assert found.triples(tmp_path) == [("a", "a.jpg", "masks/a.png", 0), ("b/c", "b/c.jpg", "masks/b/c.png", 0)]
    assert found.unpaired(tmp_path) == (["b/d.jpg"], [])
    assert (found.left_out.ignored_files, found.source.objects_listed) == (1, 6)


def test_an_images_masks_are_neighbors_whatever_lies_between(place, tmp_path):
    touch(tmp_path, "a.png", "a_0.png", "a_b.png", "a_b_0.png", "a_3.png")
    keys = [pair["key"] for pair in Found(Source(images=str(tmp_path), mask_pattern="{stem}_{n}.png")).pairs]
    assert keys in (["a_0", "a_3", "a_b_0"], ["a_b_0", "a_0", "a_3"])


def test_a_grown_listing_has_its_pairs_in_the_same_order(tmp_path):
    names = [f"{number}{suffix}.png" for number in range(60) for suffix in ("", "_mask")]
    source = Source(images=str(tmp_path), mask_pattern="{stem}_mask.png")
    with rows_in_memory(10):
        touch(tmp_path, *names[:60])
        before = [pair["key"] for pair in Found(source).pairs]
        touch(tmp_path, *names[60:])
        after = [pair["key"] for pair in Found(source).pairs]
    assert len(after) == 60 and [key for key in after if key in before] == before


@pytest.mark.usefixtures("place")
def test_batches_are_bounded_also_with_random_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(prefixes, "BATCH_PAIRS", 6)
    touch(tmp_path, *(f"{number}.png" for number in range(20)))
    source = open_prefixes(Source(images=str(tmp_path), random_masks=3), DEFAULT_ACCESS)
    batches = [batch.pairs for batch in source.batches({})]
    assert max(batch.num_rows for batch in batches) <= 6
    keys = pa.concat_tables(batches)["key"].to_pylist()
    assert sorted(keys) == sorted(f"{number}{mask}" for number in range(20) for mask in ("", "/1", "/2"))
    assert keys[1::3] == [f"{key}/1" for key in keys[::3]]


def test_a_second_listing_counts_anew(find_in, tmp_path):
    touch(tmp_path, "a.png", "a_mask.png", "b.png", "n.txt")
    source = find_in(tmp_path, pattern="{stem}_mask.png").source
    (batch,) = source.batches({})
    assert batch.pairs["key"].to_pylist() == ["a"]
    left_out = source.left_out
    assert (left_out.unpaired_images, left_out.ignored_files, source.objects_listed) == (1, 1, 4)


def test_examples_are_limited_and_counts_are_not(find_in, tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "MAX_EXAMPLES", 2)
    touch(tmp_path, "i/a.png", "m/a.png", *(f"{side}{number}.png" for side in ("i/i", "m/m") for number in range(5)))
    left_out = find_in(tmp_path / "i", masks=tmp_path / "m").left_out
    assert (left_out.unpaired_images, left_out.unpaired_masks) == (5, 5)
    assert (len(left_out.unpaired_image_uris), len(left_out.unpaired_mask_uris)) == (2, 2)


def test_without_a_pair_the_error_names_an_example(find_in, tmp_path):
    touch(tmp_path, "b.png", "a.png", "c.png")
    error = rf"the mask of a\.png must be named a_mask0\.png .*: 3, for example a\.png; masks in {tmp_path}: 0\)$"
    with pytest.raises(UsageError, match=error):
        find_in(tmp_path, pattern="{stem}_mask{n}.png")
    touch(tmp_path, "m/d.png", "m/e.png")
    with pytest.raises(UsageError, match=r": 3, for example a\.png; masks in .*/m: 2, for example d\.png\)$"):
        find_in(tmp_path, masks=tmp_path / "m")


@pytest.mark.parametrize("empty", ["images", "masks"])
def test_a_prefix_without_image_files_is_an_error(find_in, tmp_path, empty):
    touch(tmp_path, "images/a.png", "masks/a.png", f"{empty}/a.txt")
    (tmp_path / empty / "a.png").unlink()
    with pytest.raises(
        UsageError, match=rf"^--{empty} .*/{empty} contains no image files \(other files: 1\); the name"
    ):
        find_in(tmp_path / "images", masks=tmp_path / "masks")


def test_an_empty_folder_and_a_missing_one_are_errors(find_in, tmp_path):
    with pytest.raises(UsageError, match="the folder is empty; check the spelling"):
        find_in(tmp_path)
    with pytest.raises(UsageError, match="there is no such folder; check the spelling"):
        find_in(tmp_path / "none")


def test_files_that_differ_in_the_extension_only_are_an_error(find_in, tmp_path):
    touch(tmp_path, "i/a.jpg", "i/a.png", "m/a.png")
    with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png have the same key, a \(1 such key\); a key is the path"):
        find_in(tmp_path / "i", masks=tmp_path / "m")
    touch(tmp_path, "i/b.jpg", "i/b.png")
    for masks in ({"masks": tmp_path / "m"}, {}):
        with pytest.raises(UsageError, match=r"a\.jpg and .*a\.png have the same key, a \(2 such keys\)"):
            find_in(tmp_path / "i", **masks)


def test_two_masks_of_one_number_that_differ_in_the_extension_only_are_an_error(find_in, tmp_path):
    touch(tmp_path, "a.jpg", "a_mask1.png", "a_mask1.PNG", "b.jpg")
    with pytest.raises(
        UsageError, match=r"--masks .*a_mask1.PNG and .*a_mask1.png have the same key, a_mask1 \(1 such"
    ):
        find_in(tmp_path, pattern="{stem}_mask{n}.png")


def test_one_prefix_without_a_pattern_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="--mask-pattern"):
        open_prefixes(Source(images=str(tmp_path), masks=str(tmp_path)), DEFAULT_ACCESS)


def test_temporary_files_without_space_are_an_error(tmp_path):
    touch(tmp_path, *(f"{number}.png" for number in range(50)))
    code = """
import resource, sys
from inpaint_encode.settings import Source
from inpaint_encode.sources import hash_buckets
from inpaint_encode.sources.prefixes import open_prefixes
from inpaint_encode.stores.base import DEFAULT_ACCESS

hash_buckets.MEMORY_ROWS = 20
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
next(open_prefixes(Source(images=sys.argv[1]), DEFAULT_ACCESS).batches({}))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert "UsageError: the listing cannot be written to the folder of temporary files (File too large)" in done.stderr


@pytest.mark.usefixtures("place")
def test_below_a_prefix(prefix):
    for name in ("b/a.png", "c.webp", "d.gif", "notes.txt"):
        storage.write(f"{prefix}/{name}", name.encode())
    found = Found(Source(images=prefix))
    uris = {p["key"]: p["image_uri"] for p in found.pairs}
    assert uris == {"b/a": f"{prefix}/b/a.png", "c": f"{prefix}/c.webp", "d": f"{prefix}/d.gif"}
    assert [(p["mask_uri"], p["mask_version"]) for p in found.pairs] == [
        (p["image_uri"], p["image_version"]) for p in found.pairs
    ]
    assert (found.left_out.ignored_files, found.source.image_and_mask_bytes) == (1, (18, 0))


NAMES = st.builds(
    "{}{}{}.{}".format,
    st.sampled_from(["", "", "x/", "x-1/"]),
    st.sampled_from(["a", "b", "a-1", "ü"]),
    st.lists(st.sampled_from(["_m0", "_m1", "_m01", "_mx"]), max_size=3).map("".join),
    st.sampled_from(["png", "png", "png", "PNG", "jpg", "txt"]),
)
SOURCES = st.sampled_from(
    [
        {"mask_pattern": "{stem}_m{n}.png"},
        {"mask_pattern": "{stem}_m0.png"},
        {"masks": "/masks", "mask_pattern": "{stem}_m{n}.png"},
        {"masks": "/masks"},
        {"masks": "/images/x"},
        {"random_masks": 2},
        {},
    ]
)


@settings(deadline=None)
@given(images=st.sets(NAMES, max_size=30), masks=st.sets(NAMES, max_size=30), options=SOURCES, rows=st.integers(0, 9))
def test_any_names_give_the_same_pairs_in_memory_and_on_disk(images, masks, options, rows):
    below = {"/images": images, "/masks": masks, "/images/x": {name[2:] for name in images if name.startswith("x/")}}

    def outcome():
        try:
            found = Found(Source(images="/images", **options))
        except UsageError as error:
            return str(error)
        left, source = found.left_out, found.source
        pairs = sorted(tuple(pair.items()) for pair in found.pairs)
        counts = (left.unpaired_images, left.unpaired_masks, left.ignored_files, source.objects_listed)
        return pairs, counts, source.image_and_mask_bytes, found.unpaired("")

    def pages(option, prefix, access):
        names = sorted(below[prefix])
        for start in range(0, len(names), 3):
            page = names[start : start + 3]
            yield Listed(page, [len(name) for name in page], [f"v-{name}" for name in page])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_files, "list_pages", pages)
        in_memory = outcome()
        with rows_in_memory(rows):
            assert outcome() == in_memory


LIST = """
import pathlib, re, sys, time
import numpy as np
import pyarrow.compute as pc
from inpaint_encode.settings import Source
from inpaint_encode.sources import image_files, prefixes
from inpaint_encode.sources.prefixes import open_prefixes
from inpaint_encode.stores.base import DEFAULT_ACCESS, Listed

PAIRS, masks, pattern = int(sys.argv[1]), *sys.argv[2:]

def pages(option, prefix, access):
    suffixes = {("--images", ""): [".jpg"], ("--masks", ""): [".png"]}.get((option, pattern), [".jpg", "_mask1.png"])
    for start in range(0, PAIRS, 1000):
        numbers = range(start, min(PAIRS, start + 1000))
        names = [f"{n // 1000:05d}/photograph-{n:09d}{suffix}" for n in numbers for suffix in suffixes]
        yield Listed(names, [1] * len(names), [f'"{hash(name):033x}"' for name in names])

def resident(what):
    return int(re.search(rf"{what}:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) / 1000

image_files.list_pages = prefixes.list_pages = pages
begun = time.process_time()
for option in ("--images", *(["--masks"] if masks else [])):
    for page in pages(option, "", None):
        pass
making, before, begun = time.process_time() - begun, resident("VmRSS"), time.process_time()
source = open_prefixes(Source(images="s3://bucket/images", masks=masks, mask_pattern=pattern), DEFAULT_ACCESS)
found = np.zeros(PAIRS, np.uint8)
for batch in source.batches({}):
    found[pc.utf8_slice_codeunits(batch.pairs["image_uri"], -13, -4).cast("int64").to_numpy()] += 1
seconds = time.process_time() - begun - making
print(source.objects_listed, (found == 1).all(), seconds, before, resident("VmHWM"))
"""


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("options", [("s3://bucket/masks", ""), ("", "{stem}_mask{n}.png")])
def test_memory_does_not_grow_with_the_number_of_objects(options):
    peaks = {}
    for pair_count in (500_000, 5_000_000):
        command = [sys.executable, "-c", LIST, str(pair_count), *options]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        objects, each_once, seconds, before, peaks[pair_count] = done.stdout.split()
        print(
            f"\n{int(objects):,} objects: {float(seconds):.1f} s of CPU, {1e6 * float(seconds) / int(objects):.2f} s a "
            f"million; memory {float(before):.0f} MB before and {float(peaks[pair_count]):.0f} MB at most"
        )
        assert (int(objects), each_once) == (2 * pair_count, "True")
    small, large = (float(peak) for peak in peaks.values())
    assert large < 1.3 * small
