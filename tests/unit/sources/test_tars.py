"""Pairs in WebDataset tars."""

import io
import json
import random
import tarfile
import time

import pytest

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.sources import Changed, PairReader, open_source
from inpaint_encode.sources.part_uris import parse_part
from inpaint_encode.sources.tar_headers import read_members
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


def header(
    name: bytes = b"a.jpg", size: int | bytes = 0, kind: bytes = b"0", *, link: bytes = b"", extended: bool = False
) -> bytes:
    """Return a header of ustar; a size of bytes is written as it is."""
    digits = size if isinstance(size, bytes) else b"%011o\0" % size
    block = bytearray(512)
    block[:100], block[124:136], block[156:157] = name.ljust(100, b"\0"), digits.ljust(12, b"\0"), kind
    block[157:257], block[257:265], block[482] = link.ljust(100, b"\0"), b"ustar\x0000", extended
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def member(data: bytes, *arguments: object, **options: object) -> bytes:
    """Return a header with the size of ``data``, and the data."""
    return header(arguments[0], len(data), *arguments[1:], **options) + padded(data)


def pax(**records: bytes) -> bytes:
    """Return a pax header with records whose lengths are right."""
    text = b""
    for key, value in records.items():
        rest = b" %s=%s\n" % (key.replace("_", ".").encode(), value)
        length = next(one for one in range(len(rest), len(rest) + 20) if one == len(str(one)) + len(rest))
        text += b"%d" % length + rest
    return member(text, b"pax", b"x")


END = bytes(1024)
GNU_NEGATIVE = b"\xff" * 10 + b"\xfe\x00"
BINARY_SIZE = b"\x80" + b"\x7f" * 11


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (header(size=GNU_NEGATIVE) + END, "the header at byte 0 is damaged"),
        (member(b"1", b"a") + header(size=GNU_NEGATIVE) + END, "the header at byte 1,024 is damaged"),
        (header(size=BINARY_SIZE) + END, "the member at byte 0 ends after the end of the file"),
        (header(size=5_000) + END, "the member at byte 0 ends after the end of the file"),
        (pax(size=b"9" * 5_000) + header() + END, "the member at byte [0-9,]+ ends after the end of the file"),
        (pax(size=b"-512") + header() + END, "the member at byte 1,024 ends after the end of the file"),
        (pax(size=b"x") + header() + END, "the member at byte 1,024 ends after the end of the file"),
        (header(b"p", 2**30, b"x") + END, "the header at byte 0 has more than 1,048,576 bytes of names and records"),
        (header(b"l", BINARY_SIZE, b"L") + END, "the header at byte 0 has more than 1,048,576 bytes"),
        (header(b"p", 700, b"x") + END[:512], "the header at byte 0 ends after the end of the file"),
        (pax(path=b"a.jpg") * 5_000 + header() + END, "the header at byte 16,384 has more than"),
        (member(b"1" * 100_000, b"p", b"x") + header() + END, "the pax header at byte 0 is damaged"),
        (member(b"9" * 5_000 + b" size=1\n", b"p", b"x") + header() + END, "the pax header at byte 0 is damaged"),
        (member(b"0 size=1\n", b"p", b"x") + header() + END, "the pax header at byte 0 is damaged"),
        (pax(path=b"a.jpg") + END, "the header at byte 1,024 is damaged"),
        (header(kind=b"S", extended=True) + b"\1" * 512, "the map of the sparse file before byte 1,024 is not"),
        (member(b"1", b"a") + bytes(2**25), "has more than 16,777,216 bytes of zeros at byte 1,536"),
        (member(b"1", b"a") + bytes(511), "its size of 1,535 bytes is not a multiple of 512"),
        (member(b" " * (2**24 + 1), b"a.json") + END, r"a\.json has more than 16,777,216 bytes, the limit for texts"),
        (
            member(b"1" * 100_000, b"a.json")
            + b"".join(header(b"%d.json" % number, 0, b"1", link=b"a.json") for number in range(99))
            + END,
            "hard links repeat more text than the tar has",
        ),
    ],
)
def test_hostile_headers_end_in_one_sentence(tmp_path, data, sentence):
    (tmp_path / "x.tar").write_bytes(data)
    begun = time.process_time()
    with pytest.raises(UsageError, match=sentence):
        read_batches(Source(pairs=str(tmp_path / "x.tar")))
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(
    "ignored",
    [
        pax(GNU_sparse_major=b"1", GNU_sparse_minor=b"0") + member(b"9" * 1_000, b"s.jpg"),
        pax(GNU_sparse_map=b"x,y") + member(b"9", b"s.jpg"),
        pax(GNU_sparse_size=b"x" * 4_000) + member(b"9", b"s.jpg"),
        header(b"s.jpg", 600, b"S", extended=True) + b"x" * 511 + b"\1" + bytes(512) + bytes(1024),
        header(b"s.jpg", 5_000, b"3"),
        header(b"s.jpg", 5_000, b"2", link=b"/etc/passwd"),
        header(b"s.jpg", 5_000, b"1", link=b"../../etc/passwd"),
        pax(path=b"s\0.jpg") + member(b"9", b"s.jpg"),
        member(b"9", b"\xff.jpg"),
        member(b"9", b".jpg"),
        member(b"19 size=99999999999\n", b"g", b"g") + member(b"9", b"s"),
    ],
)
def test_members_that_are_not_plain_files_are_ignored(tmp_path, ignored):
    both = member(b"1", b"a.jpg") + member(b"2", b"a.mask.png")
    (tmp_path / "x.tar").write_bytes(ignored + both + END)
    source = open_source(Source(pairs=str(tmp_path / "x.tar")))
    (pair,) = read_all(source).to_pylist()
    assert (pair["key"], source.left_out.ignored_files) == ("x/a", 1)
    assert PairReader().read(pair["mask_uri"]).data == b"2"


