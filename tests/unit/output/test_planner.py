"""Units of a list: every line once, whatever the sizes of batches, and whatever was planned before."""

import itertools
import uuid

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from inpaint_encode.errors import JobFailed
from inpaint_encode.output import planner
from inpaint_encode.output.plan_log import PlanLog, PlanTaken
from inpaint_encode.settings import Source
from inpaint_encode.sources import pairs as source_pairs
from tests.plans import PlanningRun, write_lines


def line(image: str, mask: str = "", **more):
    return {"image": f"{image}.jpg", "mask": f"{mask or image}.png", **more}


LINES = [line(f"{number:03}", caption=f"c{number}") for number in range(23)]


@pytest.fixture(params=[4, 7, 1000])
def small_units(request, monkeypatch):
    """Batches of a few lines, so that a short list has many units."""
    monkeypatch.setattr(source_pairs, "BATCH_PAIRS", request.param)
    monkeypatch.setattr(planner, "BATCH_PAIRS", request.param)
    return request.param


@pytest.fixture
def small_units_of_4(monkeypatch):
    monkeypatch.setattr(source_pairs, "BATCH_PAIRS", 4)
    monkeypatch.setattr(planner, "BATCH_PAIRS", 4)


@pytest.fixture
def small_units_of_1(monkeypatch):
    monkeypatch.setattr(source_pairs, "BATCH_PAIRS", 1)
    monkeypatch.setattr(planner, "BATCH_PAIRS", 1)


@pytest.fixture
def run_of(tmp_path):
    """Begin a run over these lines."""

    def make(lines, **options):
        path = write_lines(tmp_path / "list.jsonl", lines)
        return PlanningRun(tmp_path / "out", Source(pairs=path), **options)

    return make


def keys_of(lines):
    return [one["image"].removesuffix(".jpg") for one in lines]


class TestUnits:
    def test_every_line_is_planned_once_in_order(self, run_of, small_units):
        run = run_of(LINES).plan()
        assert run.keys() == [f"{number:03}" for number in range(23)]
        assert len(run.log.units) == {4: 6, 7: 4, 1000: 1}[small_units]
        assert run.log.pairs == 23
        assert [row["extra_columns"]["caption"] for row in run.pairs()] == [one["caption"] for one in LINES]

    def test_chunks_are_named_by_unit_and_number(self, run_of, small_units_of_4):
        run = run_of(LINES[:10], chunk_rows=2).plan()
        assert list(run.log.chunks) == [
            "000000-00000",
            "000000-00001",
            "000001-00000",
            "000001-00001",
            "000002-00000",
        ]

    def test_an_unchanged_list_is_not_read_again(self, run_of, small_units):
        run_of(LINES).plan()
        run = run_of(LINES)
        units = len(run.log.units)
        assert list(run.steps) == []
        assert len(run.log.units) == units

    def test_a_run_that_ended_early_goes_on_where_it_was(self, run_of, small_units):
        next(run_of(LINES).steps)
        again = run_of(LINES).plan()
        assert sorted(again.keys()) == sorted(keys_of(LINES))
        assert again.log.repeated == 0

    @pytest.mark.parametrize("stop", [0, 1, 2, 3])
    def test_a_list_that_grew_gains_its_new_lines(self, run_of, small_units, stop):
        first = run_of(LINES)
        for _ in range(stop):
            next(first.steps, None)
        more = [line("new-front"), *LINES[:9], line("new-middle"), *LINES[9:], line("new-end")]
        run = run_of(more).plan()
        assert sorted(run.keys()) == sorted(keys_of(more))
        assert sorted(run_of(more).plan().keys()) == sorted(keys_of(more))
        assert run.log.repeated == 0


