"""Images that are no objects of their own: rows of Parquet files, members of tars, and masks that are drawn."""

import hashlib
import io
import json
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.geometry import Sizing
from inpaint_encode.errors import UsageError
from inpaint_encode.output import plan
from inpaint_encode.schema import PAIRS
from inpaint_encode.settings import Source
from inpaint_encode.sources import Changed, PairReader, find_pairs
from inpaint_encode.sources.random_masks import RandomMask
from inpaint_encode.stores import storage

ABOUT = ("key", "mask_index", "image_version", "mask_version", "image_bytes")


def found_pairs(source: Source) -> list[dict]:
    """The pairs as the plan has them."""
    found = find_pairs(source)
    return found.with_uris(plan.added(PAIRS.empty_table(), found.pairs)).to_pylist()


def noise(seed: object, size: int = 6_000) -> bytes:
    return random.Random(str(seed)).randbytes(size)


@pytest.fixture(params=["s3", "disk"])
def prefix(request, tmp_path) -> str:
    return request.getfixturevalue("s3").uri("layouts", tmp_path.name) if request.param == "s3" else str(tmp_path / "x")


@pytest.fixture
def requests(monkeypatch) -> list[tuple]:
    """Every range that is read from here on: where, and how many bytes."""
    seen = []
    read_range = storage.read_range

    def counted(uri, start, length, access=storage.DEFAULT_ACCESS):
        blob = read_range(uri, start, length, access)
        seen.append((uri, len(blob.data)))
        return blob

    monkeypatch.setattr(storage, "read_range", counted)
    return seen


def write_parquet(uri: str, columns: dict, group: int = 4) -> str:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return storage.write(uri, file.getvalue())


def embedded(name: object, *, path: bool = False) -> dict:
    return {"bytes": None if path else noise(name), "path": f"files/{name}"}