@pytest.mark.parametrize("name", [b"/etc/a", b"../../a", b"a/../b", b"C:\\a"])
def test_names_of_members_are_only_names(tmp_path, name):
    """Nothing is unpacked: the data are read from the tar."""
    (tmp_path / "x.tar").write_bytes(member(b"1", name + b".jpg") + member(b"2", name + b".mask.png") + END)
    (pair,) = found_pairs(Source(pairs=str(tmp_path / "x.tar")))
    assert pair["key"] == f"x/{name.decode()}"
    assert pair["image_uri"].startswith(f"{tmp_path}/x.tar#member=")
    assert PairReader().read(pair["image_uri"]).data == b"1"


def test_the_members_are_those_of_tarfile(tmp_path):
    """In all formats, with long names, links, folders, negative times and large numbers."""
    choose = random.Random(6)
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=form, pax_headers={"comment": "global"}) as tar:
            for number in range(60):
                folder = "ü" * choose.randrange(40) + "/" + "n" * choose.choice((3, 60, 90))
                info = tarfile.TarInfo(f"{folder}/{number}.jpg")
                info.type = choose.choice((tarfile.REGTYPE,) * 4 + (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE))
                targets = [one for one in tar.getnames() if len(one.encode()) < 100]
                info.linkname = choose.choice(targets or ["x"])
                info.size = choose.randrange(3_000) if info.isreg() else 0
                info.uid = choose.choice((0, 2**20))
                tar.addfile(info, io.BytesIO(bytes(info.size)))
        with tarfile.open(tmp_path / "x.tar") as tar:
            expected = [(one.name, one.offset_data, one.size, one.isreg(), one.isdir()) for one in tar]
        with (tmp_path / "x.tar").open("rb") as file:
            found = list(read_members(file, (tmp_path / "x.tar").stat().st_size))
        assert [(one.name.decode(), *one[1:5]) for one in found] == expected


@pytest.mark.parametrize("name", [b"./" * 200_000 + b"\n", b"a/" * 200_000, b"a" + b"." * 400_000, b"." * 400_000])
def test_the_time_for_a_long_name_is_linear(tmp_path, name):
    """An expression that tries each number of "./" takes hours."""
    write_tar(f"{tmp_path}/a.tar", {**sample("s"), name.decode(): b"x"})
    began = time.process_time()
    assert len(found_pairs(Source(pairs=f"{tmp_path}/a.tar"))) == 1
    assert time.process_time() - began < 3


def test_the_time_for_a_long_uri_is_linear():
    for part in (".tar#member=", "a.tar#member=b&offset=1&size=", "a.parquet#row=1"):
        began = time.process_time()
        assert parse_part(part * (800_000 // len(part))) is None
        assert time.process_time() - began < 3
