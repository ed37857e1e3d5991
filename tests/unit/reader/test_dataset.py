"""Outputs read back: rows by number, by key and in streams, from a disk and from a real S3 server, without Ray too."""

import json
import math
import pickle
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path
from uuid import uuid4
from weakref import WeakSet

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from inpaint_encode import iter_rows, open_latents
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.reader.batches import collate
from inpaint_encode.reader.groups import Groups
from inpaint_encode.stores import storage
from inpaint_encode.stores.ranged_file import Changed
from tests.outputs import write_output

FILES = [[(4, 6), (5, 3), (4, 4)] * 4, [], [(4, 6)] * 5, [(4, 4)] * 9 + [(5, 3)] * 2, [(4, 6)]]
"""29 rows of three sizes, in eleven row groups; all pairs of the second chunk were rejected."""
COUNT = sum(len(sizes) for sizes in FILES)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("latents"))
    return folder, write_output(folder, FILES, scaling_factor=0.5)


@pytest.fixture(scope="module")
def in_bucket(s3):
    prefix = s3.uri("reader", uuid4().hex)
    return prefix, write_output(prefix, FILES)


@pytest.fixture(params=["disk", "s3"])
def output(request):
    """Where it is, and the rows in it."""
    return request.getfixturevalue("on_disk" if request.param == "disk" else "in_bucket")


@pytest.fixture
def requests(monkeypatch) -> list[tuple[str, int, int]]:
    """Every range that is read from here on: of what, from where, and how many bytes."""
    seen, read_range = [], storage.read_range

    def counted(uri, start, length, access=storage.DEFAULT_ACCESS):
        seen.append((uri.rpartition("-")[2], start, length))
        return read_range(uri, start, length, access)

    monkeypatch.setattr(storage, "read_range", counted)
    return seen


def keys(rows) -> list[str]:
    """Keys of rows or of batches, in their order."""
    return [key for row in rows for key in ([row["key"]] if isinstance(row["key"], str) else row["key"])]


def same(row, expected) -> None:
    for name, value in expected.items():
        if isinstance(value, np.ndarray):
            assert row[name].numpy().dtype == value.dtype
            assert np.array_equal(row[name].numpy(), value), name
        else:
            assert row[name] == value, name