class TestRepeatedLines:
    def test_an_identical_line_is_dropped_and_counted(self, run_of, small_units):
        run = run_of([*LINES, LINES[2], LINES[2], LINES[20]]).plan()
        assert sorted(run.keys()) == sorted(keys_of(LINES))
        assert run.log.repeated == 3

    def test_a_repetition_counts_once_however_often_the_list_is_read(self, run_of, small_units):
        lines = [*LINES[:9], LINES[0], LINES[8]]
        assert run_of(lines).plan().log.repeated == 2
        for more in range(3):
            for options in ({}, {"refresh": True}):
                assert run_of([*lines, *LINES[9 : 9 + more]], **options).plan().log.repeated == 2
        assert run_of(LINES[:9]).plan().log.repeated == 0

    def test_a_line_that_changes_and_moves_to_another_file_is_a_changed_pair(self, tmp_path):
        def run_of(**files):
            for name, lines in files.items():
                pq.write_table(pa.Table.from_pylist(lines), tmp_path / "lists" / f"{name}.parquet")
            return PlanningRun(tmp_path / "out", Source(pairs=str(tmp_path / "lists"))).plan()

        (tmp_path / "lists").mkdir()
        run_of(a=LINES[:2])
        run_of(a=LINES[1:2])
        run = run_of(b=[LINES[0] | {"caption": "other"}])
        assert ([pair["error"] for pair in run.pairs()], run.planner.changed) == ([None, None], 1)

    def test_other_contents_with_the_same_key_are_rejected_with_both_rows(self, run_of, small_units):
        lines = [*LINES, {**LINES[2], "caption": "another"}]
        run = run_of(lines).plan()
        errors = [row for row in run.pairs() if row["error"]]
        assert len(run.keys()) == 24
        assert run.keys().count("002") == 1
        (error,) = errors
        assert error["key"].startswith("002#")
        assert "row 24 of" in error["error"]
        assert "row 3 of" in error["error"]

    def test_a_rejected_line_is_planned_once_however_often_the_list_is_read(self, run_of, small_units):
        lines = [*LINES, {**LINES[2], "caption": "another"}]
        run_of(lines).plan()
        run = run_of([line("000-new"), *lines]).plan()
        assert len(run.keys()) == len(set(run.keys())) == 25
        assert sum(row["error"] is not None for row in run.pairs()) == 1

    def test_a_line_before_the_planned_one_with_its_key_does_not_reject_it(self, run_of, small_units):
        run_of([line("a", caption="x")]).plan()
        lines = [line("a", caption="y"), line("a", caption="x")]
        run = run_of(lines).plan()
        assert [(pair["extra_columns"]["caption"], pair["error"]) for pair in run.pairs()] == [("x", None)]
        pairs = run_of(lines, refresh=True).plan().pairs()
        assert [(pair["extra_columns"]["caption"], pair["error"] is None) for pair in pairs] == [
            ("y", True),
            ("x", False),
        ]

    def test_a_column_of_any_type_may_be_read_twice(self, tmp_path, small_units_of_1):
        numbers = [uuid.UUID(int=2**127 + number).bytes for number in range(3)]
        table = pa.table({"image": [f"{number}.jpg" for number in range(3)], "mask": ["m.png"] * 3})
        table = table.append_column("id", pa.ExtensionArray.from_storage(pa.uuid(), pa.array(numbers, pa.binary(16))))
        pq.write_table(table, tmp_path / "list.parquet")
        source = Source(pairs=str(tmp_path / "list.parquet"))
        next(PlanningRun(tmp_path / "out", source).steps)
        run = PlanningRun(tmp_path / "out", source, refresh=True).plan()
        assert (run.keys(), run.planner.changed) == (["0", "1", "2"], 0)

    def test_two_images_with_one_key_are_told_apart_by_the_rows(self, run_of, small_units):
        run = run_of([*LINES, {"image": "002.png", "mask": "x.png", "caption": ""}]).plan()
        assert [row["image_uri"].rpartition("/")[2] for row in run.pairs() if row["error"]] == ["002.png"]

    def test_masks_of_an_image_are_numbered_across_units(self, run_of, small_units):
        lines = [line(name, f"{name}-{mask}") for mask in range(5) for name in ("a", "b", "c", "a/1")]
        run = run_of(lines).plan()
        expected = {"a", "b", "c", "a/2", "a/3", "a/4", *(f"{name}/{mask}" for name in "bc" for mask in range(1, 5))}
        keys = set(run.keys())
        assert expected <= keys
        assert len(run.keys()) == len(keys) == len(lines)
        by_key = {row["key"]: row for row in run.pairs()}
        assert by_key["b/3"]["mask_index"] == 3
        assert by_key["b/3"]["mask_uri"].endswith("b-3.png")

    def test_the_order_of_a_repeated_reading_does_not_number_masks_again(self, run_of, small_units):
        lines = [line(name, f"{name}-{mask}") for mask in range(5) for name in ("a", "b", "c")]
        before = {row["mask_uri"]: row["key"] for row in run_of(lines).plan().pairs()}
        after = run_of([line("z"), *lines, line("a", "a-new")]).plan()
        assert {row["mask_uri"]: row["key"] for row in after.pairs()}.items() >= before.items()
        assert len(after.keys()) == 17
        assert "a/5" in set(after.keys())


