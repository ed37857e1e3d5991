"""S3's credentials, time-outs, and writes whose answers are lost."""

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from inpaint_encode.stores import retries, storage
from inpaint_encode.stores import s3 as s3_store
from inpaint_encode.stores.storage import ABSENT, Conflict, Unavailable
from tests.buckets import LONGEST_WAIT, bucket_prefix, first_put, in_threads, listed, point_clients_at, timed, verbs


@pytest.mark.parametrize("changed", [{"AWS_SECRET_ACCESS_KEY": "wrong"}, {"AWS_ACCESS_KEY_ID": "nobody"}])
def test_wrong_credentials_are_denied_without_retries(s3, monkeypatch, changed):
    point_clients_at(changed, monkeypatch)
    before = storage.retry_count()
    for call in verbs(s3.uri("x")).values():
        with pytest.raises(PermissionError, match="store answered 403"):
            call()
    s3_store.forget_clients()
    assert storage.retry_count() == before


def test_a_closed_port_is_unavailable_after_the_budget(s3, monkeypatch):
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    point_clients_at({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}, monkeypatch)
    calls = list(verbs(s3.uri("x")).values())
    outcomes = in_threads(lambda number: timed(calls[number]), len(calls))
    s3_store.forget_clients()
    assert {kind for _, kind in outcomes} == {Unavailable}
    assert all(0.5 < seconds < 0.5 + LONGEST_WAIT for seconds, _ in outcomes), outcomes


def test_a_write_times_out_if_the_server_stops_reading(s3, monkeypatch, quick_budget):
    monkeypatch.setattr(s3_store, "_CALL_S", 0.5)
    monkeypatch.setattr(s3_store, "_MIN_UPLOAD_RATE", 2**26)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        point_clients_at({"AWS_ENDPOINT_URL": f"http://127.0.0.1:{deaf.getsockname()[1]}"}, monkeypatch)
        with pytest.raises(Unavailable, match="no answer in time"):
            storage.write(s3.uri("x"), bytes(2**25))
    s3_store.forget_clients()


class TestLostAnswers:
    def test_a_create_whose_answer_is_lost_has_created_the_object(self, proxy, s3):
        proxy.kinds, proxy.share, proxy.only = ("lost",), 1.0, first_put()
        uri = f"{bucket_prefix(s3)}/x"
        with contextlib.suppress(Conflict):
            storage.write(uri, b"ours", expect=ABSENT)
        assert proxy.counts["lost"] == 1
        assert storage.read(uri).data == b"ours"
        with pytest.raises(Conflict):
            storage.write(uri, b"other", expect=ABSENT)

    @pytest.mark.parametrize("exists", [False, True])
    def test_write_once_recognizes_its_own_write(self, proxy, s3, exists):
        uri = f"{bucket_prefix(s3)}/x"
        expect = storage.write(uri, b"before") if exists else ABSENT
        proxy.kinds, proxy.share, proxy.only = ("lost",), 1.0, first_put()
        version = storage.write_once(uri, b"ours", expect=expect)
        assert proxy.counts["lost"] == 1
        assert storage.read(uri) == (b"ours", version)

    def test_at_most_one_of_6_creates_succeeds_if_answers_are_lost(self, proxy, s3):
        uri = f"{bucket_prefix(s3)}/x"
        proxy.kinds, proxy.share, proxy.only = ("lost",), 0.5, lambda method, path: method == "PUT"
        seen = set()

        def create(number: int) -> str | None:
            try:
                return storage.write(uri, b"by %02d" % number, expect=ABSENT)
            except Conflict:
                return None
            finally:
                seen.add(storage.read(uri))

        outcomes = in_threads(create, 6)
        assert proxy.counts["lost"] > 1
        assert len(seen) == 1
        winners = [(b"by %02d" % number, outcome) for number, outcome in enumerate(outcomes) if outcome]
        assert winners in ([], list(seen)), outcomes

    def test_readers_never_see_a_part_of_an_interrupted_write(self, proxy, s3, quick_budget):
        uri = f"{bucket_prefix(s3)}/x"
        versions = [bytes([number]) * 300_000 for number in range(8)]
        storage.write(uri, versions[0])
        proxy.kinds, proxy.share, proxy.only = ("cut",), 0.7, lambda method, path: method == "PUT"
        with ThreadPoolExecutor() as pool:
            writing = pool.submit(lambda: [try_to_write(uri, data) for data in versions])
            while not writing.done():
                assert storage.read(uri).data in versions
        assert proxy.counts["cut"] > 2
        assert {size for size, _ in listed(uri.rpartition("/")[0]).values()} == {300_000}

    def test_a_404_to_a_conditional_write_is_a_conflict(self, proxy, s3):
        proxy.kinds, proxy.share = ("gone",), 1.0
        with pytest.raises(Conflict):
            storage.write(s3.uri("x"), b"1", expect='"some-version"')


def try_to_write(uri: str, data: bytes) -> None:
    with contextlib.suppress(Unavailable):
        storage.write(uri, data)