class TestRows:
    def test_iterating_gives_every_row_as_it_was_written(self, output):
        uri, written = output
        dataset = open_latents(uri)
        assert isinstance(dataset, torch.utils.data.Dataset)
        for row, expected in zip(dataset, written, strict=True):
            same(row, expected)
            row["samples"] += 1  # its own memory
        assert len(dataset) == len(written)
        assert list(dataset.keys()) == keys(written)

    def test_iter_rows_gives_the_same_as_arrays(self, output):
        uri, written = output
        for row, array_row, expected in zip(open_latents(uri), iter_rows(uri), written, strict=True):
            assert row.keys() == array_row.keys() >= expected.keys()
            same(row, array_row)

    @pytest.mark.parametrize("masks", ["tensor", "packed"])
    def test_masks_come_unpacked_in_any_stored_type(self, tmp_path, masks):
        written = write_output(str(tmp_path), FILES, mask_encoding=masks, samples_dtype="float16")
        for row, expected in zip(open_latents(str(tmp_path)), written, strict=True):
            same(row, expected)
            assert (row["samples"].dtype, row["noise_mask"].dtype) == (torch.float16, torch.uint8)

    def test_packed_masks_as_others_unpack_them(self, tmp_path):
        written = write_output(str(tmp_path), FILES[:1], mask_encoding="packed")
        values = pq.read_table(tmp_path)["noise_mask"].to_pylist()
        for value, expected in zip(values, written, strict=True):
            bits, shape = np.frombuffer(value["bits"], np.uint8), value["shape"]
            assert np.array_equal(np.unpackbits(bits, count=math.prod(shape)).reshape(shape), expected["noise_mask"])

    def test_rows_by_number_and_by_key(self, output):
        uri, written = output
        dataset = open_latents(uri)
        for number in (0, 2, 3, 12, COUNT - 1):
            same(dataset[number], written[number])
            same(dataset[number - COUNT], written[number])
            same(dataset[written[number]["key"]], written[number])
        assert keys(dataset.__getitems__([7, 0, 7, 1])) == keys(written[number] for number in (7, 0, 7, 1))
        with pytest.raises(IndexError, match="row 29 of an output of 29 rows"):
            dataset[COUNT]
        for key in ("", "00/0000", "nothing like it", "00/001 "):
            with pytest.raises(KeyError):
                dataset[key]

    def test_only_the_columns_that_are_asked_for(self, output):
        uri, written = output
        rows = list(open_latents(uri, columns=["samples", "key", "caption"]))
        assert [row.keys() for row in rows] == [{"samples", "key", "caption"}] * COUNT
        assert [row["caption"] for row in rows] == [row["caption"] for row in written]
        with pytest.raises(UsageError, match="has no column mask; it has key, samples, noise_mask, image_uri"):
            open_latents(uri, columns=["mask"])
        with pytest.raises(UsageError, match="no columns are asked for"):
            open_latents(uri, columns=[])

    def test_functions_are_applied_in_turn(self, on_disk):
        dataset = open_latents(on_disk[0])
        negated = dataset.map(lambda row: {**row, "samples": -row["samples"]})
        named = negated.map(lambda row: {"key": row["key"].upper(), "sum": row["samples"].sum()})
        assert torch.equal(negated[3]["samples"], -dataset[3]["samples"])
        assert named["00/003"].keys() == {"key", "sum"}
        (batch,) = islice(named.stream(batch_size=2), 1)
        assert batch["sum"].tolist() == [-dataset[number]["samples"].sum().item() for number in (0, 1)]

    def test_what_made_the_rows(self, on_disk):
        assert open_latents(on_disk[0]).metadata.vae.scaling_factor == 0.5

    def test_nothing_there(self, tmp_path):
        with pytest.raises(UsageError, match="holds no rows"):
            open_latents(str(tmp_path))


class TestRequests:
    """What is asked of the store."""

    def test_an_open_asks_for_nothing_and_counting_once_for_each_footer(self, s3, requests):
        uri = s3.uri("reader", uuid4().hex)
        write_output(uri, FILES)
        dataset = open_latents(uri)
        assert requests == []
        assert len(dataset) == len(dataset.map(dict)) == COUNT
        assert len(requests) == len(FILES)
        list(dataset.stream())
        assert len(requests) == len(FILES) + len(dataset.groups.index.sizes)

    def test_a_stream_knows_the_footers_before_there_are_workers(self, s3, requests):
        uri = s3.uri("reader", uuid4().hex)
        write_output(uri, FILES)
        open_latents(uri).stream()
        assert len(requests) == len(FILES)

    def test_a_row_is_read_without_the_rest_of_its_file(self, s3, requests):
        """A file of 40 row groups of 30 kB; of the row's one the keys are read, and then all of it."""
        uri = s3.uri("reader", uuid4().hex)
        write_output(uri, [[(24, 24)] * 120])
        size = storage.stat(f"{uri}/0a1b2c3d-00000000.parquet").size
        dataset = open_latents(uri)
        row = dataset["00/070"]
        (footer, keys, group) = requests
        assert row["key"] == "00/070"
        assert footer[2] == 2**16
        assert keys[2] < 1_000
        assert size / 50 < group[2] < size / 30

    def test_keys_that_are_not_sorted_are_found(self, tmp_path, requests):
        """As after a refresh: the second file lies between the keys of the first."""
        write_output(str(tmp_path / "a"), [[(4, 4)] * 6, [(4, 4)] * 6])
        for number, path in enumerate(sorted((tmp_path / "a").glob("*.parquet")), 1):
            path.rename(path.with_name(f"0a1b2c3d-{9 - number:08}.parquet"))
        dataset = open_latents(str(tmp_path / "a"))
        assert next(dataset.keys()) == "01/000"
        assert dataset["00/005"]["key"] == "00/005"


