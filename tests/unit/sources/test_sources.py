"""Each layout's rule: which files or lines are pairs, what their keys are, what is refused, what is planned."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from inpaint_encode.errors import UsageError
from inpaint_encode.output import plan
from inpaint_encode.output.lease import hold
from inpaint_encode.output.resume import remaining
from inpaint_encode.output.state import OutputState
from inpaint_encode.schema import PAIRS
from inpaint_encode.settings import Decoding, PlanOptions, Source
from inpaint_encode.sources import find_pairs
from inpaint_encode.stores.access import Access
from tests.metadata import row_metadata
from tests.rows import data_file, encoded_pair


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())


def found_in(folder, *, masks="", pattern=""):
    return find_pairs(Source(images=str(folder), masks=masks and str(masks), mask_pattern=pattern))


def triples(found, folder):
    """``key, image, mask, mask_index``, paths relative to the folder, in the order of the plan."""
    table = found.with_uris(plan.added(PAIRS.empty_table(), found.pairs))
    uris = [[uri.removeprefix(f"{folder}/") for uri in table[f"{side}_uri"].to_pylist()] for side in ("image", "mask")]
    return list(zip(table["key"].to_pylist(), *uris, table["mask_index"].to_pylist(), strict=True))


class TestMaskPattern:
    def test_several_masks_in_the_images_folder(self, tmp_path):
        touch(
            tmp_path, "b/a.jpg", "b/a_mask2.png", "b/a_mask10.png", "b/c.png", "b/d_mask0.png", "x_mask1.png", "n.txt"
        )
        found = found_in(tmp_path, pattern="{stem}_mask{n}.png")
        assert triples(found, tmp_path) == [
            ("b/a_mask2", "b/a.jpg", "b/a_mask2.png", 2),
            ("b/a_mask10", "b/a.jpg", "b/a_mask10.png", 10),
        ]
        assert found.unpaired_images.to_pylist() == [
            f"{tmp_path}/{name}" for name in ("b/c.png", "b/d_mask0.png", "x_mask1.png")
        ]
        assert (found.unpaired_masks.to_pylist(), found.ignored_files) == ([], 1)

    def test_one_mask_an_image_has_the_images_key(self, tmp_path):
        touch(tmp_path, "a.jpg", "a-masklabel.png", "c/a.jpg", "c/a-masklabel.png")
        assert triples(found_in(tmp_path, pattern="{stem}-masklabel.png"), tmp_path) == [
            ("a", "a.jpg", "a-masklabel.png", 0),
            ("c/a", "c/a.jpg", "c/a-masklabel.png", 0),
        ]

    def test_suffixes_match_in_any_case_and_numbers_with_zeros_before_them(self, tmp_path):
        touch(tmp_path, "a.JPG", "a_mask1.PNG", "a_mask01.png", "b.jpg", "b_mask0.Png")
        found = found_in(tmp_path, pattern="{stem}_mask{n}.png")
        assert triples(found, tmp_path) == [
            ("a_mask01", "a.JPG", "a_mask01.png", 1),
            ("a_mask1", "a.JPG", "a_mask1.PNG", 1),
            ("b_mask0", "b.jpg", "b_mask0.Png", 0),
        ]

    def test_a_text_before_the_stem(self, tmp_path):
        touch(tmp_path, "c/a.jpg", "c/mask3_a.png", "mask3_a.png")
        found = found_in(tmp_path, pattern="mask{n}_{stem}.png")
        assert triples(found, tmp_path) == [("c/mask3_a", "c/a.jpg", "c/mask3_a.png", 3)]

    def test_a_mask_of_a_mask_is_an_unpaired_mask(self, tmp_path):
        touch(tmp_path, "a.png", "a_mask1.png", "a_mask1_mask2.png")
        found = found_in(tmp_path, pattern="{stem}_mask{n}.png")
        assert [row[0] for row in triples(found, tmp_path)] == ["a_mask1"]
        assert found.unpaired_masks.to_pylist() == [f"{tmp_path}/a_mask1_mask2.png"]

    def test_two_folders(self, tmp_path):
        touch(tmp_path, "images/a.png", "images/a_mask1.png", "masks/a_mask0.png", "masks/b_mask0.png", "masks/c.png")
        found = found_in(tmp_path / "images", masks=tmp_path / "masks", pattern="{stem}_mask{n}.png")
        assert triples(found, tmp_path) == [("a_mask0", "images/a.png", "masks/a_mask0.png", 0)]
        assert found.unpaired_images.to_pylist() == [f"{tmp_path}/images/a_mask1.png"]
        assert found.unpaired_masks.to_pylist() == [f"{tmp_path}/masks/b_mask0.png", f"{tmp_path}/masks/c.png"]

    def test_an_images_masks_are_neighbours_whatever_lies_between(self, tmp_path):
        touch(tmp_path, "a.png", "a_0.png", "a_b.png", "a_b_0.png", "a_3.png")
        keys = [row[0] for row in triples(found_in(tmp_path, pattern="{stem}_{n}.png"), tmp_path)]
        assert keys == ["a_0", "a_3", "a_b_0"]

    def test_no_pair_says_what_was_sought(self, tmp_path):
        touch(tmp_path, "a.png")
        with pytest.raises(UsageError, match=r"a mask of a\.png is named a_mask0\.png"):
            found_in(tmp_path, pattern="{stem}_mask{n}.png")

    def test_what_is_missing_is_said_to_be_missing(self, tmp_path, s3):
        touch(tmp_path, "images/a.jpg", "file.jpg")
        (tmp_path / "empty").mkdir()
        images = str(tmp_path / "images")
        for masks, sentence in {
            str(tmp_path / "none"): "there is no such folder",
            str(tmp_path / "empty"): "the folder is empty",
            str(tmp_path / "file.jpg"): "this is a file, not a folder",
            s3.uri("no-such-prefix"): "the bucket is there, and nothing in it",
            "s3://no-such-bucket/masks": "cannot be listed: the store answered 404 NoSuchBucket",
        }.items():
            with pytest.raises(UsageError, match=f"--masks {masks}.*{sentence}"):
                find_pairs(Source(images=images, masks=masks))
        with pytest.raises(UsageError, match=r"--pairs .*none: there is no such folder"):
            find_pairs(Source(pairs=str(tmp_path / "none")))

    def test_without_a_pattern_one_prefix_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match="--mask-pattern"):
            found_in(tmp_path, masks=tmp_path)


WRONG_SOURCES = [
    ({}, "add --images and --masks, or --pairs"),
    ({"images": "i", "masks": "m", "random_masks": 2}, "leave out one or the other"),
    ({"pairs": "p.csv", "mask_column": "m", "random_masks": 2}, "leave out one or the other"),
    ({"images": "i", "masks": "m", "mask_seed": 2}, "add --random-masks 1"),
    ({"masks": "m"}, "add --images"),
    ({"mask_pattern": "{stem}_m.png"}, "add --images"),
    ({"pairs": "p.csv", "images": "i"}, "leave out --images"),
    ({"images": "i", "masks": "m", "key_column": "id"}, "add --pairs"),
    *[
        ({"images": "i", "mask_pattern": pattern}, "once, such as")
        for pattern in ("mask{n}.png", "{stem}_mask", "x/{stem}.png", "{stem}{stem}.png", "{stem}_{m}.png")
    ],
    ({"images": "i", "mask_pattern": "{stem}{n}.png"}, "between {stem} and {n}"),
    ({"images": "i", "mask_pattern": "{n}0{stem}.png"}, "between {stem} and {n}"),
]


@pytest.mark.parametrize(("given", "sentence"), WRONG_SOURCES)
def test_a_source_says_which_option_to_add(given, sentence):
    with pytest.raises(ValidationError, match=sentence):
        Source(**given)


WRONG_MASKS = [
    (Source(images="i"), Decoding(), "add --masks, --mask-pattern where .* or --random-masks 1"),
    (Source(pairs="p.csv", mask_column="image"), Decoding(), "--mask-channel alpha where"),
    (Source(images="i"), Decoding(mask_channel="red"), "no masks are given"),
    (Source(images="i", random_masks=1), Decoding(mask_preset="comfy"), "leave out one or the other"),
    (Source(images="i", random_masks=1), Decoding(mask_polarity="black"), "leave out one or the other"),
]


@pytest.mark.parametrize(("source", "decoding", "sentence"), WRONG_MASKS)
def test_a_job_says_which_option_its_masks_lack(source, decoding, sentence):
    with pytest.raises(ValidationError, match=sentence):
        PlanOptions(source=source, decoding=decoding)
    PlanOptions(source=source, decoding=Decoding(mask_channel="auto" if source.random_masks else "alpha"))


def planned(images_and_bytes):
    """Pairs, one for each letter, of images of that name."""
    table = pa.table({"key": [str(i) for i in range(len(images_and_bytes))]})
    columns = {"image_uri": [name for name, _ in images_and_bytes], "mask_uri": table["key"]}
    columns |= {"mask_index": pa.repeat(0, table.num_rows), "image_version": table["key"], "mask_version": table["key"]}
    columns |= {"image_bytes": pa.array([size for _, size in images_and_bytes], pa.int64())}
    return pa.table({"key": table["key"], **columns})


@pytest.mark.parametrize(
    ("images", "size", "chunk_rows", "chunk_bytes", "chunks"),
    [
        ("aabbcc", 1, 4, 100, "000011"),
        ("aabbcc", 1, 3, 100, "001122"),
        ("aaaaabb", 1, 2, 100, "0011233"),
        ("aaaab", 1, 3, 100, "00011"),
        ("aaabbbcd", 10, 8, 20, "00000011"),
        ("aaabbbcd", 10, 8, 5, "00011123"),
        ("", 1, 4, 100, ""),
    ],
)
def test_a_chunk_ends_between_images_and_counts_an_image_once(images, size, chunk_rows, chunk_bytes, chunks):
    cut = plan.cut(planned([(name, size) for name in images]), chunk_rows, chunk_bytes)
    assert "".join(map(str, cut["chunk"].to_pylist())) == chunks


LINES = [
    {"image": "a/1.jpg", "mask": "a/1.png", "caption": "eins", "id": 7},
    {"image": "./b/2.jpg", "mask": "m/x.png", "caption": None, "id": 8},
    {"image": "a/1.jpg", "mask": "m/y.png", "caption": "zwei", "id": 9},
    {"image": "s3://other/b/2.jpg", "mask": "file:///m/z.png", "caption": "drei", "id": 10},
]


def write_manifest(path, lines):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif path.suffix == ".csv":
        lines = [",".join("" if value is None else str(value) for value in line.values()) for line in lines]
        path.write_text("\n".join([",".join(LINES[0]), *lines, ""]))
    else:
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(lines), path)
    return path


class TestManifest:
    @pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
    def test_uris_and_keys(self, tmp_path, suffix):
        path = write_manifest(tmp_path / f"m.{suffix}", LINES)
        assert triples(find_pairs(Source(pairs=str(path))), tmp_path) == [
            ("a/1", "a/1.jpg", "a/1.png", 0),
            ("a/1/1", "a/1.jpg", "m/y.png", 1),
            ("b/2", "b/2.jpg", "m/x.png", 0),
            ("s3://other/b/2", "s3://other/b/2.jpg", "/m/z.png", 0),
        ]

    def test_a_prefix_of_parquet_files(self, tmp_path):
        write_manifest(tmp_path / "list/1.parquet", LINES[:2])
        write_manifest(tmp_path / "list/2.parquet", LINES[2:])
        write_manifest(tmp_path / "list/_old.parquet", LINES)
        found = find_pairs(Source(pairs=str(tmp_path / "list")))
        assert triples(found, tmp_path / "list")[1] == ("a/1/1", "a/1.jpg", "m/y.png", 1)
        assert found.pairs.num_rows == 4

    def test_named_columns(self, tmp_path):
        lines = [{"i": "a.jpg", "m": "b.png", "id": 3}, {"i": "c.jpg", "m": "d.png", "id": 4}]
        path = write_manifest(tmp_path / "m.parquet", lines)
        source = Source(pairs=str(path), image_column="i", mask_column="m", key_column="id")
        assert triples(find_pairs(source), tmp_path) == [("3", "a.jpg", "b.png", 0), ("4", "c.jpg", "d.png", 0)]

    def test_types_are_kept(self, tmp_path):
        columns = {
            "image": ["a.jpg", "b.jpg"],
            "mask": ["a.png", "b.png"],
            "height": pa.array([1, 2], pa.int16()),
            "tags": [["x"], None],
            "box": [{"left": 1.5}, {"left": None}],
            "split": pa.array(["x", "y"]).dictionary_encode(),
        }
        pq.write_table(pa.table(columns), tmp_path / "m.parquet")
        found = find_pairs(Source(pairs=str(tmp_path / "m.parquet")))
        types = [pa.int16(), pa.list_(pa.string()), pa.struct([("left", pa.float64())]), pa.string()]
        assert [field.name for field in found.extra_columns] == ["height", "tags", "box", "split"]
        assert [field.type for field in found.extra_columns] == types
        assert found.pairs["extra_columns"].to_pylist()[0] == {
            "height": 1,
            "tags": ["x"],
            "box": {"left": 1.5},
            "split": "x",
        }

    def test_text_stays_text(self, tmp_path):
        (tmp_path / "m.csv").write_text('image,mask,id\na.jpg,a.png,007\nb.jpg,b.png,"two\nlines"\n')
        assert find_pairs(Source(pairs=str(tmp_path / "m.csv"))).pairs["extra_columns"].to_pylist() == [
            {"id": "007"},
            {"id": "two\nlines"},
        ]
        line = {"image": "a.jpg", "mask": "a.png", "day": "2020-01-01", "n": 3}
        path = write_manifest(tmp_path / "m.jsonl", [line])
        assert find_pairs(Source(pairs=str(path))).pairs["extra_columns"].to_pylist() == [{"day": "2020-01-01", "n": 3}]

    def test_a_value_of_megabytes_and_quotes_within_a_value(self, tmp_path):
        text = 'image,mask,t\na.jpg,a.png,5" x\n.png,b.png,"' + 'x""' * 1_000_000 + '"\n'
        (tmp_path / "m.csv").write_text(text)
        pairs = find_pairs(Source(pairs=str(tmp_path / "m.csv"))).pairs
        assert pairs["key"].to_pylist() == ["a", ".png"]
        assert [row["t"] for row in pairs["extra_columns"].to_pylist()] == ['5" x', 'x"' * 1_000_000]

    def test_times_within_values_stay_text(self, tmp_path):
        line = {"image": "a.jpg", "mask": "a.png", "of": {"day": "2020-01-01", "days": ["2020-01-01"], "n": 1e20}}
        path = write_manifest(tmp_path / "m.jsonl", [line])
        assert find_pairs(Source(pairs=str(path))).pairs["extra_columns"].to_pylist() == [{"of": line["of"]}]

    def test_two_lines_of_one_image_with_drawn_masks(self, tmp_path):
        lines = [{"image": "a.jpg", "id": "x"}, {"image": "a.jpg", "id": "y"}]
        path = str(write_manifest(tmp_path / "m.jsonl", lines))
        found = find_pairs(Source(pairs=path, random_masks=1, key_column="id"))
        assert found.pairs["key"].to_pylist() == ["x", "y"]
        with pytest.raises(UsageError, match="tell them apart by --key-column"):
            find_pairs(Source(pairs=path, random_masks=1))

    def test_bytes_are_not_carried_however_deep(self, tmp_path):
        deep = {"views": [{"bytes": b"1", "path": "p"}], "thumb": b"1", "n": 3}
        path = write_manifest(tmp_path / "m.parquet", [{"image": "a.jpg", "mask": "a.png", **deep}])
        assert find_pairs(Source(pairs=str(path))).pairs["extra_columns"].to_pylist() == [{"n": 3}]

    @pytest.mark.parametrize("given", [{"anonymous": True}, {"requester_pays": True}, {"endpoint_url": "http://x:1"}])
    def test_options_of_buckets_where_none_is(self, tmp_path, given):
        touch(tmp_path, "i/a.png", "m/a.png")
        with pytest.raises(UsageError, match=next(iter(given)).replace("_", "-")):
            find_pairs(Source(images=f"{tmp_path}/i", masks=f"{tmp_path}/m"), Access(**given))

    A = {"image": "a.jpg", "mask": "a.png"}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("lines", "options", "sentence"),
        [
            ([A, A], {}, r"1 lines are there again, .*/a\.jpg and .*/a\.png"),
            (
                [A, {**A, "image": "a.png"}],
                {},
                r"keys are shared, the first, a, by .*a\.jpg and .*a\.png; name a column",
            ),
            (
                [{**A, "id": 1}, {**A, "mask": "b.png", "id": 1}],
                {"key_column": "id"},
                "the first, 1, .*make them unique",
            ),
            ([A], {"image_column": "url"}, "--image-column url: the manifest has no such column, it has image, mask"),
            ([{**A, "samples": 1, "key": 2}], {}, "named like the output's own: samples, key; rename"),
            ([{**A, "key": 2}], {}, "--key-column key"),
            ([{**A, "mask": None}, A], {}, "--mask-column mask has no value in line 0"),
            ([{**A, "image": "ftp://x/a.jpg"}], {}, "ftp://x/a.jpg cannot be read"),
            ([{**A, "image": {"bytes": "x"}}], {}, "of type struct<bytes: string>, not of strings"),
        ],
    )
    def test_what_is_refused(self, tmp_path, lines, options, sentence):
        path = write_manifest(tmp_path / "m.parquet", lines)
        with pytest.raises(UsageError, match=sentence):
            find_pairs(Source(pairs=str(path), **options))

    @pytest.mark.parametrize(
        ("name", "content", "sentence"),
        [
            ("m.parquet", None, "cannot be read: No such file"),
            ("m.parquet", b"PAR1", "is no parquet or csv or jsonl"),
            ("m.csv", b"image,mask\n", "has no lines"),
            ("m.csv", b'image,mask\na,"b""c\nd,e\n', "ends inside a quoted value"),
            ("m.jsonl", b'{"a": 9007199254740993}\n{"a": 1.5}\n', "column a has fractions, and integers beyond"),
            ("m.csv", b"image,mask,a,a\n1,2,3,4\n", "named alike: a"),
            ("m.txt", b"a b", "this is a file, not a folder; .* must end in .parquet"),
            ("m", None, "there is no such folder"),
            ("m.tar.gz", None, "unpack the compression"),
            ("m.tar", None, "cannot be read: No such file"),
            ("m.tar", b"", "is no tar, or is cut off"),
            ("m.tar", b"x" * 1024, "is no tar, or is cut off"),
        ],
    )
    def test_files_that_are_none(self, tmp_path, name, content, sentence):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=sentence):
            find_pairs(Source(pairs=str(tmp_path / name)))


class TestPlanOfAManifest:
    """What a run finds to be done when the manifest is another one than at the last run."""

    LINES = [  # noqa: RUF012
        {"image": f"{name}.jpg", "mask": f"{name}.png", "caption": name, "tags": [name], "score": float("nan")}
        for name in "abcdef"
    ]

    @pytest.fixture
    def encode(self, tmp_path, make_job):
        """Plan what the lines ask for, and commit nothing; return the work and the newest plan."""

        def run(lines, **options):
            path = write_manifest(tmp_path / "m.parquet", lines)
            job = make_job("", "", tmp_path / "out", pairs=str(path), chunk_rows=4, **options)
            with hold(str(tmp_path / "out/_lease.json"), print) as lease:
                state = OutputState(str(tmp_path / "out"), "0123abcd", lease.token)
                left = remaining(state, state.inventory(), job, find_pairs(job.source))
            chunks = [plan.read_chunk(work["part"], work["chunk"]) for work in left.work.to_pylist()]
            return left, pa.concat_tables(chunks)

        return run

    def test_lines_at_the_end_are_new_chunks(self, encode):
        before, table = encode(self.LINES)
        assert (before.work["chunk"].to_pylist(), before.pairs) == ([0, 1], 6)
        after, more = encode([*self.LINES, {**self.LINES[0], "mask": "second.png"}])
        assert (after.work["chunk"].to_pylist(), after.pairs) == ([0, 1, 2], 7)
        assert more.slice(0, 6).drop("carried").equals(table.drop("carried"))
        assert more["key"][6].as_py() == "a/1"

    def test_a_refresh_states_anew_what_has_changed(self, encode):
        _, before = encode(self.LINES)
        lines = [dict(line) for line in self.LINES]
        lines[1]["caption"], lines[2]["tags"] = None, ["c", "c"]
        left, table = encode(lines, refresh=True)
        assert left.work["generation"].to_pylist() == [1, 0]
        assert table["key"].to_pylist() == before["key"].to_pylist()
        carried = [{name: line[name] for name in ("caption", "tags")} for line in lines]
        assert [{**row, "score": 0} for row in table["extra_columns"].to_pylist()] == [
            {**row, "score": 0} for row in carried
        ]
        again, _ = encode(lines, refresh=True)
        assert again.work["generation"].to_pylist() == [1, 0]

    def test_another_uri_is_a_change(self, encode):
        encode(self.LINES)
        lines = [dict(line) for line in self.LINES]
        lines[5]["mask"] = "elsewhere.png"
        left, table = encode(lines, refresh=True)
        assert left.work["generation"].to_pylist() == [0, 1]
        assert table["mask_uri"][5].as_py().endswith("/elsewhere.png")


def test_extra_columns_have_their_own_names_in_the_data_file():
    """``height`` is a column between the stages; the manifest's is another."""
    row = encoded_pair("a", np.zeros((1, 1, 1), np.float32), np.zeros((8, 8), np.uint8))
    own = [{"height": "tall", "a.b": 1}]
    data = data_file([row], row_metadata(samples_dtype="float32", tile=False), own, pa.array(own).type)
    assert pq.read_schema(io.BytesIO(data)).names[-2:] == ["height", "a.b"]
    assert pq.read_table(io.BytesIO(data)).select(["height", "a.b"]).to_pylist() == own