class TestParquetWithImages:
    def test_rows_are_pairs_whose_bytes_the_driver_does_not_read(self, prefix, requests):
        columns = {
            "image": [embedded(n) for n in range(10)],
            "mask": [noise(-n) for n in range(10)],
            "caption": [str(n) for n in range(10)],
            "depth": [embedded(n) for n in range(10)],
        }
        version = write_parquet(f"{prefix}/a/train-0.parquet", columns)
        write_parquet(f"{prefix}/b.parquet", {name: values[:2] for name, values in columns.items()})
        pairs = found_pairs(Source(pairs=prefix))
        driver_bytes = sum(size for _, size in requests)
        assert driver_bytes <= 2 * 2**16  # of each file what a reader takes for its footer
        assert [pair["key"] for pair in pairs] == [*(f"a/train-0/{n}" for n in range(10)), "b/0", "b/1"]
        assert [pair["extra_columns"] for pair in pairs] == [{"caption": str(n)} for n in [*range(10), 0, 1]]
        assert {pair["image_version"] for pair in pairs[:10]} == {version}
        assert pairs[7]["image_uri"] == f"{prefix}/a/train-0.parquet#row=7&column=image"
        assert {pair["image_bytes"] // 600 for pair in pairs} == {10}
        reader = PairReader()
        read = [(reader.image(pair).data, reader.mask(pair).data) for pair in pairs[:10]]
        assert read == [(noise(n), noise(-n)) for n in range(10)]

    def test_threads_that_go_through_a_file_read_each_row_group_once(self, prefix, requests):
        columns = {"image": [embedded(n) for n in range(64)], "mask": [embedded(-n) for n in range(64)]}
        write_parquet(f"{prefix}/x.parquet", columns)
        pairs = found_pairs(Source(pairs=f"{prefix}/x.parquet"))
        requests.clear()
        reader = PairReader()
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda pair: (reader.image(pair).data, reader.mask(pair).data), pairs))
        assert read == [(noise(n), noise(-n)) for n in range(64)]
        assert sum(size for _, size in requests) < 1.2 * 64 * 2 * 6_000

    def test_of_large_row_groups_the_last_two_are_held(self, tmp_path, requests, monkeypatch):
        monkeypatch.setattr("inpaint_encode.sources.parquet._CACHED_BYTES", 1)
        columns = {"image": [embedded(n) for n in range(64)], "mask": [embedded(-n) for n in range(64)]}
        write_parquet(f"{tmp_path}/x.parquet", columns)
        reader = PairReader()
        for pair in found_pairs(Source(pairs=f"{tmp_path}/x.parquet")):
            assert (reader.image(pair).data, reader.mask(pair).data) != (None, None)
            assert sum(group.nbytes for group in reader._parquet_rows._chunks.values()) < 5 * 4 * 6_200
        assert sum(size for _, size in requests) < 1.2 * 64 * 2 * 6_000 + 2**16

    def test_a_path_without_bytes_is_a_file_beside(self, prefix):
        columns = {
            "image": [embedded("x", path=True), embedded("y")],
            "mask": [embedded("x"), embedded("y", path=True)],
        }
        write_parquet(f"{prefix}/x.parquet", columns)
        version = storage.write(f"{prefix}/files/x", b"of a file")
        first, second = found_pairs(Source(pairs=f"{prefix}/x.parquet"))
        assert PairReader().image(first) == (b"of a file", version)
        with pytest.raises(FileNotFoundError):
            PairReader().mask(second)

    def test_another_file_of_the_same_name_is_not_what_was_planned(self, prefix):
        write_parquet(f"{prefix}/x.parquet", {"image": [noise(1)], "mask": [noise(2)]})
        (pair,) = found_pairs(Source(pairs=f"{prefix}/x.parquet"))
        version = write_parquet(f"{prefix}/x.parquet", {"image": [noise(3)], "mask": [noise(4)]})
        with pytest.raises(Changed, match="has changed since it was planned"):
            PairReader().image(pair)
        assert PairReader().read(pair["image_uri"]) == (noise(3), version)

    def test_rows_and_values_that_are_not_there(self, prefix):
        write_parquet(f"{prefix}/x.parquet", {"image": [None, noise(1)]})
        for row in (0, 2):
            with pytest.raises(FileNotFoundError):
                PairReader().read(f"{prefix}/x.parquet#row={row}&column=image")

    def test_a_damaged_file_is_an_error_of_reading(self, tmp_path):
        (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100) + b"PAR1")
        with pytest.raises(OSError, match="the Parquet file cannot be read"):
            PairReader().read(f"{tmp_path}/x.parquet#row=0&column=image")

    def test_uris_and_bytes_in_one_list(self, tmp_path):
        columns = {"image": ["a.jpg", "a.jpg"], "mask": [noise(1), noise(2)], "id": ["x", "y"]}
        write_parquet(f"{tmp_path}/x.parquet", columns)
        pairs = found_pairs(Source(pairs=str(tmp_path / "x.parquet")))
        assert [(pair["key"], pair["image_uri"], pair["mask_index"]) for pair in pairs] == [
            ("a", f"{tmp_path}/a.jpg", 0),
            ("a/1", f"{tmp_path}/a.jpg", 1),
        ]
        assert [pair["image_version"] for pair in pairs] == ["", ""]
        assert PairReader().mask(pairs[1]).data == noise(2)
        named = found_pairs(Source(pairs=str(tmp_path / "x.parquet"), key_column="id"))
        assert [pair["key"] for pair in named] == ["x", "y"]

    def test_a_row_group_that_no_worker_could_hold_is_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("inpaint_encode.sources.manifest_files.MAX_ROW_GROUP_BYTES", 40_000)
        write_parquet(f"{tmp_path}/x.parquet", {"image": [noise(n) for n in range(8)], "mask": [b"1"] * 8}, group=8)
        with pytest.raises(UsageError, match=r"column image has 48,\d+ bytes in one row group"):
            find_pairs(Source(pairs=str(tmp_path / "x.parquet")))


