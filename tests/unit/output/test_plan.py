"""The plan: chunks, and what a changed manifest adds to it."""

import pyarrow as pa
import pytest

from inpaint_encode.output import plan
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.resume import remaining
from inpaint_encode.output.state import OutputState
from inpaint_encode.sources import find_pairs
from tests.unit.sources.make_sources import write_manifest


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
    cut = plan.split_into_chunks(planned([(name, size) for name in images]), chunk_rows, chunk_bytes)
    assert "".join(map(str, cut["chunk"].to_pylist())) == chunks


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
            with acquire_lease(str(tmp_path / "out/_lease.json"), print) as lease:
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
        assert more.slice(0, 6).drop("extra_columns").equals(table.drop("extra_columns"))
        assert more["key"][6].as_py() == "a/1"

    def test_a_refresh_states_anew_what_has_changed(self, encode):
        _, before = encode(self.LINES)
        lines = [dict(line) for line in self.LINES]
        lines[1]["caption"], lines[2]["tags"] = None, ["c", "c"]
        left, table = encode(lines, refresh=True)
        assert left.work["generation"].to_pylist() == [1, 0]
        assert table["key"].to_pylist() == before["key"].to_pylist()
        expected = [{name: line[name] for name in ("caption", "tags")} for line in lines]
        assert [{**row, "score": 0} for row in table["extra_columns"].to_pylist()] == [
            {**row, "score": 0} for row in expected
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
