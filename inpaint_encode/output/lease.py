"""The lease of an output: only one run writes to it at a time.

The lease is a small object. Its holder renews it; if nobody renews it for `LEASE_S` seconds, another run may take it.
This relies on the store's conditional writes: If-None-Match and If-Match on S3, links and locks on disks. If a store
ignores conditions, two runs that start within the same second may both continue. Then the workers of all runs except
the last find another token than theirs and stop before they commit.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.stores import storage

LEASE_S = 16.0
"""Seconds without a renewal after which another run may take the lease."""

RENEW_S = 4.0
"""Seconds between two renewals."""


@dataclass(frozen=True)
class _Holder:
    """The process that holds a lease; another process on the same machine can see whether it has ended."""

    token: str
    host: str
    boot: str
    namespace: int
    pid: int
    started: int
    renewals: int = 0

    def encode(self, renewals: int) -> bytes:
        return json.dumps({**asdict(self), "renewals": renewals}).encode()


class Lease:
    """A held lease, renewed by a thread; ``lost`` is set when another run has taken it."""

    def __init__(self, uri: str, holder: _Holder, version: str) -> None:
        self.token = holder.token
        self.lost = threading.Event()
        self.uri, self._holder, self._version = uri, holder, version
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if not self.lost.is_set() and _read(self.uri)[0].token == self.token:
                storage.delete(self.uri)

    def _renew(self) -> None:
        renewals = 0
        while not self.lost.is_set() and not self._ended.wait(RENEW_S):
            renewals += 1
            try:
                self._version = storage.write(self.uri, self._holder.encode(renewals), expect=self._version)
            except storage.Conflict:
                self._check_holder()
            except OSError:
                continue  # the store may work again before the lease expires

    def _check_holder(self) -> None:
        """Set ``lost`` if another run holds the lease; after a renewal whose response was lost, it is still ours."""
        try:
            holder, self._version = _read(self.uri)
        except FileNotFoundError:
            self.lost.set()
        except OSError:
            return  # the next renewal conflicts again
        else:
            if holder.token != self.token:
                self.lost.set()


def acquire_lease(uri: str, on_status: Callable[[str], None]) -> Lease:
    """Take the lease at ``uri``; wait at most `LEASE_S` seconds for a lease that may expire.

    Args:
        uri: of the lease's object.
        on_status: called with a line about a wait, or about the run whose lease was taken.

    Raises:
        UsageError: another run renews the lease.
    """
    me = _this_process()
    while True:
        with contextlib.suppress(storage.Conflict):
            return Lease(uri, me, storage.write(uri, me.encode(0), expect=storage.ABSENT))
        with contextlib.suppress(FileNotFoundError, storage.Conflict):
            holder, version = _read(uri)
            if holder.token != me.token:  # it is ours if the response to our own write was lost
                _wait_for_expiry(uri, holder, version, on_status)
                version = storage.write(uri, me.encode(0), expect=version)
            return Lease(uri, me, version)


def check_lease_token(uri: str, token: str) -> None:
    """Check that the run with ``token`` still holds the lease.

    Raises:
        JobFailed: it does not, so that the caller must not commit.
    """
    with contextlib.suppress(FileNotFoundError):
        if json.loads(storage.read(uri).data)["token"] == token:
            return
    raise JobFailed(f"another run has taken over this output (see {uri}); this run stops; its finished chunks are kept")


def _wait_for_expiry(uri: str, holder: _Holder, version: str, on_status: Callable[[str], None]) -> None:
    """Return when the holder has ended, or has not renewed this version for `LEASE_S` seconds.

    Raises:
        UsageError: the holder has renewed the lease.
    """
    process = f"process {holder.pid} on {holder.host}"
    if _has_ended(holder):
        on_status(f"{process} was writing to this output and has died; this run takes over")
        return
    on_status(
        f"{process} may still be writing to this output; waiting up to {LEASE_S:.0f} s to see whether it is alive"
    )
    deadline = time.monotonic() + LEASE_S
    while time.monotonic() < deadline:
        time.sleep(0.5)
        current = _read(uri)[1]
        if current != version:
            raise UsageError(f"{process} is writing to this output; wait for it, stop it, or use another --output")


def _read(uri: str) -> tuple[_Holder, str]:
    blob = storage.read(uri)
    return _Holder(**json.loads(blob.data)), blob.version


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
