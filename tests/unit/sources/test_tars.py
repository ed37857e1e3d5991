"""Pairs in WebDataset tars."""

import io
import json
import random
import tarfile

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import Changed, PairReader, open_source
from tests.unit.sources.make_sources import found_pairs, noise, read_all, read_batches, sample, write_tar


def test_samples_are_pairs_in_any_order_of_members(prefix, requests):
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
        assert reader.read(pair["image_uri"], pair["image_version"]).data == noise(name, 200_000)
        assert reader.read(pair["mask_uri"], pair["mask_version"]).data == noise(f"{name}mask")
        assert pair["extra_columns"] == {"json": json.dumps({"of": name}), "txt": None}
        assert pair["image_bytes"] == 200_000
    assert {pair["image_version"] for pair in pairs if pair["key"].startswith("t-0")} == {version}
    assert reader.read_start(pairs[0], 100) == noise("a/042", 200_000)[:100]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_kind_of_tar(tmp_path, form):
    folder = "f" * 90
    write_tar(f"{tmp_path}/x.tar", sample(f"{folder}/{'n' * 80}"), form)
    (pair,) = found_pairs(Source(pairs=str(tmp_path / "x.tar")))
    assert pair["key"] == f"x/{folder}/{'n' * 80}"
    assert PairReader().read(pair["mask_uri"], pair["mask_version"]).data == noise(f"{folder}/{'n' * 80}mask")


def test_several_masks_texts_and_ignored_members(tmp_path):
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
    source = open_source(Source(pairs=str(tmp_path / "x.tar")))
    pairs = read_all(source).to_pylist()
    assert [(pair["key"], pair["mask_index"]) for pair in pairs] == [("x/a", 0), ("x/a/3", 3), ("x/a/10", 10)]
    assert {pair["image_uri"] for pair in pairs} == {pairs[0]["image_uri"]}
    assert pairs[0]["extra_columns"] == {"json": '{"of": "a"}', "txt": "Text ü"}
    assert ["#member=b.PNG&" in uri for uri in source.left_out.unpaired_image_uris] == [True]
    assert ["#member=c.mask.png&" in uri for uri in source.left_out.unpaired_mask_uris] == [True]
    counts = source.left_out.unpaired_images, source.left_out.unpaired_masks, source.left_out.ignored_files
    assert counts == (1, 1, 3)


def test_the_sample_s_name_as_the_key(tmp_path):
    write_tar(f"{tmp_path}/x/0.tar", sample("a"))
    write_tar(f"{tmp_path}/x/1.tar", sample("b"))
    source = Source(pairs=str(tmp_path / "x"), key_column="__key__")
    assert [pair["key"] for pair in found_pairs(source)] == ["a", "b"]
    with pytest.raises(UsageError, match="with tars use __key__"):
        open_source(Source(pairs=str(tmp_path / "x"), key_column="id"))


@pytest.mark.parametrize(
    ("members", "sentence"),
    [
        ({**sample("a"), "a.png": b"1"}, r"sample a has several images: .*a\.jpg.* and .*a\.png"),
        ({**sample("a"), "a.mask.webp": b"1"}, "two masks have the same sample and number"),
        (
            {"a.jpg": b"1", "a_mask.png": b"1"},
            r"named a\.mask\.png \(tars: 1; images without a mask: 2; masks without an image: 0; .*: 0\)",
        ),
        ({**sample("a"), "a.txt": b"\xff"}, r"a\.txt is not UTF-8"),
    ],
)
def test_errors_in_a_sample(tmp_path, members, sentence):
    write_tar(f"{tmp_path}/x.tar", members)
    with pytest.raises(UsageError, match=sentence):
        read_batches(Source(pairs=str(tmp_path / "x.tar")))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_tar_is_an_error(tmp_path, share):
    write_tar(f"{tmp_path}/x.tar", {**sample("a"), **sample("b")})
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[: int(share * len(data))])
    with pytest.raises(UsageError, match="is not a tar, or is truncated"):
        read_batches(Source(pairs=str(tmp_path / "x.tar")))


def test_a_tar_truncated_between_members_is_an_error(tmp_path):
    write_tar(f"{tmp_path}/x.tar", {"a.txt": b"1", "b.txt": b"2"})
    data = (tmp_path / "x.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(data[:1024])
    with pytest.raises(UsageError, match="ends at byte 1,024 without the block of zeros"):
        read_batches(Source(pairs=str(tmp_path / "x.tar")))


def test_a_damaged_header_that_is_not_the_first_is_an_error(tmp_path):
    write_tar(f"{tmp_path}/x.tar", {"a.txt": b"1", "b.txt": b"2", "c.txt": b"3"})
    data = bytearray((tmp_path / "x.tar").read_bytes())
    data[1024 + 5] ^= 1
    (tmp_path / "x.tar").write_bytes(data)
    with pytest.raises(UsageError, match="the header at byte 1,024 is damaged"):
        read_batches(Source(pairs=str(tmp_path / "x.tar")))


def test_appended_tars_are_read_as_one(tmp_path):
    both = b""
    for name in ("a", "b"):
        write_tar(f"{tmp_path}/{name}.tar", sample(name))
        both += (tmp_path / f"{name}.tar").read_bytes()
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "x.tar").write_bytes(both)
    pairs = found_pairs(Source(pairs=str(tmp_path / "x")))
    assert [pair["key"] for pair in pairs] == ["x/a", "x/b"]
    assert PairReader().read(pairs[1]["image_uri"], pairs[1]["image_version"]).data == noise("b", 200_000)


