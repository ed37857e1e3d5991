"""Which rows are read by which worker, and in which order: every row is read exactly once per epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint_encode.reader import sampler

SIZES = st.lists(st.integers(0, 9), max_size=12).map(lambda sizes: np.array(sizes, np.int64))
SHUFFLES = st.none() | st.builds(sampler.Shuffle, st.integers(0, 99), st.integers(0, 9), st.integers(1, 5))


def rows_of(windows) -> list[tuple[int, int]]:
    """Row groups and row numbers, in order."""
    return [(window.slices[number].group, row) for window in windows for number, row in window.rows()]


def all_rows(sizes) -> list[tuple[int, int]]:
    return [(group, row) for group, size in enumerate(sizes.tolist()) for row in range(size)]


@given(SIZES, SHUFFLES, st.integers(1, 5), st.integers(1, 4))
def test_all_ranks_and_workers_together_read_every_row_once(sizes, shuffle, ranks, workers):
    found, lengths = [], []
    for rank in range(ranks):
        rank_rows = sampler.shard(range(int(sizes.sum())), rank, ranks)
        lengths.append(len(rank_rows))
        for worker in range(workers):
            found += rows_of(sampler.windows(sizes, sampler.shard(rank_rows, worker, workers), shuffle))
    assert sorted(found) == all_rows(sizes)
    assert max(lengths) - min(lengths) <= 1


@given(SIZES)
def test_without_shuffle_rows_are_in_file_order(sizes):
    windows = list(sampler.windows(sizes, range(int(sizes.sum())), None))
    assert rows_of(windows) == all_rows(sizes)
    assert [len(window.slices) for window in windows] == [1] * np.count_nonzero(sizes)


@given(SIZES, SHUFFLES, st.data())
def test_rows_after_any_position(sizes, shuffle, data):
    total = int(sizes.sum())
    mine = sampler.shard(range(total), data.draw(st.integers(0, 2)), 3)
    whole = rows_of(sampler.windows(sizes, mine, shuffle))
    taken = data.draw(st.integers(0, len(whole) + 3))
    assert rows_of(sampler.skip_rows(sampler.windows(sizes, mine, shuffle), taken)) == whole[taken:]
    wanted = data.draw(st.lists(st.sampled_from(range(len(whole))), unique=True)) if whole else []
    found = sampler.locate(sampler.windows(sizes, mine, shuffle), wanted)
    assert found == {position: whole[position] for position in wanted}


@given(st.integers(0, 50), st.integers(0, 30), st.integers(1, 6))
def test_quotas_add_up_and_only_shards_with_rows_have_one(rows, batches, workers):
    rank_rows = range(100, 100 + rows)
    parts = [sampler.shard(rank_rows, worker, workers) for worker in range(workers)]
    quotas = [sampler.shard_quota(batches, rank_rows, mine) for mine in parts]
    assert sum(quotas) == (batches if rows else 0)
    assert all(len(mine) for mine, quota in zip(parts, quotas, strict=True) if quota)


SIXTY = np.full(60, 8, np.int64)


def shuffled(epoch: int, seed: int = 0, groups: int = 10) -> list[tuple[int, int]]:
    return rows_of(sampler.windows(SIXTY, range(480), sampler.Shuffle(seed, epoch, groups)))


def test_the_order_depends_on_seed_and_epoch():
    orders = [shuffled(epoch, seed) for seed in range(3) for epoch in range(3)]
    assert shuffled(2, 1) == orders[5]
    assert len({tuple(one) for one in orders}) == 9
    assert all(sorted(one) == all_rows(SIXTY) for one in orders)


def test_rows_and_row_groups_have_different_permutations():
    """Seed sequences are padded with zeros, so the window at row 0 needs another seed than the row groups."""
    (window,) = sampler.windows(np.ones(12, np.int64), range(12), sampler.Shuffle(7, 3, 12))
    assert window.order.tolist() != [one.group for one in window.slices]


def test_a_window_mixes_only_the_rows_of_its_row_groups():
    rows = shuffled(0)
    windows = [rows[start : start + 80] for start in range(0, 480, 80)]
    assert all(len({group for group, _ in window}) == 10 for window in windows)
    assert len({group for group, _ in windows[0][:10]}) > 4


def test_any_row_group_can_be_first():
    """In 2,000 epochs, each of 60 row groups has the first row about 33 times."""
    firsts = np.bincount([shuffled(epoch)[0][0] for epoch in range(2_000)], minlength=60)
    assert firsts.min() > 10
    assert firsts.max() < 70


def test_a_permutation_is_the_same_on_every_machine():
    assert sampler.permutation(12, 7, 3).tolist() == [7, 1, 9, 6, 0, 11, 10, 4, 2, 8, 3, 5]


@pytest.mark.parametrize("block", [1, 7, 1_000])
@pytest.mark.parametrize("epoch", [0, 3])
def test_blocks_do_not_change_the_order_of_row_groups(monkeypatch, block, epoch):
    monkeypatch.setattr(sampler, "BLOCK_GROUPS", block)
    sizes = np.random.default_rng(epoch).integers(0, 3, 500)
    expected = [group for group in sampler.permutation(500, 5, epoch).tolist() if sizes[group]]
    total = int(sizes.sum())
    windows = list(sampler.windows(sizes, range(total), sampler.Shuffle(5, epoch, 500)))
    assert [one.group for window in windows for one in window.slices] == expected
    in_order = sampler.windows(sizes, range(total), None)
    assert [one.group for window in in_order for one in window.slices] == np.flatnonzero(sizes).tolist()


@pytest.mark.parametrize("row", [0, 7, -1])
def test_row_numbers_are_python_integers(row):
    places = rows_of(sampler.windows(SIXTY, range(480), sampler.Shuffle(0, 0, 4)))
    assert {type(number) for number in places[row]} == {int}
