"""Calls in a pool of threads: results in order, and an iterator that is not used to its end."""

import threading

import pytest

from inpaint_encode.stores.pool import map_concurrently


def test_results_are_in_order_and_only_some_wait():
    begun = []
    results = map_concurrently(lambda number: begun.append(number) or 2 * number, range(20), threads=4, ahead=4)
    assert next(results) == 0
    assert len(begun) <= 4
    assert list(results) == [2 * number for number in range(1, 20)]


def test_an_error_is_raised_when_its_result_is_due():
    results = map_concurrently(lambda number: 1 // number, [1, 0, 1])
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_an_iterator_that_is_dropped_waits_for_no_call():
    """The garbage collector may drop it in any thread, also in one that the calls wait for."""
    released, begun = threading.Event(), threading.Event()

    def call(number):
        if number:
            begun.set()
            assert released.wait(60)
        return number

    results = map_concurrently(call, [0, 1, 2], threads=2, ahead=2)
    assert next(results) == 0
    assert begun.wait(60)
    results.close()
    assert not released.is_set()
    released.set()
