"""Who reads which rows, and when: for any row groups, ranks and workers every row comes exactly once."""

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inpaint_encode.reader import order

SIZES = st.lists(st.integers(0, 9), max_size=12).map(lambda sizes: np.array(sizes, np.int64))
SHUFFLES = st.none() | st.builds(order.Shuffle, st.integers(0, 99), st.integers(0, 9), st.integers(1, 5))


def rows_of(windows) -> list[tuple[int, int]]:
    """Row group and row, in the order of the stream."""
    return [(window.pieces[piece].group, row) for window in windows for piece, row in window.places()]


def everything(sizes) -> list[tuple[int, int]]:
    return [(group, row) for group, size in enumerate(sizes.tolist()) for row in range(size)]


@given(SIZES, SHUFFLES, st.integers(1, 5), st.integers(1, 4))
def test_all_ranks_and_workers_together_read_every_row_once(sizes, shuffle, ranks, workers):
    found, lengths = [], []
    for rank in range(ranks):
        of_rank = order.part(range(int(sizes.sum())), rank, ranks)
        lengths.append(len(of_rank))
        for worker in range(workers):
            found += rows_of(order.windows(sizes, order.part(of_rank, worker, workers), shuffle))
    assert sorted(found) == everything(sizes)
    assert max(lengths) - min(lengths) <= 1


@given(SIZES)
def test_without_a_shuffle_one_worker_reads_in_the_order_of_the_files(sizes):
    windows = list(order.windows(sizes, range(int(sizes.sum())), None))
    assert rows_of(windows) == everything(sizes)
    assert [len(window.pieces) for window in windows] == [1] * np.count_nonzero(sizes)


@given(SIZES, SHUFFLES, st.data())
def test_a_stream_goes_on_from_any_row(sizes, shuffle, data):
    total = int(sizes.sum())
    mine = order.part(range(total), data.draw(st.integers(0, 2)), 3)
    whole = rows_of(order.windows(sizes, mine, shuffle))
    taken = data.draw(st.integers(0, len(whole) + 3))
    rest = [
        row
        for window, skipped in order.from_position(order.windows(sizes, mine, shuffle), taken)
        for row in islice(rows_of([window]), skipped, None)
    ]
    assert rest == whole[taken:]
    wanted = data.draw(st.lists(st.sampled_from(range(len(whole))), unique=True)) if whole else []
    found = order.places(order.windows(sizes, mine, shuffle), wanted)
    assert found == {position: whole[position] for position in wanted}


@given(st.integers(0, 50), st.integers(0, 30), st.integers(1, 6))
def test_quotas_add_up_and_go_to_those_who_have_rows(rows, batches, workers):
    of_rank = range(100, 100 + rows)
    parts = [order.part(of_rank, worker, workers) for worker in range(workers)]
    quotas = [order.quota(batches, of_rank, mine) for mine in parts]
    assert sum(quotas) == (batches if rows else 0)
    assert all(len(mine) for mine, quota in zip(parts, quotas, strict=True) if quota)


SIXTY = np.full(60, 8, np.int64)


def shuffled(epoch: int, seed: int = 0, groups: int = 10) -> list[tuple[int, int]]:
    return rows_of(order.windows(SIXTY, range(480), order.Shuffle(seed, epoch, groups)))


def test_seed_and_epoch_decide_on_the_order():
    orders = [shuffled(epoch, seed) for seed in range(3) for epoch in range(3)]
    assert shuffled(2, 1) == orders[5]
    assert len({tuple(one) for one in orders}) == 9
    assert all(sorted(one) == everything(SIXTY) for one in orders)


def test_rows_are_not_mixed_by_the_numbers_that_mixed_their_groups():
    """Seeds are filled up with zeros: that of the epoch alone is that of its row 0, too."""
    (window,) = order.windows(np.ones(12, np.int64), range(12), order.Shuffle(7, 3, 12))
    assert window.order.tolist() != [piece.group for piece in window.pieces]


def test_a_window_mixes_the_rows_of_its_groups_and_of_no_others():
    rows = shuffled(0)
    windows = [rows[start : start + 80] for start in range(0, 480, 80)]
    assert all(len({group for group, _ in window}) == 10 for window in windows)
    assert len({group for group, _ in windows[0][:10]}) > 4


def test_any_group_may_come_first_and_any_row_of_a_window():
    """Of 2,000 orders each of the 60 groups leads a window's rows 33 times, give or take."""
    firsts = np.bincount([shuffled(epoch)[0][0] for epoch in range(2_000)], minlength=60)
    assert firsts.min() > 10
    assert firsts.max() < 70


def test_an_order_is_the_same_on_every_machine():
    assert order.permutation(12, 7, 3).tolist() == [7, 1, 9, 6, 0, 11, 10, 4, 2, 8, 3, 5]


def test_an_endless_stream_repeats_its_order():
    once = list(islice(order.passes(lambda: order.windows(SIXTY, range(480), None), endless=True), 150))
    assert rows_of(once) == (everything(SIXTY) * 3)[: 150 * 8]


@pytest.mark.parametrize("row", [0, 7, -1])
def test_numpy_numbers_are_plain_ones(row):
    places = rows_of(order.windows(SIXTY, range(480), order.Shuffle(0, 0, 4)))
    assert {type(number) for number in places[row]} == {int}
