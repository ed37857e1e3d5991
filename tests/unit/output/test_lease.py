"""One run at a time: leases on a real S3 server and on a disk, through deaths, faults and races."""

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
from inpaint_encode.output.lease import check_lease_token, hold
from inpaint_encode.stores import retries, storage
from inpaint_encode.stores.s3 import forget_clients
from tests.proxy import FaultyProxy

HOLDER = """
import sys, time
from inpaint_encode.output import lease
lease.RENEW_S = 0.2
with lease.hold(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(60)
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
def proxy(s3, monkeypatch) -> Iterator[FaultyProxy]:
    """Every S3 request of this process goes through a faulty proxy, and is hardly tried again."""
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 0.001)
    with FaultyProxy(s3) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.environment["AWS_ENDPOINT_URL"])
        forget_clients()
        yield running
    forget_clients()


def silent(line: str) -> None:
    pass


def put_lease(uri: str, **changes: object) -> str:
    """Another's lease, which nobody renews; return its token."""
    holder = dataclasses.replace(leases._myself(), **changes)
    storage.write(uri, holder.encode(0))
    return holder.token


def renewals(uri: str) -> int:
    return leases._read(uri)[0].renewals


@contextmanager
def holder_process(uri: str) -> Iterator[subprocess.Popen]:
    """Another process of this machine that holds the lease."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, uri], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_it_is_there_while_held_and_gone_afterwards(uri):
    with hold(uri, silent) as lease:
        check_lease_token(uri, lease.token)
        wait_for(lambda: renewals(uri) >= 2)
        check_lease_token(uri, lease.token)
        assert not lease.lost.is_set()
    with pytest.raises(FileNotFoundError):
        storage.read(uri)
    with hold(uri, silent) as again:
        assert again.token != lease.token


def test_a_second_run_is_refused_while_the_first_renews(uri):
    said = []
    with holder_process(uri) as process:
        before = time.monotonic()
        with pytest.raises(UsageError, match=f"process {process.pid} on .* is writing to this output now"):
            hold(uri, said.append)
        assert time.monotonic() - before < leases.LEASE_S
        assert len(said) == 1 and f"process {process.pid}" in said[0]


def test_a_run_that_was_killed_on_this_machine_is_followed_at_once(uri):
    said = []
    with holder_process(uri) as process:
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # its parent has not asked after it yet
        before = time.monotonic()
        with hold(uri, said.append) as lease:
            assert time.monotonic() - before < 1.0
            check_lease_token(uri, lease.token)
    assert len(said) == 1 and f"process {process.pid}" in said[0] and "has died" in said[0]


def test_a_process_number_given_to_another_process_is_not_the_holder(uri):
    put_lease(uri, token="of a dead run", started=leases._myself().started - 1)
    before = time.monotonic()
    with hold(uri, silent):
        assert time.monotonic() - before < 1.0


def test_a_holder_that_cannot_be_seen_from_here_is_given_its_time(tmp_path):
    said = []

    def take(elsewhere: dict[str, object]) -> float:
        uri = f"{tmp_path}/{'-'.join(elsewhere)}/_lease.json"
        put_lease(uri, token="another's", pid=2**22 + 1, **elsewhere)
        before = time.monotonic()
        with hold(uri, said.append) as lease:
            check_lease_token(uri, lease.token)
            return time.monotonic() - before

    with ThreadPoolExecutor() as pool:
        waits = list(pool.map(take, [{"host": "another"}, {"boot": "another"}, {"namespace": 1}]))
    assert all(leases.LEASE_S <= wait < leases.LEASE_S + 1.0 for wait in waits), waits
    assert len(said) == 3 and all("waiting up to 1 s" in line for line in said)


def test_a_lease_that_another_has_taken_is_lost_and_left_alone(uri):
    with hold(uri, silent) as lease:
        other = put_lease(uri, token="another's")
        assert lease.lost.wait(2)
        with pytest.raises(JobFailed):
            check_lease_token(uri, lease.token)
    check_lease_token(uri, other)


def test_a_lease_that_is_gone_is_lost_and_not_made_again(uri):
    with hold(uri, silent) as lease:
        storage.delete(uri)
        assert lease.lost.wait(2)
        with pytest.raises(JobFailed):
            check_lease_token(uri, lease.token)
    with pytest.raises(FileNotFoundError):
        storage.read(uri)


def test_of_8_who_find_a_cold_lease_one_gets_it(uri):
    put_lease(uri, token="cold", host="another")
    refused = threading.Semaphore(0)

    def run(number: int) -> str:
        try:
            with hold(uri, silent) as lease:
                assert all(refused.acquire(timeout=10) for _ in range(7))
                check_lease_token(uri, lease.token)
                return "held"
        except UsageError:
            refused.release()
            return "refused"

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(run, range(8))) == ["held"] + ["refused"] * 7


def test_a_first_write_whose_answer_is_lost_is_known_again(proxy, on_s3, monkeypatch):
    monkeypatch.setattr(leases, "LEASE_S", 16.0)
    monkeypatch.setattr(retries, "RETRY_BUDGET_S", 5.0)
    once = iter([True])
    proxy.share, proxy.kinds, proxy.only = 1.0, ("lost",), lambda method, path: method == "PUT" and next(once, False)
    before = time.monotonic()
    with hold(on_s3, silent) as lease:
        assert time.monotonic() - before < 4.0
        check_lease_token(on_s3, lease.token)
    assert proxy.counts["lost"] == 1


def test_an_outage_is_not_a_loss(proxy, on_s3):
    with hold(on_s3, silent) as lease:
        proxy.share, proxy.kinds, proxy.only = 1.0, ("lost",), lambda method, path: method == "PUT"
        wait_for(lambda: proxy.counts["lost"])  # the store has another version by now than the holder knows
        proxy.kinds, proxy.only = ("slow_down",), lambda method, path: method == "GET"
        wait_for(lambda: proxy.counts["slow_down"] > 2)
        proxy.share = 0.0
        after_the_outage = renewals(on_s3)
        wait_for(lambda: renewals(on_s3) > after_the_outage)
        assert not lease.lost.is_set()
        check_lease_token(on_s3, lease.token)


def wait_for(condition, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