def write_tar(uri: str, members: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> str:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return storage.write(uri, file.getvalue())


def sample(name: str, masks: tuple[str, ...] = ("mask",)) -> dict[str, bytes]:
    files = {f"{name}.{mask}.png": noise(f"{name}{mask}") for mask in masks}
    return {f"{name}.jpg": noise(name, 200_000), **files, f"{name}.json": json.dumps({"of": name}).encode()}


class TestTars:
    def test_samples_are_pairs_in_any_order_of_members(self, prefix, requests):
        names = ["a/042", "b", "c c/ü", "long/" * 60 + "name"]
        members = list({name: data for each in names for name, data in sample(each).items()}.items())
        random.Random(5).shuffle(members)
        version = write_tar(f"{prefix}/t-0.tar", dict(members))
        write_tar(f"{prefix}/d/t-1.tar", sample("a/042"), tarfile.GNU_FORMAT)
        pairs = found_pairs(Source(pairs=prefix))
        assert {pair["key"] for pair in pairs} == {"d/t-1/a/042", *(f"t-0/{name}" for name in names)}
        assert sum(size for _, size in requests) < 0.8 * 5 * 200_000
        reader = PairReader()
        for pair in pairs:
            name = pair["key"].removeprefix("d/t-1/").removeprefix("t-0/")
            assert reader.image(pair).data == noise(name, 200_000)
            assert reader.mask(pair).data == noise(f"{name}mask")
            assert pair["extra_columns"] == {"json": json.dumps({"of": name})}
            assert pair["image_bytes"] == 200_000
        assert {pair["image_version"] for pair in pairs if pair["key"].startswith("t-0")} == {version}
        assert reader.read_start(pairs[0], 100) == noise("a/042", 200_000)[:100]

    @pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    def test_every_kind_of_tar(self, tmp_path, form):
        folder = "f" * 90
        write_tar(f"{tmp_path}/x.tar", sample(f"{folder}/{'n' * 80}"), form)
        (pair,) = found_pairs(Source(pairs=str(tmp_path / "x.tar")))
        assert pair["key"] == f"x/{folder}/{'n' * 80}"
        assert PairReader().mask(pair).data == noise(f"{folder}/{'n' * 80}mask")

    def test_several_masks_texts_and_what_is_none_of_it(self, tmp_path):
        members = {
            **sample("a", ("mask", "mask3", "mask10")),
            "b.PNG": noise("b"),
            "c.mask.png": noise("c"),
            "d.cls": b"7",
            "d.depth.png": b"1",
            "._a.jpg": b"1",
            "a.txt": "Text ü".encode(),
        }
        write_tar(f"{tmp_path}/x.tar", members)
        found = find_pairs(Source(pairs=str(tmp_path / "x.tar")))
        pairs = found.pairs.to_pylist()
        assert [(pair["key"], pair["mask_index"]) for pair in pairs] == [("x/a", 0), ("x/a/3", 3), ("x/a/10", 10)]
        assert {pair["image_uri"] for pair in pairs} == {pairs[0]["image_uri"]}
        assert pairs[0]["extra_columns"] == {"json": '{"of": "a"}', "txt": "Text ü"}
        assert ["#member=b.PNG&" in uri for uri in found.unpaired_images.to_pylist()] == [True]
        assert ["#member=c.mask.png&" in uri for uri in found.unpaired_masks.to_pylist()] == [True]
        assert found.ignored_files == 3

    def test_the_sample_s_name_as_the_key(self, tmp_path):
        write_tar(f"{tmp_path}/x/0.tar", sample("a"))
        write_tar(f"{tmp_path}/x/1.tar", sample("b"))
        source = Source(pairs=str(tmp_path / "x"), key_column="__key__")
        assert [pair["key"] for pair in found_pairs(source)] == ["a", "b"]
        write_tar(f"{tmp_path}/x/2.tar", sample("a"))
        with pytest.raises(UsageError, match=r"keys are shared, the first, a, .*leave out --key-column"):
            find_pairs(source)

    @pytest.mark.parametrize(
        ("members", "sentence"),
        [
            ({**sample("a"), "a.png": b"1"}, r"sample a has more than one image: .*a\.jpg.* and .*a\.png"),
            ({**sample("a"), "a.mask.webp": b"1"}, "two masks are one of their sample"),
            ({"a.jpg": b"1", "a_mask.png": b"1"}, r"2 images without a mask, 0 masks .* named a\.mask\.png"),
            ({**sample("a"), "a.txt": b"\xff"}, r"a\.txt is not in UTF-8"),
        ],
    )
    def test_what_is_refused(self, tmp_path, members, sentence):
        write_tar(f"{tmp_path}/x.tar", members)
        with pytest.raises(UsageError, match=sentence):
            find_pairs(Source(pairs=str(tmp_path / "x.tar")))

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
    def test_a_tar_that_is_cut_off_is_refused(self, tmp_path, share):
        write_tar(f"{tmp_path}/x.tar", {**sample("a"), **sample("b")})
        data = (tmp_path / "x.tar").read_bytes()
        (tmp_path / "x.tar").write_bytes(data[: int(share * len(data))])
        with pytest.raises(UsageError, match="is no tar, or is cut off"):
            find_pairs(Source(pairs=str(tmp_path / "x.tar")))

    def test_a_tar_that_ends_between_members_is_refused(self, tmp_path):
        write_tar(f"{tmp_path}/x.tar", {"a.txt": b"1", "b.txt": b"2"})
        data = (tmp_path / "x.tar").read_bytes()
        (tmp_path / "x.tar").write_bytes(data[:1024])
        with pytest.raises(UsageError, match="ends at byte 1,024 without the block of zeros"):
            find_pairs(Source(pairs=str(tmp_path / "x.tar")))

    def test_a_damaged_header_that_is_not_the_first_is_refused(self, tmp_path):
        write_tar(f"{tmp_path}/x.tar", {"a.txt": b"1", "b.txt": b"2", "c.txt": b"3"})
        data = bytearray((tmp_path / "x.tar").read_bytes())
        data[1024 + 5] ^= 1
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(UsageError, match="the header at byte 1,024 is damaged"):
            find_pairs(Source(pairs=str(tmp_path / "x.tar")))

    def test_tars_one_behind_the_other_are_one(self, tmp_path):
        both = b""
        for name in ("a", "b"):
            write_tar(f"{tmp_path}/{name}.tar", sample(name))
            both += (tmp_path / f"{name}.tar").read_bytes()
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "x.tar").write_bytes(both)
        pairs = found_pairs(Source(pairs=str(tmp_path / "x")))
        assert [pair["key"] for pair in pairs] == ["x/a", "x/b"]
        assert PairReader().image(pairs[1]).data == noise("b", 200_000)

    def test_links(self, tmp_path):
        """A hard link is the file that it is of; a link by name, and one of nothing, are none."""
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            for name, data in sample("a").items():
                about = tarfile.TarInfo(name)
                about.size = len(data)
                tar.addfile(about, io.BytesIO(data))
            for name, kind, of in [
                ("b.jpg", tarfile.LNKTYPE, "a.jpg"), ("b.mask.png", tarfile.LNKTYPE, "a.mask.png"),
                ("b.json", tarfile.LNKTYPE, "a.json"), ("c.jpg", tarfile.SYMTYPE, "a.jpg"),
                ("d.jpg", tarfile.LNKTYPE, "none.jpg"),
            ]:  # fmt: skip
                about = tarfile.TarInfo(name)
                about.type, about.linkname = kind, of
                tar.addfile(about)
        found = find_pairs(Source(pairs=str(tmp_path / "x.tar")))
        assert found.ignored_files == 2
        first, second = found.pairs.to_pylist()
        assert (second["key"], second["extra_columns"]) == ("x/b", first["extra_columns"])
        reader = PairReader()
        assert reader.image(second).data == reader.image(first).data == noise("a", 200_000)

    def test_two_texts_of_one_name_and_names_in_another_encoding(self, tmp_path):
        write_tar(f"{tmp_path}/y.tar", {**sample("a"), "\udcfcb.jpg": b"1"}, tarfile.GNU_FORMAT)
        assert find_pairs(Source(pairs=str(tmp_path / "y.tar"))).ignored_files == 1
        write_tar(f"{tmp_path}/x.tar", {**sample("a"), "./a.json": b"1"})
        with pytest.raises(UsageError, match=r"two members are named \./a\.json"):
            find_pairs(Source(pairs=str(tmp_path / "x.tar")))

    def test_another_tar_of_the_same_name_is_not_what_was_planned(self, prefix):
        write_tar(f"{prefix}/x.tar", sample("a"))
        (pair,) = found_pairs(Source(pairs=f"{prefix}/x.tar"))
        write_tar(f"{prefix}/x.tar", {"0.txt": b"1", **sample("a")})
        with pytest.raises(Changed, match="has changed since it was planned"):
            PairReader().image(pair)

    def test_two_kinds_below_one_prefix_are_refused(self, tmp_path):
        write_tar(f"{tmp_path}/x/x.tar", sample("a"))
        write_parquet(f"{tmp_path}/x/x.parquet", {"image": ["a"], "mask": ["b"]})
        with pytest.raises(UsageError, match=r"holds both \.parquet and \.tar files"):
            find_pairs(Source(pairs=str(tmp_path / "x")))


