"""Chunks of a unit, their names and their hashes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from inpaint_encode.output import plan
from inpaint_encode.output.parquet import parquet_bytes
from inpaint_encode.schema import EXTRA_COLUMNS, PAIRS


def planned(images_and_bytes):
    """Pairs, one for each letter, of images of that name."""
    table = pa.table({"key": [str(i) for i in range(len(images_and_bytes))]})
    columns = {"image_uri": [name for name, _ in images_and_bytes], "mask_uri": table["key"]}
    columns |= {"mask_index": pa.repeat(0, table.num_rows), "image_version": table["key"], "mask_version": table["key"]}
    columns |= {"image_bytes": pa.array([size for _, size in images_and_bytes], pa.int64())}
    columns |= {"line": pa.repeat(0, table.num_rows)}
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
    cut = plan.split_into_chunks(planned([(name, size) for name in images]), chunk_rows, chunk_bytes)
    assert "".join(map(str, cut["chunk"].to_pylist())) == chunks


class TestChunkHash:
    """The hash says whether two chunks have the same planned pairs."""

    def chunk(self, **changes):
        rows = [
            {"chunk": 0, "key": key, "image_uri": f"{key}.jpg", "mask_uri": f"{key}.png", "mask_index": 0, "line": at}
            | {"image_version": "1", "mask_version": "", "encode": True, "error": None}
            for at, key in enumerate("abc")
        ]
        rows[1] |= changes
        return pa.Table.from_pylist(rows, PAIRS)

    @pytest.mark.parametrize(
        "change",
        [
            {"key": "b2"},
            {"image_uri": "b2.jpg"},
            {"mask_index": 1},
            {"image_version": "2"},
            {"encode": False},
            {"error": "message"},
            {"mask_uri": "b.pn", "image_version": "g1"},
        ],
    )
    def test_every_planned_value_counts(self, change):
        assert plan.chunk_hash(self.chunk(**change)) != plan.chunk_hash(self.chunk())

    @pytest.mark.parametrize("change", [{"line": 99}, {"chunk": 7}])
    def test_the_place_in_the_source_does_not_count(self, change):
        assert plan.chunk_hash(self.chunk(**change)) == plan.chunk_hash(self.chunk())

    def test_null_and_empty_differ(self):
        assert plan.chunk_hash(self.chunk(error="")) != plan.chunk_hash(self.chunk())

    def test_it_does_not_depend_on_how_the_table_is_stored(self):
        table = self.chunk()
        pieces = pa.concat_tables([table.slice(0, 1), table.slice(1)])
        read = pq.read_table(pa.BufferReader(parquet_bytes(pieces)))
        assert plan.chunk_hash(read) == plan.chunk_hash(pieces) == plan.chunk_hash(table)

    def test_extra_columns_count(self):
        def table(caption):
            extra = pa.array([{"caption": caption, "tags": ["x"]}] * 3)
            return self.chunk().append_column(EXTRA_COLUMNS, extra)

        assert plan.chunk_hash(table("a")) != plan.chunk_hash(table("b"))
        assert plan.chunk_hash(table("a")) != plan.chunk_hash(self.chunk())

    def test_its_value_is_fixed(self):
        """Outputs store it: another value would make every chunk look like one of another plan."""
        assert plan.chunk_hash(self.chunk()) == "2ff547b8686d3bdaabcb0a0028b93f4e"


def test_names_of_chunks_sort_by_unit_and_number():
    names = [plan.chunk_name(unit, number) for unit in (0, 9, 10, 99_999) for number in (0, 9, 10, 65_535)]
    assert names == sorted(names)
    assert [plan.split_chunk_name(name) for name in names[:2]] == [(0, 0), (0, 9)]
