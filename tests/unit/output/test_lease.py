"""Leases on an S3 server and on a disk: crashes, faults of the store, and races."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from uuid import uuid4

import pytest

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.output import lease as leases
from inpaint_encode.output.lease import acquire_lease, check_lease_token
from inpaint_encode.stores import retries, storage
from tests.proxy import FaultyProxy

LEASE_S, RENEW_S = leases.LEASE_S, leases.RENEW_S

HOLDER = """
import sys, time
from inpaint_encode.output import lease
lease.RENEW_S = 0.2
with lease.acquire_lease(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(leases, "LEASE_S", 1.0)
    monkeypatch.setattr(leases, "RENEW_S", 0.2)


@pytest.fixture
def on_s3(s3) -> str:
    return s3.uri("lease", uuid4().hex, "_lease.json")


@pytest.fixture(params=["s3", "disk"])
def uri(request, tmp_path) -> str:
    return request.getfixturevalue("on_s3") if request.param == "s3" else f"{tmp_path}/out/_lease.json"


@pytest.fixture
def proxy(proxy, monkeypatch) -> FaultyProxy:
    """Return the faulty proxy; there are almost no retries."""
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    return proxy


def silent(line: str) -> None:
    pass


def put_lease(uri: str, **changes: object) -> str:
    """Write a lease that no process renews; return its token."""
    holder = dataclasses.replace(leases._this_process(), **changes)
    storage.write(uri, holder.encode(0))
    return holder.token


def renewals(uri: str) -> int:
    return leases._read(uri)[0].renewals


@contextmanager
def holder_process(uri: str) -> Iterator[subprocess.Popen]:
    """Start another process on this machine that holds the lease."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, uri], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_a_lease_outlives_the_retries_of_its_renewal():
    """Else a store's outage, which the holder survives, lets another run take the lease."""
    assert LEASE_S > RENEW_S + retries.RETRY_BUDGET_S


def test_the_object_exists_only_while_the_lease_is_held(uri):
    with acquire_lease(uri, silent) as lease:
        check_lease_token(uri, lease.token)
        wait_for(lambda: renewals(uri) >= 2)
        check_lease_token(uri, lease.token)
        assert not lease.lost.is_set()
    with pytest.raises(FileNotFoundError):
        storage.read(uri)
    with acquire_lease(uri, silent) as again:
        assert again.token != lease.token


def test_a_second_run_is_refused_while_the_first_renews(uri, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_S", 60.0)
    lines = []
    with holder_process(uri) as process:
        before = time.monotonic()
        with pytest.raises(UsageError, match=f"process {process.pid} on .* is writing to this output"):
            acquire_lease(uri, lines.append)
        assert time.monotonic() - before < leases.LEASE_S
        assert len(lines) == 1 and f"process {process.pid}" in lines[0]


def test_the_lease_of_a_killed_process_on_this_machine_is_taken_at_once(uri, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_S", 60.0)
    lines = []
    with holder_process(uri) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie: its parent has not waited for it
        before = time.monotonic()
        with acquire_lease(uri, lines.append) as lease:
            assert time.monotonic() - before < leases.LEASE_S
            check_lease_token(uri, lease.token)
    assert len(lines) == 1 and f"process {process.pid}" in lines[0] and "has died" in lines[0]


def test_a_reused_process_number_is_not_the_holder(uri, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_S", 60.0)
    put_lease(uri, token="of a dead run", started=leases._this_process().started - 1)
    before = time.monotonic()
    with acquire_lease(uri, silent):
        assert time.monotonic() - before < leases.LEASE_S


def test_a_lease_of_another_machine_is_taken_after_it_expires(tmp_path):
    lines = []

    def wait_of(elsewhere: dict[str, object]) -> float:
        uri = f"{tmp_path}/{'-'.join(elsewhere)}/_lease.json"
        put_lease(uri, token="another's", pid=2**22 + 1, **elsewhere)
        before = time.monotonic()
        with acquire_lease(uri, lines.append) as lease:
            check_lease_token(uri, lease.token)
            return time.monotonic() - before

    with ThreadPoolExecutor() as pool:
        waits = list(pool.map(wait_of, [{"host": "another"}, {"boot": "another"}, {"namespace": 1}]))
    assert all(wait >= leases.LEASE_S for wait in waits), waits
    assert len(lines) == 3 and all("waiting up to 1 s" in line for line in lines)


def test_a_lease_that_another_run_has_taken_is_lost_and_not_deleted(uri):
    with acquire_lease(uri, silent) as lease:
        other = put_lease(uri, token="another's")
        assert lease.lost.wait(60)
        with pytest.raises(JobFailed):
            check_lease_token(uri, lease.token)
    check_lease_token(uri, other)


def test_a_deleted_lease_is_lost_and_not_written_again(uri):
    with acquire_lease(uri, silent) as lease:
        storage.delete(uri)
        assert lease.lost.wait(60)
        with pytest.raises(JobFailed):
            check_lease_token(uri, lease.token)
    with pytest.raises(FileNotFoundError):
        storage.read(uri)


def test_one_of_8_runs_gets_an_expired_lease(uri, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_S", 4.0)  # the new holder must renew within this time
    put_lease(uri, token="expired", host="another")
    refused = threading.Semaphore(0)

    def run(number: int) -> str:
        try:
            with acquire_lease(uri, silent) as lease:
                assert all(refused.acquire(timeout=120) for _ in range(7))
                check_lease_token(uri, lease.token)
                return "held"
        except UsageError:
            refused.release()
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(run, range(8))) == ["held"] + ["refused"] * 7


def test_a_first_write_whose_response_is_lost_is_recognized(proxy, on_s3, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_S", 60.0)
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 30.0)
    once = iter([True])
    proxy.share, proxy.kinds, proxy.only = 1.0, ("lost",), lambda method, path: method == "PUT" and next(once, False)
    before = time.monotonic()
    with acquire_lease(on_s3, silent) as lease:
        assert time.monotonic() - before < leases.LEASE_S
        check_lease_token(on_s3, lease.token)
    assert proxy.counts["lost"] == 1


def test_the_lease_survives_an_outage_of_the_store(proxy, on_s3):
    with acquire_lease(on_s3, silent) as lease:
        proxy.share, proxy.kinds, proxy.only = 1.0, ("lost",), lambda method, path: method == "PUT"
        wait_for(lambda: proxy.counts["lost"])  # the object has a newer version than the holder knows
        proxy.kinds, proxy.only = ("slow_down",), lambda method, path: method == "GET"
        wait_for(lambda: proxy.counts["slow_down"] > 2)
        proxy.share = 0.0
        after_the_outage = renewals(on_s3)
        wait_for(lambda: renewals(on_s3) > after_the_outage)
        assert not lease.lost.is_set()
        check_lease_token(on_s3, lease.token)


def wait_for(condition, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