GOLDEN = {
    ("brush", 512, 512): "a30be106bb43adf0",
    ("brush", 300, 801): "29a1893ae21703c5",
    ("box", 512, 512): "afc6a05e998aa3d5",
    ("mixed", 33, 64): "d8d489719afa5094",
}


def drawn_hash(style: str, height: int, width: int) -> str:
    """Of eight masks, two of each of two seeds and keys."""
    whole = hashlib.sha256()
    for seed, key, index in [(s, k, i) for s in (0, 1) for k in ("a/042", "ü") for i in (0, 1)]:
        whole.update(np.packbits(RandomMask(style, seed, key, index).draw(height, width)).tobytes())
    return whole.hexdigest()[:16]


class TestImagesThatAreTheirOwnMasks:
    def test_below_a_prefix(self, prefix):
        for name in ("b/a.png", "c.webp", "notes.txt"):
            storage.write(f"{prefix}/{name}", name.encode())
        found = find_pairs(Source(images=prefix))
        pairs = found.with_uris(plan.added(PAIRS.empty_table(), found.pairs)).to_pylist()
        assert [(p["key"], p["image_uri"]) for p in pairs] == [("b/a", f"{prefix}/b/a.png"), ("c", f"{prefix}/c.webp")]
        assert [(p["mask_uri"], p["mask_version"]) for p in pairs] == [
            (p["image_uri"], p["image_version"]) for p in pairs
        ]
        assert (found.ignored_files, found.image_and_mask_bytes) == (1, (13, 0))

    def test_in_lists_rows_and_tars(self, tmp_path):
        write_parquet(f"{tmp_path}/uris.parquet", {"image": ["a.png", "b.png"], "caption": ["x", "y"]})
        write_parquet(f"{tmp_path}/rows.parquet", {"image": [embedded(1)], "mask": [embedded(2)]})
        write_tar(f"{tmp_path}/x.tar", {"s.png": noise(1)})
        for name, keys in {"uris.parquet": ["a", "b"], "rows.parquet": ["rows/0"], "x.tar": ["x/s"]}.items():
            pairs = found_pairs(Source(pairs=f"{tmp_path}/{name}", mask_column="image"))
            assert [pair["key"] for pair in pairs] == keys
            for pair in pairs:
                assert (pair["mask_uri"], pair["mask_version"]) == (pair["image_uri"], pair["image_version"])


