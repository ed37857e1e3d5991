"""Streams: sharded over ranks and workers, in batches, shuffled, and resumed."""

import json
import pickle
import threading
from collections import Counter
from itertools import islice
from uuid import uuid4

import pytest
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from inpaint_encode import open_latents
from inpaint_encode.errors import UsageError
from tests.outputs import write_output

from .conftest import COUNT, FILES, check_row, keys


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

    def test_forked_workers_read_from_s3(self, in_bucket):
        """The parent process has used the S3 client: it read the footers."""
        stream = open_latents(in_bucket[0]).stream(shuffle=True)
        assert sorted(keys(DataLoader(stream, batch_size=None, num_workers=2))) == keys(in_bucket[1])

    def test_batches_have_the_values_of_rows_of_one_shape(self, output):
        uri, written = output
        expected, sizes = {row["key"]: row for row in written}, Counter()
        for batch in open_latents(uri).stream(batch_size=4, shuffle=True):
            assert len(batch["key"]) == len(batch["samples"]) == len(batch["noise_mask"]) == len(batch["score"])
            sizes[len(batch["key"])] += 1
            for number, key in enumerate(batch["key"]):
                check_row({name: values[number] for name, values in batch.items()}, expected[key])
        assert sizes == {4: 6, 1: 1, 2: 2}  # of 10, 6 and 13 rows

    def test_drop_last_leaves_out_incomplete_batches(self, on_disk):
        batches = list(open_latents(on_disk[0]).stream(batch_size=4, drop_last=True))
        assert [len(batch["key"]) for batch in batches] == [4] * 6

    def test_each_epoch_and_seed_has_its_own_order(self, on_disk):
        dataset = open_latents(on_disk[0])
        orders = []
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1)):
            stream = dataset.stream(shuffle=True, seed=seed)
            stream.set_epoch(epoch)
            orders.append(keys(stream))
            assert keys(stream) == orders[-1]
        assert len({tuple(order) for order in orders}) == 4
        assert {tuple(sorted(order)) for order in orders} == {tuple(keys(on_disk[1]))}

    def test_persistent_workers_see_the_next_epoch(self, on_disk):
        stream = open_latents(on_disk[0]).stream(shuffle=True)
        loader = DataLoader(stream, batch_size=None, num_workers=2, persistent_workers=True)
        orders = []
        for epoch in range(2):
            stream.set_epoch(epoch)
            orders.append(keys(loader))
        assert sorted(orders[0]) == sorted(orders[1]) == keys(on_disk[1])
        assert orders[0] != orders[1]

    @pytest.mark.parametrize("workers", [0, 1, 2])
    def test_even_gives_each_rank_the_same_number_of_full_batches(self, on_disk, workers):
        """29 rows for two ranks: 14 and 15, so three batches of four each."""
        for rank in range(2):
            stream = open_latents(on_disk[0]).stream(batch_size=4, shuffle=True, even=True, rank=rank, world_size=2)
            batches = list(DataLoader(stream, batch_size=None, num_workers=workers))
            assert [len(batch["key"]) for batch in batches] == [4] * 3
            assert len(stream) == 3

    def test_even_drops_rows_to_the_smallest_rank(self, on_disk):
        streams = [open_latents(on_disk[0]).stream(even=True, rank=rank, world_size=3) for rank in range(3)]
        found = [keys(stream) for stream in streams]
        assert [len(rows) for rows in found] == [len(stream) for stream in streams] == [9] * 3
        assert len({*found[0], *found[1], *found[2]}) == 27

    def test_even_repeats_rows_if_no_shape_fills_a_batch(self, tmp_path):
        write_output(str(tmp_path), [[(4, 4), (4, 5), (5, 4), (5, 5)]])
        (batch,) = open_latents(str(tmp_path)).stream(batch_size=4, even=True)
        assert batch["key"] == ["00/000"] * 4

    def test_the_length_of_rows_and_of_even_batches(self, on_disk):
        dataset = open_latents(on_disk[0])
        assert [len(dataset.stream(rank=rank, world_size=3)) for rank in range(3)] == [9, 10, 10]
        with pytest.raises(TypeError, match="even=True"):
            len(dataset.stream(batch_size=4))

    @pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2, "world_size": 2}, {"seed": -1}, {"prefetch": 0}])
    def test_numbers_out_of_range_are_errors(self, on_disk, wrong):
        with pytest.raises(UsageError, match=f"{[*wrong][-1]} is {[*wrong.values()][-1]}"):
            open_latents(on_disk[0]).stream(**wrong)

    def test_rank_and_world_size_come_from_the_environment(self, on_disk, monkeypatch):
        monkeypatch.setenv("RANK", "1")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert keys(open_latents(on_disk[0]).stream()) == keys(on_disk[1])[14:]

    def test_a_new_stream_reads_the_footers_once_and_not_in_its_workers(self, s3, requests):
        uri = s3.uri("reader", uuid4().hex)
        write_output(uri, FILES)
        open_latents(uri).stream()
        assert len(requests) == len(FILES)

    def test_a_stream_can_be_pickled(self, on_disk):
        stream = open_latents(on_disk[0]).stream(batch_size=4, shuffle=True, seed=3)
        stream.set_epoch(2)
        assert keys(pickle.loads(pickle.dumps(stream))) == keys(stream)

    def test_closing_a_stream_ends_its_threads(self, on_disk):
        stream = iter(open_latents(on_disk[0]).stream(shuffle=True))
        next(stream)
        assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
        stream.close()
        assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def resumed(dataset, taken: int, **options) -> tuple[list[str], list[str]]:
    """Return the keys of a stream, and those of a stream that is interrupted after ``taken`` items and resumed."""
    whole, broken, other = (dataset.stream(**options) for _ in range(3))
    for stream in (whole, broken):
        stream.set_epoch(3)
    first = list(islice(broken, taken))
    other.load_state_dict(json.loads(json.dumps(broken.state_dict())))
    return [row["key"] for row in whole], [row["key"] for row in [*first, *other]]


