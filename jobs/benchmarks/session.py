"""A Ray of its own processes for a benchmark or a test, so that drivers can come and go."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from inpaint_encode.job.cluster import secure_local_ray

__all__ = ["RaySession"]

_START_TIMEOUT_S = 300.0


class RaySession:
    """A Ray head on this machine, inside its ``with`` block; drivers connect to ``address``.

    Its processes are children of this one, so a `CpuMeter` counts them. It requires this user's auth token.

    Args:
        cpus: number of logical CPUs.
        store_bytes: size of the object store.
    """

    def __init__(self, cpus: int, store_bytes: int) -> None:
        self._options = [f"--num-cpus={cpus}", f"--object-store-memory={store_bytes}"]
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port: int = probe.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        secure_local_ray("")
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: paths of sockets have a maximum length
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={self._port}"]
        command += ["--node-ip-address=127.0.0.1", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        command += ["--disable-usage-stats", *self._options]
        silent = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=silent, stderr=silent)  # noqa: S603
        try:
            self._wait_for_port()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()  # its children end with it; SIGTERM would take half a minute
        self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait_for_port(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.1)
        raise RuntimeError(
            f"Ray did not start on port {self._port} in {_START_TIMEOUT_S:.0f} s; run `ray start` to see why"
        )