class TestDrawnMasks:
    @pytest.mark.parametrize(("style", "height", "width"), GOLDEN)
    def test_every_machine_draws_these_bits(self, style, height, width):
        assert drawn_hash(style, height, width) == GOLDEN[style, height, width]

    def test_seed_key_and_index_each_make_another_mask(self):
        drawings = [RandomMask("brush", seed, key, index) for seed in (0, 1) for key in ("a", "b") for index in (0, 1)]
        assert len({drawing.draw(64, 64).tobytes() for drawing in drawings}) == 8

    @pytest.mark.parametrize("style", ["brush", "box", "mixed"])
    @pytest.mark.parametrize("size", [(256, 256), (200, 640)])
    def test_a_mask_is_never_empty_nor_full_and_not_always_alike(self, style, size):
        masks = [RandomMask(style, 0, str(key), 0).draw(*size) for key in range(200)]
        shares = [np.count_nonzero(mask) / mask.size for mask in masks]
        assert {level for mask in masks for level in np.unique(mask)} == {0, 255}
        assert 0.001 < min(shares) < 0.06
        assert 0.15 < max(shares) < 0.8
        assert 0.05 < np.median(shares) < 0.3

    def test_boxes_keep_to_their_sizes(self):
        for key in range(100):
            mask = RandomMask("box", 0, str(key), 0).draw(80, 160) > 0
            rows_of, columns_of = mask.any(axis=1), mask.any(axis=0)
            assert rows_of.sum() >= 10 and columns_of.sum() >= 20
            assert mask.sum() <= 4 * 40 * 80

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (1, 5_000), (5_000, 1)])
    def test_any_size_can_be_drawn_on(self, size):
        for key in range(20):
            assert RandomMask("mixed", 0, str(key), 0).draw(*size).shape == size

    def test_images_of_a_prefix(self, tmp_path):
        for name in ("a.png", "b/c.jpg", "notes.txt"):
            storage.write(f"{tmp_path}/{name}", b"1")
        found = find_pairs(Source(images=str(tmp_path), random_masks=2, mask_style="box", mask_seed=7))
        pairs = found.with_uris(plan.added(PAIRS.empty_table(), found.pairs)).to_pylist()
        assert [(p["key"], p["image_uri"].removeprefix(f"{tmp_path}/"), p["mask_uri"]) for p in pairs] == [
            ("a", "a.png", "random:box?seed=7&index=0"),
            ("a/1", "a.png", "random:box?seed=7&index=1"),
            ("b/c", "b/c.jpg", "random:box?seed=7&index=0"),
            ("b/c/1", "b/c.jpg", "random:box?seed=7&index=1"),
        ]
        assert [pair["mask_index"] for pair in pairs] == [0, 1, 0, 1]
        assert found.ignored_files == 1

    def test_images_of_lists_rows_and_tars(self, tmp_path):
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

    def test_an_image_named_like_another_s_mask(self, tmp_path):
        for name in ("a.png", "a/1.png"):
            storage.write(f"{tmp_path}/{name}", b"1")
        assert find_pairs(Source(images=str(tmp_path), random_masks=1)).pairs.num_rows == 2
        with pytest.raises(UsageError, match="a/1 is an image's key, and that of mask 1 of image a"):
            find_pairs(Source(images=str(tmp_path), random_masks=2))

    def test_a_resized_image_has_its_mask_drawn_at_its_new_size(self):
        image = io.BytesIO()
        Image.new("RGB", (90, 60)).save(image, "PNG")
        decoder = PairDecoder(sizing=Sizing(multiple=8, resize=32))
        decoded = decoder.image(image.getvalue())
        drawing = RandomMask("box", 0, "k", 0)
        assert np.array_equal(decoder.mask(drawing, decoded), drawing.draw(32, 48) > 0)

    def test_a_pair_is_drawn_alike_whoever_reads_it_and_when(self):
        image = io.BytesIO()
        Image.new("RGB", (70, 50)).save(image, "PNG")
        decoder = PairDecoder(sizing=Sizing(multiple=8))
        decoded = decoder.image(image.getvalue())
        pairs = [
            {"key": f"k/{n}", "mask_uri": f"random:brush?seed=3&index={n}", "mask_version": "drawn-1"} for n in range(6)
        ]

        def draw(pair):
            return decoder.mask(PairReader().mask(pair).data, decoded).tobytes()

        expected = [draw(pair) for pair in pairs]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(draw, reversed(pairs))) == expected[::-1]
        whole = RandomMask("brush", 3, "k/2", 2).draw(50, 70)[1:49, 3:67] > 0
        assert expected[2] == whole.astype(np.uint8).tobytes()