class TestResuming:
    @pytest.mark.parametrize("taken", [0, 1, 10, 28, 29])
    @pytest.mark.parametrize("options", [{}, {"shuffle": True, "shuffle_groups": 3}, {"even": True, "world_size": 2}])
    def test_rows_continue(self, on_disk, taken, options):
        whole, broken = resumed(open_latents(on_disk[0]), taken, seed=5, **{"rank": 0, **options})
        assert broken == whole

    @pytest.mark.parametrize("taken", range(0, 13, 2))
    @pytest.mark.parametrize("more", [{}, {"even": True}, {"drop_last": True}])
    def test_batches_continue_with_the_rows_in_the_buckets(self, output, taken, more):
        options = {"batch_size": 3, "shuffle": True, "shuffle_groups": 2, **more}
        whole, broken = resumed(open_latents(output[0]), taken, **options)
        assert broken == whole

    def test_the_next_epoch_starts_at_its_beginning(self, on_disk):
        stream = open_latents(on_disk[0]).stream(shuffle=True)
        list(islice(stream, 5))
        state = stream.state_dict()
        stream.load_state_dict(state)
        stream.set_epoch(1)
        assert len(list(stream)) == COUNT

    def test_a_loaded_state_is_returned_until_the_next_item(self, on_disk):
        """StatefulDataLoader reads the state before the first item, and a trainer may save before its first step."""
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

    def test_a_new_iteration_starts_at_zero(self, on_disk):
        stream = open_latents(on_disk[0]).stream()
        assert len(list(stream)) == COUNT
        assert stream.state_dict()["given"] == COUNT
        iter(stream)
        assert stream.state_dict()["given"] == 0

    def test_resuming_reads_each_row_group_of_the_buckets_once(self, s3, requests):
        uri = s3.uri("reader", uuid4().hex)
        write_output(uri, [[(4, 4), (4, 5), (5, 4), (5, 5), (4, 4), (4, 5)]], group=5)
        stream, other = (open_latents(uri).stream(batch_size=2, drop_last=True) for _ in range(2))
        batches = iter(stream)
        assert next(batches)["key"] == ["00/000", "00/004"]
        other.load_state_dict(stream.state_dict())
        assert keys(batches) == ["00/001", "00/005"]
        requests.clear()
        assert keys(other) == ["00/001", "00/005"]
        assert len(requests) == 2  # the row group of the three rows in the buckets, and that of the last row

    def test_a_state_for_other_row_groups_is_an_error(self, tmp_path):
        """The number of rows is the same, but a refresh changed the row groups."""
        write_output(str(tmp_path), [[(4, 4)] * 12], group=3)
        stream = open_latents(str(tmp_path)).stream(shuffle=True)
        next(iter(stream))
        write_output(str(tmp_path), [[(4, 4)] * 12], group=4)
        other = open_latents(str(tmp_path)).stream(shuffle=True)
        other.load_state_dict(stream.state_dict())
        with pytest.raises(UsageError, match=r"another stream: it has \{'row_groups': '4 with 12 rows"):
            next(iter(other))

    def test_a_state_of_another_stream_is_an_error(self, on_disk):
        dataset = open_latents(on_disk[0])
        stream = dataset.stream(batch_size=4)
        next(iter(stream))
        other = dataset.stream(batch_size=5)
        other.load_state_dict(stream.state_dict())
        with pytest.raises(UsageError, match=r"it has \{'batch_size': 4\}, this stream has \{'batch_size': 5\}"):
            next(iter(other))

    @pytest.mark.parametrize("taken", [3, 6])
    def test_each_worker_continues(self, on_disk, taken):
        """As in torchdata's StatefulDataLoader: each item comes with its worker's state."""
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
    """Yields each batch of a stream with its worker and the worker's state after it."""

    def __init__(self, stream, states) -> None:
        self.stream, self.states = stream, states

    def __iter__(self):
        worker = get_worker_info().id
        if worker in self.states:
            self.stream.load_state_dict(self.states[worker])
        for batch in self.stream:
            yield "item", worker, self.stream.state_dict(), batch["key"]
