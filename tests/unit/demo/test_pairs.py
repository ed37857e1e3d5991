"""The demo's pairs have the stated contents and are the same on every call."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inpaint_encode.demo.pairs import DemoSet, write_demo_pairs, write_random_pairs


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, DemoSet]:
    folder = tmp_path_factory.mktemp("pairs")
    return folder, write_demo_pairs(folder)


def files_by_key(folder: Path) -> dict[str, Path]:
    files = (path for path in folder.rglob("*") if path.suffix in {".jpg", ".png"})
    return {str(path.relative_to(folder).with_suffix("")): path for path in files}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class TestDemoPairs:
    def test_keys_on_disk_are_the_stated_ones(self, demo: tuple[Path, DemoSet]) -> None:
        folder, expected = demo
        images, masks = files_by_key(folder / "images"), files_by_key(folder / "masks")
        assert tuple(sorted(images.keys() & masks.keys())) == expected.pairs
        assert tuple(images.keys() - masks.keys()) == expected.unpaired_images
        assert tuple(masks.keys() - images.keys()) == expected.unpaired_masks
        others = [path for path in (folder / "images").rglob("*") if path.suffix not in {".jpg", ".png", ""}]
        assert [str(path.relative_to(folder / "images")) for path in others] == list(expected.ignored_files)

    def test_exactly_the_broken_image_does_not_load(self, demo: tuple[Path, DemoSet]) -> None:
        folder, expected = demo
        unreadable = []
        for key, path in files_by_key(folder / "images").items():
            with Image.open(path) as image:
                try:
                    image.load()
                except OSError:
                    unreadable.append(key)
        assert unreadable == [expected.broken]
        assert expected.broken in expected.pairs
        assert len(expected.pairs) - 1 >= 18

    def test_sizes_formats_and_folders_vary(self, demo: tuple[Path, DemoSet]) -> None:
        folder, expected = demo
        paths = [files_by_key(folder / "images")[key] for key in expected.pairs]
        sizes = {Image.open(path).size for path in paths}
        assert len(sizes) >= 6
        assert sum(width % 8 > 0 or height % 8 > 0 for width, height in sizes) >= 3
        assert min(map(min, sizes)) >= 128 and max(map(max, sizes)) <= 640
        assert {path.suffix for path in paths} == {".jpg", ".png"}
        assert len({path.parent for path in paths}) >= 3

    def test_masks_are_grey_and_only_one_has_another_size(self, demo: tuple[Path, DemoSet]) -> None:
        folder, expected = demo
        images, masks = files_by_key(folder / "images"), files_by_key(folder / "masks")
        other_size, soft = [], []
        for key in expected.pairs:
            mask = Image.open(masks[key])
            assert mask.mode == "L"
            greys = set(np.unique(np.asarray(mask)).tolist())
            assert greys >= {0, 255}
            other_size += [key] * (mask.size != Image.open(images[key]).size)
            soft += [key] * (greys != {0, 255})
        assert len(other_size) == 1
        assert 1 <= len(soft) < len(expected.pairs) / 2

    def test_a_second_call_writes_the_same_bytes(self, demo: tuple[Path, DemoSet], tmp_path: Path) -> None:
        folder, expected = demo
        assert write_demo_pairs(tmp_path) == expected
        assert contents(tmp_path) == contents(folder)


class TestRandomPairs:
    def test_every_key_is_a_readable_pair_within_the_limits(self, tmp_path: Path) -> None:
        keys = write_random_pairs(tmp_path, 60, seed=3, smallest=20, largest=70)
        images, masks = files_by_key(tmp_path / "images"), files_by_key(tmp_path / "masks")
        assert len(set(keys)) == 60
        assert set(keys) == images.keys() == masks.keys()
        other_size = 0
        for key in keys:
            image, mask = Image.open(images[key]), Image.open(masks[key])
            image.load()
            assert mask.mode == "L"
            assert all(20 <= side <= 70 for side in (*image.size, *mask.size))
            other_size += image.size != mask.size
        assert other_size == 10

    def test_the_seed_and_not_the_count_decides_a_pair(self, tmp_path: Path) -> None:
        for name, count, seed in (("few", 5, 1), ("more", 9, 1), ("other", 5, 2)):
            write_random_pairs(tmp_path / name, count, seed=seed)
        few, more, other = (contents(tmp_path / name) for name in ("few", "more", "other"))
        assert few.items() < more.items()
        assert few.items().isdisjoint(other.items())


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, inpaint_encode.demo; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"torch", "ray", "skimage", "s3fs", "PIL", "numpy"} & set(loaded.stdout.split())