def test_links(tmp_path):
    """A hard link is read as its file. A symbolic link, and a hard link without its file, are ignored."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in sample("a").items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, kind, of in [
            ("b.jpg", tarfile.LNKTYPE, "a.jpg"), ("b.mask.png", tarfile.LNKTYPE, "a.mask.png"),
            ("b.json", tarfile.LNKTYPE, "a.json"), ("c.jpg", tarfile.SYMTYPE, "a.jpg"),
            ("d.jpg", tarfile.LNKTYPE, "none.jpg"),
        ]:  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, of
            tar.addfile(info)
    source = open_source(Source(pairs=str(tmp_path / "x.tar")))
    first, second = read_all(source).to_pylist()
    assert source.left_out.ignored_files == 2
    assert (second["key"], second["extra_columns"]) == ("x/b", first["extra_columns"])
    reader = PairReader()
    assert (
        reader.read(second["image_uri"], second["image_version"]).data
        == reader.read(first["image_uri"], first["image_version"]).data
        == noise("a", 200_000)
    )


def test_two_texts_of_one_name_and_names_in_another_encoding(tmp_path):
    write_tar(f"{tmp_path}/y.tar", {**sample("a"), "\udcfcb.jpg": b"1"}, tarfile.GNU_FORMAT)
    source = open_source(Source(pairs=str(tmp_path / "y.tar")))
    read_all(source)
    assert source.left_out.ignored_files == 1
    assert source.left_out.unreadable_names == [rf"{tmp_path}/y.tar: '\udcfcb.jpg'"]
    write_tar(f"{tmp_path}/x.tar", {**sample("a"), "./a.json": b"1"})
    with pytest.raises(UsageError, match=r"two members are named \./a\.json"):
        read_batches(Source(pairs=str(tmp_path / "x.tar")))


def test_a_replaced_tar_is_an_error(prefix):
    write_tar(f"{prefix}/x.tar", sample("a"))
    (pair,) = found_pairs(Source(pairs=f"{prefix}/x.tar"))
    write_tar(f"{prefix}/x.tar", {"0.txt": b"1", **sample("a")})
    with pytest.raises(Changed, match="has changed since it was planned"):
        PairReader().read(pair["image_uri"], pair["image_version"])


def test_files_without_a_pair_are_counted_with_the_last_line_of_their_tar(tmp_path, monkeypatch):
    monkeypatch.setattr("inpaint_encode.sources.pairs.BATCH_PAIRS", 2)
    both = {**sample("a"), **sample("b"), **sample("c")}
    write_tar(f"{tmp_path}/0.tar", {**both, "d.jpg": b"1", "e.mask.png": b"1", "f.cls": b"1"})
    write_tar(f"{tmp_path}/1.tar", {"g.jpg": b"1"})
    source = open_source(Source(pairs=str(tmp_path)))
    slices = [part for batch in source.batches({}) for part in batch.slices]
    assert [part.left_out for part in slices] == [(0, 0, 0), (1, 1, 1), (1, 0, 0)]
    assert (source.left_out.unpaired_images, source.left_out.unpaired_masks, source.left_out.ignored_files) == (2, 1, 1)
    assert source.image_and_mask_bytes == (3 * 200_000, 3 * 6_000)
    assert read_batches(Source(pairs=str(tmp_path)), {part.file: part for part in slices}) == []


def test_equal_keys_in_two_tars_are_left_to_the_planner(tmp_path):
    for n in range(2):
        write_tar(f"{tmp_path}/{n}.tar", sample("a"))
    assert [pair["key"] for pair in found_pairs(Source(pairs=str(tmp_path), key_column="__key__"))] == ["a", "a"]


def test_a_hard_link_to_the_last_file_of_its_name(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, data in enumerate([b"old", b"newer"]):
            info = tarfile.TarInfo("data")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
            info = tarfile.TarInfo(f"{number}.jpg")
            info.type, info.linkname = tarfile.LNKTYPE, "data"
            tar.addfile(info)
    pairs = found_pairs(Source(pairs=str(tmp_path / "x.tar"), random_masks=1))
    reader = PairReader()
    assert [reader.read(pair["image_uri"]).data for pair in pairs] == [b"old", b"newer"]
