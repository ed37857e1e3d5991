"""Retries behind a faulty network."""

import os
import threading
import time

import pytest

from inpaint_encode.stores import retries, storage
from inpaint_encode.stores import s3 as s3_store
from inpaint_encode.stores.storage import ABSENT, Unavailable
from tests.buckets import LONGEST_WAIT, bucket_prefix, fill, first_put, in_threads, listed, timed, verbs
from tests.proxy import KINDS


class TestFaults:
    short_time_outs = True

    def test_every_request_succeeds_if_a_fifth_of_them_fail(self, proxy, s3):
        prefix, before = bucket_prefix(s3), storage.retry_count()
        proxy.share = 0.2

        def work(number: int) -> int:
            uri, data = f"{prefix}/{number}/x", os.urandom(5000)
            version = storage.write(uri, data)
            assert storage.read(uri) == (data, version)
            assert listed(f"{prefix}/{number}") == {"x": (5000, version)}
            return number

        assert in_threads(work, 102) == list(range(102))
        assert proxy.counts["requests"] > 300
        assert all(proxy.counts[kind] > 3 for kind in KINDS), proxy.counts
        assert storage.retry_count() - before > 30

    def test_a_listing_continues_after_a_fault(self, proxy, s3):
        prefix, names = bucket_prefix(s3), [f"{number:05d} #%+ü.png" for number in range(1100)]
        fill(prefix, names)
        pages = storage.list_objects(prefix)
        first = next(pages).paths
        proxy.share, proxy.kinds, before = 1.0, ("cut", "slow_down"), storage.retry_count()
        threading.Timer(0.3, setattr, (proxy, "share", 0.0)).start()
        rest = [path for page in pages for path in page.paths]
        assert len(first) < 1100 and storage.retry_count() > before
        assert sorted(first + rest) == names

    def test_every_function_ends_after_its_budget_if_all_requests_fail(self, proxy, s3, monkeypatch):
        monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.5)
        proxy.share, proxy.stall_s = 1.0, 30.0
        calls = list(verbs(f"{bucket_prefix(s3)}/x").values())
        outcomes = in_threads(lambda number: timed(calls[number]), len(calls))
        assert {kind for _, kind in outcomes} == {Unavailable}
        time_out = 2 * s3_store.ANSWER_S  # s3fs may send twice
        assert all(0.5 < seconds < 0.5 + LONGEST_WAIT + time_out for seconds, _ in outcomes), outcomes

    @pytest.mark.parametrize("kind", ["internal_error", "busy"])
    def test_a_conditional_write_is_retried(self, proxy, s3, kind):
        proxy.kinds, proxy.share, proxy.only = (kind,), 1.0, first_put()
        uri = f"{bucket_prefix(s3)}/x"
        version = storage.write(uri, b"1", expect=ABSENT)
        assert storage.read(uri) == (b"1", version)
        assert proxy.counts[kind] == 1

    def test_a_stalled_body_times_out_and_a_slow_one_does_not(self, proxy, s3, quick_budget):
        uri, data = f"{bucket_prefix(s3)}/x", os.urandom(1_000_000)
        storage.write(uri, data)
        proxy.share, proxy.kinds, proxy.stall_s = 1.0, ("slow",), 0.9
        assert storage.read(uri).data == data
        proxy.kinds, proxy.stall_s = ("hang",), 30.0
        start = time.monotonic()
        with pytest.raises(Unavailable):
            storage.read(uri)
        assert 0.4 <= time.monotonic() - start < 2.5
