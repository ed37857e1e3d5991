"""One run at a time on an output: a small object that its holder renews, and that anyone may take once it is cold.

The guarantee rests on the store's conditional writes (If-None-Match and If-Match on S3, links and locks on
disks). On a store that ignores conditions two runs started within the same second may both go on; the workers
of all but the last then find a token that is not theirs and stop before they commit.
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

__all__ = ["LEASE_S", "RENEW_S", "Lease", "check_lease_token", "hold"]

LEASE_S = 16.0
"""A lease that nobody has renewed for so long may be taken."""

RENEW_S = 4.0


@dataclass(frozen=True)
class _Holder:
    """Who holds the lease, in terms that let another process on the same host see whether it is gone."""

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
    """A held lease; ``lost`` is set as soon as another run is seen to have taken it."""

    def __init__(self, uri: str, holder: _Holder, version: str) -> None:
        self.token = holder.token
        self.lost = threading.Event()
        self._uri, self._holder, self._version = uri, holder, version
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            if not self.lost.is_set() and _read(self._uri)[0].token == self.token:
                storage.delete(self._uri)

    def _renew(self) -> None:
        renewals = 0
        while not self.lost.is_set() and not self._ended.wait(RENEW_S):
            renewals += 1
            try:
                self._version = storage.write(self._uri, self._holder.encode(renewals), expect=self._version)
            except storage.Conflict:
                self._look_whose()
            except OSError:
                continue  # a store that is down now may be back before the lease is cold

    def _look_whose(self) -> None:
        """A renewal whose answer was lost conflicts with itself, and then the lease is still ours."""
        try:
            holder, self._version = _read(self._uri)
        except FileNotFoundError:
            self.lost.set()
        except OSError:
            return  # the next renewal conflicts again
        else:
            if holder.token != self.token:
                self.lost.set()


def hold(uri: str, say: Callable[[str], None]) -> Lease:
    """Take the lease at ``uri``; waits for at most `LEASE_S` seconds if its holder may be gone.

    Args:
        uri: the lease's object.
        say: is told, in a line, why it takes time or whose lease was taken.

    Raises:
        UsageError: another run renews it.
    """
    me = _myself()
    while True:
        with contextlib.suppress(storage.Conflict):
            return Lease(uri, me, storage.write(uri, me.encode(0), expect=storage.ABSENT))
        with contextlib.suppress(FileNotFoundError, storage.Conflict):
            holder, version = _read(uri)
            if holder.token != me.token:  # ours if the answer to our own write was lost
                _wait_until_cold(uri, holder, version, say)
                version = storage.write(uri, me.encode(0), expect=version)
            return Lease(uri, me, version)


def check_lease_token(uri: str, token: str) -> None:
    """Make sure that the run with ``token`` still holds the lease.

    Raises:
        JobFailed: it does not; what the caller was about to commit is another run's to decide.
    """
    with contextlib.suppress(FileNotFoundError):
        if _read(uri)[0].token == token:
            return
    raise JobFailed("another run has taken over this output; this one stops here, and nothing it wrote is lost")


def _wait_until_cold(uri: str, holder: _Holder, version: str, say: Callable[[str], None]) -> None:
    """Return once the holder of that version is known to be gone.

    Raises:
        UsageError: it was renewed while we watched.
    """
    if _is_gone(holder):
        say(f"the run that held this output (process {holder.pid} on {holder.host}) has died; going on from it")
        return
    say(f"waiting up to {LEASE_S:.0f} s: process {holder.pid} on {holder.host} held this output and may be alive")
    deadline = time.monotonic() + LEASE_S
    while time.monotonic() < deadline:
        time.sleep(0.5)
        current = _read(uri)[1]
        if current != version:
            raise UsageError(
                f"process {holder.pid} on {holder.host} is writing to this output now; wait for it, stop it, "
                "or choose another --output"
            )


def _read(uri: str) -> tuple[_Holder, str]:
    blob = storage.read(uri)
    return _Holder(**json.loads(blob.data)), blob.version


def _myself() -> _Holder:
    return _Holder(
        token=uuid.uuid4().hex,
        host=socket.gethostname(),
        boot=_boot(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=_started(os.getpid()),
    )


def _is_gone(holder: _Holder) -> bool:
    """Whether the holder ran on this very machine and its process is no more."""
    here = (socket.gethostname(), _boot(), _namespace())
    return (holder.host, holder.boot, holder.namespace) == here and _started(holder.pid) != holder.started


def _boot() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else ""


def _namespace() -> int:
    """Containers may share a host's name and boot, but then not its process numbers."""
    path = Path("/proc/self/ns/pid")
    return path.stat().st_ino if path.exists() else 0


def _started(pid: int) -> int:
    """When the process was started, in clock ticks since boot; -1 if there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])