def resumed(dataset, taken: int, **options) -> tuple[list[str], list[str]]:
    """What a stream yields without an interruption, and with one after ``taken`` items."""
    whole, broken, other = (dataset.stream(**options) for _ in range(3))
    for stream in (whole, broken):
        stream.set_epoch(3)
    first = list(islice(broken, taken))
    other.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    return [row["key"] for row in whole], [row["key"] for row in [*first, *other]]


class TestStreams:
    @pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (5, 0), (2, 2)])
    @pytest.mark.parametrize("options", [{}, {"shuffle": True}, {"batch_size": 4, "shuffle": True}])
    def test_ranks_and_workers_share_the_rows(self, on_disk, ranks, workers, options):
        dataset = open_latents(on_disk[0])
        found = []
        for rank in range(ranks):
            stream = dataset.stream(rank=rank, world_size=ranks, **options)
            found += keys(DataLoader(stream, batch_size=None, num_workers=workers))
        assert sorted(found) == keys(on_disk[1])

    def test_workers_that_were_forked_read_from_s3(self, in_bucket):
        """The parent has read the footers."""
        stream = open_latents(in_bucket[0]).stream(shuffle=True)
        assert sorted(keys(DataLoader(stream, batch_size=None, num_workers=2))) == keys(in_bucket[1])

    def test_batches_have_one_shape_and_the_values_of_their_rows(self, output):
        uri, written = output
        expected, sizes = {row["key"]: row for row in written}, Counter()
        for batch in open_latents(uri).stream(batch_size=4, shuffle=True):
            assert len(batch["key"]) == len(batch["samples"]) == len(batch["noise_mask"]) == len(batch["score"])
            sizes[len(batch["key"])] += 1
            for number, key in enumerate(batch["key"]):
                same({name: values[number] for name, values in batch.items()}, expected[key])
        assert sizes == {4: 6, 1: 1, 2: 2}  # of 10, 6 and 13 rows

    def test_small_batches_can_be_left_out(self, on_disk):
        batches = list(open_latents(on_disk[0]).stream(batch_size=4, drop_last=True))
        assert [len(batch["key"]) for batch in batches] == [4] * 6

    def test_epochs_and_seeds_are_other_orders(self, on_disk):
        dataset = open_latents(on_disk[0])
        orders = []
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
            stream = dataset.stream(shuffle=True, seed=seed)
            stream.set_epoch(epoch)
            orders.append(keys(stream))
            assert keys(stream) == orders[-1]
        assert len({tuple(order) for order in orders}) == 4
        assert {tuple(sorted(order)) for order in orders} == {tuple(keys(on_disk[1]))}

    def test_workers_that_stay_hear_of_the_next_epoch(self, on_disk):
        stream = open_latents(on_disk[0]).stream(shuffle=True)
        loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
        orders = []
        for epoch in range(2):
            stream.set_epoch(epoch)
            orders.append(keys(loader))
        assert sorted(orders[0]) == sorted(orders[1]) == keys(on_disk[1])
        assert orders[0] != orders[1]

    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_even_ranks_yield_as_many_full_batches(self, on_disk, workers):
        """29 rows for two ranks: 14 and 15, so three batches of four each."""
        for rank in range(2):
            stream = open_latents(on_disk[0]).stream(batch_size=4, shuffle=True, even=True, rank=rank, world_size=2)
            batches = list(DataLoader(stream, batch_size=None, num_workers=workers))
            assert [len(batch["key"]) for batch in batches] == [4] * 3
            assert len(stream) == 3

    def test_even_rows_are_dropped_to_the_smallest_rank(self, on_disk):
        streams = [open_latents(on_disk[0]).stream(even=True, rank=rank, world_size=3) for rank in range(3)]
        found = [keys(stream) for stream in streams]
        assert [len(rows) for rows in found] == [len(stream) for stream in streams] == [9] * 3
        assert len({*found[0], *found[1], *found[2]}) == 27

    def test_a_rank_that_is_short_of_like_rows_repeats_some(self, tmp_path):
        write_output(str(tmp_path), [[(4, 4), (4, 5), (5, 4), (5, 5)]])
        (batch,) = open_latents(str(tmp_path)).stream(batch_size=4, even=True)
        assert batch["key"] == ["00/000"] * 4

    def test_the_length_is_known_of_rows_and_where_ranks_are_even(self, on_disk):
        dataset = open_latents(on_disk[0])
        assert [len(dataset.stream(rank=rank, world_size=3)) for rank in range(3)] == [9, 10, 10]
        with pytest.raises(TypeError, match="even=True"):
            len(dataset.stream(batch_size=4))

    @pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"seed": -1}, {"prefetch": 0}])
    def test_numbers_out_of_range_are_refused_by_name(self, on_disk, wrong):
        with pytest.raises(UsageError, match=f"{[*wrong][-1]} is {[*wrong.values()][-1]}"):
            open_latents(on_disk[0]).stream(**wrong)

    def test_rank_and_world_size_come_from_the_environment(self, on_disk, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert keys(open_latents(on_disk[0]).stream()) == keys(on_disk[1])[14:]

    def test_a_stream_travels_to_other_processes(self, on_disk):
        stream = open_latents(on_disk[0]).stream(batch_size=4, shuffle=True, seed=3)
        stream.set_epoch(2)
        assert keys(pickle.loads(pickle.dumps(stream))) == keys(stream)

    def test_a_stream_that_is_left_ends_its_threads(self, on_disk):
        import threading

        stream = iter(open_latents(on_disk[0]).stream(shuffle=True))
        next(stream)
        assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
        stream.close()
        assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


class TestResuming:
    @pytest.mark.parametrize("taken", [0, 1, 10, 28, 29])
    @pytest.mark.parametrize("options", [{}, {"shuffle": True, "shuffle_groups": 3}, {"even": True, "world_size": 2}])
    def test_rows_go_on_where_they_ended(self, on_disk, taken, options):
        whole, broken = resumed(open_latents(on_disk[0]), taken, seed=5, **{"rank": 0, **options})
        assert broken == whole

    @pytest.mark.parametrize("taken", range(0, 13, 2))
    @pytest.mark.parametrize("more", [{}, {"even": True}, {"drop_last": True}])
    def test_batches_go_on_with_the_rows_that_waited(self, output, taken, more):
        options = {"batch_size": 3, "shuffle": True, "shuffle_groups": 2, **more}
        whole, broken = resumed(open_latents(output[0]), taken, **options)
        assert broken == whole

    def test_the_next_epoch_begins_anew(self, on_disk):
        stream = open_latents(on_disk[0]).stream(shuffle=True)
        list(islice(stream, 5))
        state = stream.state_dict()
        stream.load_state_dict(state)
        stream.set_epoch(1)
        assert len(list(stream)) == COUNT

    def test_a_state_that_was_loaded_is_told_until_the_next_item(self, on_disk):
        """A loader asks its workers before they yield, and a trainer may save before the first step."""
        first, second = (open_latents(on_disk[0]).stream(batch_size=3, shuffle=True) for _ in range(2))
        first.set_epoch(2)
        begun = iter(first)
        assert (first.state_dict()["epoch"], first.state_dict()["given"]) == (2, 0)
        next(begun)
        state = first.state_dict()
        second.load_state_dict(state)
        assert second.state_dict() == state
        rest = iter(second)
        assert second.state_dict() == state
        assert next(rest)["key"] == next(begun)["key"]

    def test_another_pass_tells_from_its_beginning_on(self, on_disk):
        stream = open_latents(on_disk[0]).stream()
        assert len(list(stream)) == COUNT
        assert stream.state_dict()["given"] == COUNT
        iter(stream)
        assert stream.state_dict()["given"] == 0

    def test_rows_that_waited_are_read_a_row_group_at_a_time(self, s3, requests):
        uri = s3.uri("reader", uuid4().hex)
        write_output(uri, [[(4, 4), (4, 5), (5, 4), (5, 5), (4, 4), (4, 5)]], group=5)
        stream, other = (open_latents(uri).stream(batch_size=2, drop_last=True) for _ in range(2))
        batches = iter(stream)
        assert next(batches)["key"] == ["00/000", "00/004"]
        other.load_state_dict(stream.state_dict())
        assert keys(batches) == ["00/001", "00/005"]
        requests.clear()
        assert keys(other) == ["00/001", "00/005"]
        assert len(requests) == 2  # the group that three rows waited in, and the one of the last row

    def test_a_state_of_other_row_groups_is_refused(self, tmp_path):
        """As many rows, but a refresh has put them into other row groups."""
        write_output(str(tmp_path), [[(4, 4)] * 12], group=3)
        stream = open_latents(str(tmp_path)).stream(shuffle=True)
        next(iter(stream))
        write_output(str(tmp_path), [[(4, 4)] * 12], group=4)
        other = open_latents(str(tmp_path)).stream(shuffle=True)
        other.load_state_dict(stream.state_dict())
        with pytest.raises(UsageError, match=r"another stream: \{'row_groups': '4 with 12 rows"):
            next(iter(other))

    def test_another_streams_state_is_refused(self, on_disk):
        dataset = open_latents(on_disk[0])
        stream = dataset.stream(batch_size=4)
        next(iter(stream))
        other = dataset.stream(batch_size=5)
        other.load_state_dict(stream.state_dict())
        with pytest.raises(UsageError, match=r"another stream: \{'batch_size': 4\} there, \{'batch_size': 5\} here"):
            next(iter(other))

    @pytest.mark.parametrize("taken", [3, 6])
    def test_workers_go_on_each_where_it_ended(self, on_disk, taken):
        """As torchdata's StatefulDataLoader does it: each worker's state comes with what it yields."""
        dataset = open_latents(on_disk[0])
        options = {"batch_size": 3, "shuffle": True, "shuffle_groups": 2}
        whole = DataLoader(WithState(dataset.stream(**options), {}), batch_size=None, num_workers=2)
        states, first = {}, []
        for _, worker, state, batch in islice(whole, taken):
            states[worker] = state
            first.append((worker, batch))
        rest = DataLoader(WithState(dataset.stream(**options), states), batch_size=None, num_workers=2)
        first += [(worker, batch) for _, worker, _, batch in rest]
        for worker in range(2):
            expected = [batch for _, number, _, batch in whole if number == worker]
            assert [batch for number, batch in first if number == worker] == expected


class WithState(IterableDataset):
    """A stream's batches, each with its worker and the worker's state after it."""

    def __init__(self, stream, states) -> None:
        self.stream, self.states = stream, states

    def __iter__(self):
        worker = get_worker_info().id
        if worker in self.states:
            self.stream.load_state_dict(self.states[worker])
        for batch in self.stream:
            yield "item", worker, self.stream.state_dict(), batch["key"]


class TestMapStyle:
    def test_a_list_of_rows_holds_few_row_groups_at_a_time(self, on_disk, monkeypatch):
        read, alive, most = Groups.read, WeakSet(), []

        def counted(groups, group):
            rows = read(groups, group)
            alive.add(rows)
            most.append(len(alive))
            return rows

        monkeypatch.setattr(Groups, "read", counted)
        assert keys(open_latents(on_disk[0]).__getitems__(range(COUNT))) == keys(on_disk[1])
        assert len(most) == 11
        assert max(most) <= 4

    def test_a_loader_takes_the_dataset_itself(self, tmp_path):
        written = write_output(str(tmp_path), [[(4, 4)] * 20] * 2)
        loader = DataLoader(open_latents(str(tmp_path)), 8, shuffle=True, num_workers=2, collate_fn=collate)
        batches = list(loader)
        assert sorted(keys(batches)) == keys(written)
        assert batches[0]["samples"].shape == (8, 4, 4, 4)

    def test_rows_of_other_shapes_are_no_batch(self, on_disk):
        with pytest.raises(ValueError, match="same shape"):
            collate(open_latents(on_disk[0]).__getitems__([0, 1]))

    def test_types_that_numpy_does_not_know_are_stacked(self):
        rows = [{"x": torch.full((2,), number, dtype=torch.bfloat16), "y": None} for number in range(3)]
        batch = collate(rows)
        assert batch["x"].dtype == torch.bfloat16
        assert batch["x"].tolist() == [[0, 0], [1, 1], [2, 2]]
        assert batch["y"] == [None] * 3


class TestDamage:
    def test_a_file_that_is_replaced_is_not_read_by_its_old_footer(self, output, s3, tmp_path, request):
        uri = str(tmp_path) if output[0].startswith("/") else s3.uri("reader", uuid4().hex)
        write_output(uri, [[(4, 4)] * 3])
        dataset = open_latents(uri)
        assert len(dataset) == 3
        write_output(uri, [[(4, 5)] * 4])
        with pytest.raises(Changed, match=r"00000000\.parquet has changed"):
            dataset[1]
        with pytest.raises(Changed, match=r"00000000\.parquet has changed"):
            list(dataset.stream(batch_size=2))

    def test_a_file_that_is_gone_is_named(self, output, s3, tmp_path):
        uri = str(tmp_path) if output[0].startswith("/") else s3.uri("reader", uuid4().hex)
        write_output(uri, [[(4, 4)] * 3])
        dataset = open_latents(uri)
        assert len(dataset) == 3
        storage.delete(f"{uri}/0a1b2c3d-00000000.parquet")
        with pytest.raises(FileNotFoundError, match=r"00000000\.parquet"):
            dataset[1]

    def test_a_damaged_file_is_named(self, tmp_path):
        write_output(str(tmp_path), [[(4, 4)] * 3])
        (path,) = tmp_path.glob("*.parquet")
        data = bytearray(path.read_bytes())
        data[40:400] = bytes(360)
        path.write_bytes(data)
        with pytest.raises(JobFailed, match=r"00000000\.parquet is not whole"):
            list(open_latents(str(tmp_path)))
        with pytest.raises(JobFailed, match=r"00000000\.parquet is not whole"):
            list(iter_rows(str(tmp_path)))

    def test_a_file_of_someone_else_is_named(self, tmp_path):
        write_output(str(tmp_path), [[(4, 4)] * 3])
        pq.write_table(pa.table({"x": [1]}), tmp_path / "mine.parquet")
        with pytest.raises(UsageError, match=r"mine\.parquet has no column key"):
            len(open_latents(str(tmp_path)))


ROOT = Path(__file__).parents[3]


def run_python(code: str, *arguments: object) -> str:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_reader_works_where_ray_cannot_be_imported(on_disk):
    code = """
import sys
class NoRay:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "ray":
            raise ImportError("there is no Ray here")
sys.meta_path.insert(0, NoRay())
from inpaint_encode import iter_rows, open_latents
ds = open_latents(sys.argv[1])
print(len(ds), len(list(ds)), len(list(iter_rows(sys.argv[1]))), ds["00/003"]["samples"].shape[0])
print(sum(len(batch["key"]) for batch in ds.stream(batch_size=4, shuffle=True)))
try:
    ds.to_ray()
except ImportError as error:
    print(error)
"""
    assert run_python(code, on_disk[0]) == f"{COUNT} {COUNT} {COUNT} 4\n{COUNT}\nthere is no Ray here\n"


def test_rows_as_arrays_need_no_torch(on_disk):
    code = (
        "import sys; from inpaint_encode import iter_rows; from inpaint_encode.reader import Output\n"
        "print(len(list(iter_rows(sys.argv[1]))), len(Output.open(sys.argv[1]).files), "
        "{'torch', 'ray'} & set(sys.modules))"
    )
    assert run_python(code, on_disk[0]) == f"{COUNT} {len(FILES)} set()\n"