class TestRefresh:
    def test_only_changed_pairs_are_encoded_again(self, run_of, small_units):
        first = run_of(LINES).plan()
        lines = [dict(one) for one in LINES]
        lines[3]["caption"] = "changed"
        lines[20]["mask"] = "elsewhere.png"
        run = run_of(lines, refresh=True)
        run.done = set(first.log.chunks)
        run.plan()
        rows = {row["key"]: row for row in run.pairs()}
        assert rows["003"]["extra_columns"]["caption"] == "changed"
        assert rows["020"]["mask_uri"].endswith("elsewhere.png")
        revised = {name for name, chunk in run.log.chunks.items() if chunk.revision}
        assert len(revised) == 2
        encoded = [row["key"] for _, table in run.log.read_units() for row in table.to_pylist() if row["encode"]]
        assert {"003", "020"} <= set(encoded)
        kept = [row for row in run.pairs() if not row["encode"]]
        assert {row["key"] for row in kept}.isdisjoint({"003", "020"})
        assert len(run.keys()) == 23

    def test_without_a_refresh_a_changed_line_is_counted_and_a_new_mask_is_added(self, run_of, small_units):
        run_of(LINES).plan()
        lines = [dict(one) for one in LINES]
        lines[3]["caption"] = "changed"
        lines[20]["mask"] = "elsewhere.png"
        run = run_of(lines).plan()
        assert run.planner.changed == 1
        rows = {row["key"]: row for row in run.pairs()}
        assert rows["003"]["extra_columns"]["caption"] == "c3"
        assert rows["020/1"]["mask_uri"].endswith("elsewhere.png")
        assert len(rows) == 24

    def test_a_refresh_adds_a_mask_if_the_others_are_still_there(self, run_of, small_units):
        lines = [line(name, f"{name}-{mask}") for mask in range(3) for name in ("a", "b")]
        run_of(lines).plan()
        more = [line("a", "a-new"), *lines]
        run = run_of(more, refresh=True).plan()
        assert sorted(run.keys()) == ["a", "a/1", "a/2", "a/3", "b", "b/1", "b/2"]
        assert not any(chunk.revision for chunk in run.log.chunks.values())

    def test_an_output_grows_after_a_refresh_that_added_a_mask_of_a_planned_image(self, run_of, small_units_of_1):
        run_of([line("a", "first")]).plan()
        lines = [line("a", "second"), line("a", "first")]
        assert sorted(run_of(lines, refresh=True).plan().keys()) == ["a", "a/1"]
        assert sorted(run_of([*lines, line("a", "third")]).plan().keys()) == ["a", "a/1", "a/2"]

    def test_a_repeated_line_that_replaces_a_mask_is_planned_once(self, run_of, small_units):
        run_of([line("a", "first")]).plan()
        run = run_of([line("a", "second"), line("a", "second")], refresh=True).plan()
        assert run.keys() == ["a"]
        assert (run.planner.changed, run.log.repeated) == (1, 1)

    def test_a_second_refresh_changes_nothing(self, run_of, small_units):
        run_of(LINES).plan()
        lines = [{**one, "caption": "new"} for one in LINES]
        run_of(lines, refresh=True).plan()
        revisions = [len(unit.revisions) for unit in run_of(lines, refresh=True).plan().log.units]
        assert max(revisions) == 2

    def test_vanished_lines_are_dropped_on_request(self, run_of, small_units):
        run_of(LINES).plan()
        fewer = [*LINES[:5], *LINES[9:], line("new")]
        assert len(run_of(fewer, refresh=True).plan().keys()) == 24
        run = run_of(fewer, refresh=True, drop_vanished=True).plan()
        assert sorted(run.keys()) == sorted(keys_of(fewer))
        assert run.log.pairs == len(fewer)
        again = run_of(LINES).plan()
        assert sorted(again.keys()) == sorted([*keys_of(LINES), "new"])

    def test_a_line_and_its_repetition_that_change_alike_are_one_changed_pair(self, run_of, small_units):
        run_of([*LINES, LINES[2]]).plan()
        changed = {**LINES[2], "caption": "changed"}
        lines = [*LINES[:2], changed, *LINES[3:], changed]
        for options in ({}, {"refresh": True}):
            run = run_of(lines, **options).plan()
            assert len(run.keys()) == 23
            assert [row["error"] for row in run.pairs() if row["error"]] == []
            assert run.planner.changed == 1

    def test_a_rejected_pair_does_not_vanish(self, run_of, small_units):
        lines = [*LINES, {**LINES[2], "caption": "another"}, {**LINES[2], "caption": "a third"}]
        before = sorted(run_of(lines).plan().keys())
        run = run_of([*lines, line("new")], refresh=True, drop_vanished=True).plan()
        assert sorted(run.keys()) == sorted([*before, "new"])

    @pytest.mark.parametrize("drop", [False, True])
    def test_a_rejected_pair_is_planned_when_the_pair_with_its_key_is_gone(self, run_of, small_units, drop):
        """It replaces the one that is gone, like a line that has changed. A second refresh has nothing to do."""
        lines = [line("b"), line("a", "m1"), {"image": "a.png", "mask": "m2.png"}, {"image": "a.png", "mask": "m3.png"}]
        run = run_of(lines).plan()
        assert sum(pair["error"] is not None for pair in run.pairs()) == 2
        left = [lines[0], *lines[2:]]
        run = run_of(left, refresh=True, drop_vanished=drop).plan()
        assert [(pair["key"], pair["error"]) for pair in run.pairs()] == [("b", None), ("a", None), ("a/1", None)]
        assert [pair["mask_uri"][-6:] for pair in run.pairs()] == ["/b.png", "m2.png", "m3.png"]
        assert run.planner.changed == 1
        units = [len(unit.revisions) for unit in run.log.units]
        run = run_of(left, refresh=True, drop_vanished=drop).plan()
        assert ([len(unit.revisions) for unit in run.log.units][: len(units)], run.planner.changed) == (units, 0)

    @pytest.mark.parametrize("drop", [False, True])
    def test_a_rejected_line_of_a_list_with_keys_is_planned_when_its_rival_is_gone(self, tmp_path, small_units, drop):
        def run_of(lines, **options):
            path = write_lines(tmp_path / "list.jsonl", lines)
            return PlanningRun(tmp_path / "out", Source(pairs=path, key_column="id"), **options).plan()

        lines = [line(image, id=key) for image, key in (("x", "p"), ("y", "a"), ("z", "a"))]
        assert [pair["error"] is None for pair in run_of(lines).pairs()] == [True, True, False]
        pairs = run_of([lines[0], lines[2]], refresh=True, drop_vanished=drop).pairs()
        assert [(pair["key"], pair["image_uri"][-5:], pair["error"]) for pair in pairs] == [
            ("p", "x.jpg", None),
            ("a", "z.jpg", None),
        ]

    def test_lines_with_one_key_may_change_their_order(self, tmp_path, small_units):
        """The first one planned keeps the key, whatever the order of a later reading."""
        lines = [line(image, id=key) for image, key in (("x", "p"), ("y", "a"), ("z", "a"))]
        for options in ({}, {}, {"refresh": True}, {}, {"refresh": True, "drop_vanished": True}):
            path = write_lines(tmp_path / "list.jsonl", lines)
            run = PlanningRun(tmp_path / "out", Source(pairs=path, key_column="id"), **options).plan()
            planned = {pair["image_uri"][-5:]: pair["error"] is None for pair in run.pairs()}
            assert (planned, run.planner.changed) == ({"x.jpg": True, "y.jpg": True, "z.jpg": False}, 0)
            lines.reverse()

    def test_an_image_of_another_format_replaces_the_one_that_is_gone(self, run_of, small_units):
        run_of([line("a", "m1"), line("a", "m2"), line("b")]).plan()
        lines = [{"image": "a.png", "mask": mask} for mask in ("m2.png", "m1.png")]
        run = run_of([line("b"), *lines], refresh=True).plan()
        assert [(pair["key"], pair["image_uri"][-5:], pair["mask_uri"][-6:]) for pair in run.pairs()] == [
            ("a", "a.png", "m1.png"),
            ("a/1", "a.png", "m2.png"),
            ("b", "b.jpg", "/b.png"),
        ]
        assert run.planner.changed == 2

    def test_a_refresh_that_was_killed_leaves_no_pair_out(self, run_of, small_units_of_1):
        """Its files are read again by the next run, also without --refresh."""
        run_of([line("a", "m")]).plan()
        lines = [line("a", "n"), line("b")]
        next(run_of(lines, refresh=True).steps)
        assert [pair["mask_uri"][-6:] for pair in run_of(lines).plan().pairs()] == ["/m.png", "/b.png", "/n.png"]

    def test_changed_pairs_are_counted_after_a_refresh_that_was_killed(self, run_of):
        run_of([line("a", caption="x")]).plan()
        lines = [line("a", caption="y"), line("b", caption="x")]
        next(run_of(lines, refresh=True).steps)
        run = run_of(lines).plan()
        assert (run.keys(), run.planner.changed) == (["a", "b"], 1)
        run = run_of(lines, refresh=True).plan()
        assert run.planner.changed == 1
        assert run_of(lines).plan().planner.changed == 0

    def test_a_pair_is_not_rejected_too_after_a_refresh_that_was_killed(self, run_of, small_units_of_1):
        """It was killed when the pair had its key, and before its former reject was dropped."""
        rival = {"image": "a.png", "mask": "m.png"}
        run_of([line("a", "m"), line("b", "m"), rival]).plan()
        lines = [rival, line("b", "m")]
        run = run_of(lines, refresh=True)
        while max(len(unit.revisions) for unit in run.log.units) == 1:
            next(run.steps)
        pairs = run_of(lines, refresh=True).plan().pairs()
        assert [(pair["key"], pair["image_uri"][-5:], pair["error"]) for pair in pairs] == [
            ("a", "a.png", None),
            ("b", "b.jpg", None),
        ]

    def test_repetitions_of_a_file_that_is_gone_do_not_count(self, tmp_path):
        (tmp_path / "lists").mkdir()
        pq.write_table(pa.Table.from_pylist(LINES[:2]), tmp_path / "lists/a.parquet")
        pq.write_table(pa.Table.from_pylist([LINES[2]] * 3), tmp_path / "lists/b.parquet")
        source = Source(pairs=str(tmp_path / "lists"))
        assert PlanningRun(tmp_path / "out", source).plan().log.repeated == 2
        (tmp_path / "lists/b.parquet").unlink()
        run = PlanningRun(tmp_path / "out", source, refresh=True, drop_vanished=True).plan()
        assert (len(run.keys()), run.log.repeated) == (2, 0)

    def test_a_repetition_with_several_random_masks_is_one_line(self, tmp_path):
        def run_of(lines, **options):
            path = write_lines(tmp_path / "list.jsonl", lines)
            source = Source(pairs=path, key_column="id", random_masks=3)
            return PlanningRun(tmp_path / "out", source, **options).plan()

        run_of([{"image": "a.jpg", "id": "k"}, {"image": "b.jpg", "id": "k"}])
        run = run_of([{"image": "b.jpg", "id": "k"}] * 2, refresh=True)
        assert (len(run.keys()), run.log.repeated) == (3, 1)

    def test_a_refresh_that_replaces_every_mask_is_planned_in_small_units(self, run_of, small_units):
        run_of(LINES).plan()
        lines = [{**one, "mask": f"new-{one['mask']}"} for one in LINES] + [line(f"z{n}", "z") for n in range(9)]
        run = run_of(lines, refresh=True).plan()
        rows = {row["key"]: row["mask_uri"] for row in run.pairs()}
        assert len(rows) == 32
        assert all("/new-" in uri for key, uri in rows.items() if not key.startswith("z"))
        assert max(len(unit.chunks) for unit in run.log.units) <= 1 + max(1, small_units // 2)


class TestTwoPlanners:
    """Nothing rests on a lease: whoever writes a unit's marker has planned it."""

    @pytest.mark.parametrize("stop", [0, 1, 2, 3])
    def test_a_run_that_was_suspended_while_another_planned_stops(self, run_of, small_units_of_4, stop):
        suspended = run_of(LINES)
        for _ in range(stop):
            next(suspended.steps)
        other = run_of([line("new-front"), *LINES, line("new-end")]).plan()
        with pytest.raises(PlanTaken, match="stops planning"):
            suspended.plan()
        run = run_of([line("new-front"), *LINES, line("new-end")])
        assert run.keys() == other.keys()
        assert sorted(run.plan().keys()) == sorted(["new-front", *keys_of(LINES), "new-end"])

    def test_parts_of_the_run_that_lost_are_never_read_and_removed_later(self, run_of, small_units_of_4):
        suspended, other = run_of(LINES), run_of(LINES)
        other.plan()
        with pytest.raises(PlanTaken):
            suspended.plan()
        run = run_of(LINES)
        unused = run.log.unused_parts(run.state.inventory().plan)
        assert len(unused) == 1
        assert suspended.state.token[:8] in unused[0]
        run.state.delete(unused)
        assert run_of(LINES).keys() == other.keys()

    def test_a_listing_made_while_another_run_plans_may_lack_files(self, run_of, small_units_of_4):
        """A disk may list a file and not one that was written before it, if both are written during the listing."""
        run = run_of(LINES).plan()
        listed = run.state.inventory().plan
        for path in listed:
            if "-000005." not in path:
                files = {name: size for name, size in listed.items() if name != path}
                assert PlanLog.read(run.state, files, run.log.schema).pairs == len(LINES)


class TestDamage:
    @pytest.fixture
    def output(self, run_of, tmp_path, small_units_of_4):
        run = run_of(LINES).plan()
        run_of([{**one, "caption": "new"} for one in LINES], refresh=True).plan()
        assert len(run.log.units) == 6
        return tmp_path / "out/_plan"

    @pytest.mark.parametrize("unit", [0, 2])
    @pytest.mark.parametrize("revision", [0])
    def test_a_missing_marker_is_named(self, run_of, output, unit, revision):
        path = next(output.glob(f"*-{unit:06}.{revision}.json"))
        path.unlink()
        with pytest.raises(JobFailed, match=rf"{path.name} is missing"):
            run_of(LINES)

    @pytest.mark.parametrize("name", ["000000.0", "000003.0", "000005.0", "000005.1"])
    @pytest.mark.parametrize("damage", ["cut", "edited"])
    def test_a_damaged_marker_is_named(self, run_of, output, name, damage):
        """Also the last one, which no other marker follows."""
        path = next(output.glob(f"*-{name}.json"))
        text = path.read_text()
        path.write_text(text[:50] if damage == "cut" else text.replace('"slices":[', '"slices": ['))
        with pytest.raises(JobFailed, match=rf"{path.name} is cut, or was changed"):
            run_of(LINES)

    def test_a_marker_of_another_plan_is_named(self, run_of, output, tmp_path):
        """It is valid by itself, but does not follow the marker before it."""
        path = next(output.glob("*-000002.0.json"))
        other = PlanningRun(tmp_path / "other", Source(pairs=str(tmp_path / "list.jsonl")), chunk_rows=3).plan()
        path.write_bytes(other.state.read(other.log.marker_path(2, 0)))
        with pytest.raises(JobFailed, match="does not follow"):
            run_of(LINES)

    @pytest.mark.parametrize("damage", ["removed", "cut"])
    def test_a_damaged_part_is_named(self, run_of, output, damage):
        path = next(output.glob("*-000002.1-*.parquet"))
        path.unlink() if damage == "removed" else path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(JobFailed, match=rf"{path.name} is missing or cut"):
            run_of(LINES)

    def test_an_edited_part_is_named_when_it_is_read(self, run_of, output):
        path = next(output.glob("*-000002.1-*.parquet"))
        data = bytearray(path.read_bytes())
        data[100] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(JobFailed, match=rf"{path.name} has other contents"):
            run_of(LINES).keys()


IMAGES = st.sampled_from(["a.jpg", "a.png", "a/1.jpg", "b.jpg", "b/1.jpg", "c.jpg"])
SOME_LINES = st.lists(
    st.fixed_dictionaries(
        {"image": IMAGES, "mask": st.sampled_from(["m0.png", "m1.png", "m2.png"]), "caption": st.sampled_from("xy")}
    ),
    max_size=30,
)


B_X, B_Y = ({"image": "b.jpg", "mask": "m2.png", "caption": caption} for caption in "xy")


def planned(folder, lines, batch, output="out", **options):
    """Plan the lines in batches of this size; return the pairs by key, and the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source_pairs, "BATCH_PAIRS", batch)
        patch.setattr(planner, "BATCH_PAIRS", batch)
        path = write_lines(folder / "list.jsonl", [{"image": "z.jpg", "mask": "z.png", "caption": "z"}, *lines])
        run = PlanningRun(folder / output, Source(pairs=path), **options).plan()
        pairs = run.pairs()
    by_key = {
        row["key"]: (row["image_uri"], row["mask_uri"], row["extra_columns"]["caption"], row["error"] is None)
        for row in pairs
    }
    assert len(by_key) == len(pairs), "a key is planned twice"
    return by_key, run


def contents(by_key):
    return sorted(values[:3] for values in by_key.values())


@pytest.fixture
def new_folder(tmp_path):
    numbers = itertools.count()

    def make():
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        return folder

    return make


class TestAnyList:
    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(lines=SOME_LINES, batch=st.integers(1, 9))
    def test_the_plan_does_not_depend_on_batches(self, new_folder, lines, batch):
        folder = new_folder()
        small, run = planned(folder, lines, batch)
        again, _ = planned(folder, lines, 1000)
        large, other = planned(folder, lines, 1000, "another")
        assert small == again == large
        assert run.log.repeated == other.log.repeated
        distinct = {(one["image"], one["mask"], one["caption"]) for one in lines}
        assert len(small) == len(distinct) + 1
        assert len(small) + run.log.repeated == len(lines) + 1

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(lines=SOME_LINES, more=SOME_LINES, batch=st.integers(1, 9), cut=st.integers(0, 30))
    def test_a_list_that_grows_gains_its_new_lines_and_no_line_twice(self, new_folder, lines, more, batch, cut):
        folder = new_folder()
        before, _ = planned(folder, lines, batch)
        grown = [*lines[:cut], *more, *lines[cut:]]
        after, _ = planned(folder, grown, batch)
        assert {key: after[key] for key in before} == before
        known = {(image, mask, caption) for image, mask, caption, _ in before.values()}
        missing = [one for one in contents(after) if one not in known]
        assert len(missing) == len(set(missing))
        assert planned(folder, grown, 1000)[0] == after

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(states=st.lists(st.tuples(SOME_LINES, st.booleans(), st.integers(1, 9)), min_size=2, max_size=4))
    def test_after_a_refresh_the_plan_has_the_contents_of_the_list(self, new_folder, states):
        folder = new_folder()
        for lines, drop, batch in states:
            after, run = planned(folder, lines, batch, refresh=True, drop_vanished=drop)
            images = len(str(folder)) + 1
            found = [(image[images:], mask[images:], caption) for image, mask, caption in contents(after)]
            wanted = {(one["image"], one["mask"], one["caption"]) for one in lines} | {("z.jpg", "z.png", "z")}
            assert wanted <= set(found)
            assert run.log.repeated == len(lines) + 1 - len(wanted)
            accepted = {key.partition("/")[0] for key, values in after.items() if values[3]}
            if drop:
                assert sorted(wanted) == found
                assert {key.partition("#")[0].partition("/")[0] for key in after} <= accepted

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        states=st.lists(st.tuples(SOME_LINES, st.booleans(), st.booleans(), st.integers(0, 4)), min_size=2, max_size=4),
        batch=st.integers(1, 9),
    )
    # The refresh ends after it has rejected "y", and before it has changed the planned pair "y" to "x".
    @example(states=[([B_Y], False, False, 1), ([B_X, B_Y], True, False, 1)], batch=1)
    def test_whatever_was_killed_the_next_run_has_every_line(self, new_folder, states, batch):
        folder = new_folder()
        for lines, refresh, drop, steps in states:
            path = write_lines(folder / "list.jsonl", [{"image": "z.jpg", "mask": "z.png", "caption": "z"}, *lines])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(source_pairs, "BATCH_PAIRS", batch)
                patch.setattr(planner, "BATCH_PAIRS", batch)
                run = PlanningRun(folder / "out", Source(pairs=path), refresh=refresh, drop_vanished=refresh and drop)
                list(itertools.islice(run.steps, steps))
                run.steps.close()
        images = len(str(folder)) + 1
        after, _ = planned(folder, lines, batch)
        again, _ = planned(folder, lines, batch)
        assert again == after
        keys = {(image[images:], mask[images:]) for image, mask, *_ in after.values()}
        assert keys >= {(one["image"], one["mask"]) for one in lines}
        after, _ = planned(folder, lines, batch, refresh=True, drop_vanished=True)
        found = [(image[images:], mask[images:], caption) for image, mask, caption in contents(after)]
        assert found == sorted(
            {(one["image"], one["mask"], one["caption"]) for one in lines} | {("z.jpg", "z.png", "z")}
        )
