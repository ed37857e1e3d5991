"""Leases of an output: they save double work. No result depends on them, see `plan_log` and `state`.

``_lease.json``              the only run of an output, or a command that changes it
``_leases/<i>-of-<n>.json``  a run with ``--shard i/n``
``_leases/plan.json``        the one of these runs that is planning

A lease is a small object. Its holder renews it; if nobody renews it for `LEASE_S` seconds, another run may take it.
This relies on the store's conditional writes: If-None-Match and If-Match on S3, links and locks on disks.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.json_files import convert_json, parse_object
from inpaint_encode.stores import storage

from .notes import DamagedNote, read_parsed

LEASE_S = 45.0
"""Seconds without a renewal after which another run may take the lease: longer than a renewal is retried."""

RENEW_S = 10.0
"""Seconds between two renewals."""


_held: set[Lease] = set()
"""Leases that this process has taken, or tries to take, and has not released."""


@dataclass(frozen=True)
class _Holder:
    """The process that holds a lease; another process on the same machine can see whether it has ended."""

    token: str
    host: str
    boot: str
    namespace: int
    pid: Annotated[int, range(1, 2**31)]
    started: int
    renewals: int = 0

    @classmethod
    def parse(cls, data: bytes) -> _Holder:
        return convert_json(cls, parse_object(data))

    def encode(self, renewals: int) -> bytes:
        return json.dumps({**asdict(self), "renewals": renewals}).encode()


class Lease:
    """A held lease, renewed by a thread; ``lost`` is set when another run has taken it."""

    def __init__(self, uri: str, holder: _Holder) -> None:
        self.token, self.version = holder.token, ""
        self.lost = threading.Event()
        self.uri, self._holder = uri, holder
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Stop renewing the lease, and delete it if this process still holds it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(RENEW_S)  # a later renewal fails, since it expects a version that is deleted
        with contextlib.suppress(OSError):
            holder = _read(self.uri)[0]
            if not self.lost.is_set() and holder is not None and holder.token == self.token:
                storage.delete(self.uri)
        _held.discard(self)

    def _renew(self) -> None:
        renewals = 0
        while not self.lost.is_set() and not self._ended.wait(RENEW_S):
            renewals += 1
            try:
                self.version = storage.write(self.uri, self._holder.encode(renewals), expect=self.version)
            except storage.Conflict:
                self._check_holder()
            except OSError:
                continue  # the store may work again before the lease expires

    def _check_holder(self) -> None:
        """Set ``lost`` if another run holds the lease; after a renewal whose response was lost, it is still ours."""
        try:
            holder, self.version = _read(self.uri)
        except FileNotFoundError:
            self.lost.set()
        except OSError:
            return  # the next renewal conflicts again
        else:
            if holder is None or holder.token != self.token:
                self.lost.set()


def acquire_lease(uri: str, on_status: Callable[[str], None]) -> Lease:
    """Take the lease at ``uri``; wait at most `LEASE_S` seconds for a lease that may expire.

    Args:
        uri: of the lease's object.
        on_status: called with a line about a wait, or about the run whose lease was taken.

    Raises:
        UsageError: another run renews the lease.
    """
    candidate = LeaseCandidate(uri, on_status)
    while (lease := candidate.try_acquire()) is None:
        candidate.check_not_renewed()
        time.sleep(0.5)
    return lease


def release_all() -> None:
    """Release every lease that this process holds; for the end of an interrupted process."""
    for lease in list(_held):
        lease.release()


def check_no_lease(uris: Iterable[str], on_status: Callable[[str], None]) -> None:
    """Check that no other run renews one of the leases; this takes at most `LEASE_S` seconds.

    Raises:
        UsageError: another run renews one of them.
    """
    candidates = [LeaseCandidate(uri, on_status) for uri in uris]
    while held := [candidate for candidate in candidates if not candidate.is_free()]:
        for candidate in held:
            candidate.check_not_renewed()
        time.sleep(0.5)


class LeaseCandidate:
    """Watches a lease that another run may hold, and takes it when it is free.

    Args:
        uri: of the lease's object.
        on_status: called with a line when it begins to wait, and about the run whose lease is free.
    """

    def __init__(self, uri: str, on_status: Callable[[str], None]) -> None:
        self._uri, self._on_status, self._me = uri, on_status, _this_process()
        self._process = ""
        self._first_version = self._version = ""
        """Versions of the lease when it was seen first, and last; empty if there was none."""
        self._seen = 0.0
        """When the last version was seen first."""

    def try_acquire(self) -> Lease | None:
        """Take the lease if it is free now; this returns at once."""
        if not self.is_free():
            return None
        lease = Lease(self._uri, self._me)
        _held.add(lease)  # before the request: a signal may come between its end and the caller's `with`
        try:
            lease.version = storage.write_once(self._uri, self._me.encode(0), expect=self._version)
        except storage.Conflict:
            _held.discard(lease)
            return None
        return lease

    def is_free(self) -> bool:
        """Whether there is no lease, or its holder has ended, or nobody has renewed it for `LEASE_S` seconds."""
        try:
            holder, version = _read(self._uri)
        except FileNotFoundError:
            self._version = storage.ABSENT
            return True
        if version != self._version:
            self._version, self._seen = version, time.monotonic()
            self._first_version = self._first_version or version
        self._process = f"process {holder.pid} on {holder.host}" if holder else f"a process with the lease {self._uri}"
        if holder is not None and _has_ended(holder):
            self._say(f"{self._process} was writing to this output and has died; this run takes over")
            return True
        if time.monotonic() - self._seen >= LEASE_S:
            return True
        self._say(
            f"{self._process} may still be writing to this output; waiting up to {LEASE_S:.0f} s to see whether it is "
            "alive"
        )
        return False

    def check_not_renewed(self) -> None:
        """Raise UsageError if the holder has renewed the lease since it was seen first."""
        if self._version != self._first_version:
            raise UsageError(
                f"{self._process} is writing to this output; wait for it, stop it, or use another --output"
            )

    def _say(self, line: str) -> None:
        if line != self._said:
            self._on_status(line)
        self._said = line

    _said = ""


def check_lease_token(uri: str, token: str) -> None:
    """Check that the run with ``token`` still holds the lease.

    Raises:
        JobFailed: it does not, so that the caller must not commit.
    """
    with contextlib.suppress(FileNotFoundError):
        holder = _read(uri)[0]
        if holder is not None and holder.token == token:
            return
    raise JobFailed(f"another run has taken over this output (see {uri}); this run stops; its finished chunks are kept")


def _read(uri: str) -> tuple[_Holder | None, str]:
    """Return the holder, or None if the lease is damaged, and its version.

    Nothing is known about the holder of a damaged lease, so another run waits until it would have expired.
    """
    try:
        return read_parsed(uri, _Holder.parse, "another run may hold it")
    except DamagedNote as error:
        return None, error.version


def _this_process() -> _Holder:
    return _Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_boot_id(),
        namespace=_pid_namespace(),
        pid=os.getpid(),
        started=_start_time(os.getpid()),
    )


def _has_ended(holder: _Holder) -> bool:
    """Whether the holder ran on this machine and its process has ended."""
    here = (socket.gethostname(), _boot_id(), _pid_namespace())
    return (holder.host, holder.boot, holder.namespace) == here and _start_time(holder.pid) != holder.started


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _pid_namespace() -> int:
    """Return the inode of the process namespace: containers may share a host's name and boot id, but not this."""
    path = Path("/proc/self/ns/pid")
    return path.stat().st_ino if path.exists() else 0


def _start_time(pid: int) -> int:
    """Return when the process started, in clock ticks since boot; -1 if it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])
