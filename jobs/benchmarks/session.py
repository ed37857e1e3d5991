"""A Ray that a benchmark has to itself: its own processes, so that drivers can come and go."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from inpaint_encode.job.cluster import protect_local_ray

__all__ = ["RaySession"]

_UP_WITHIN_S = 300.0


class RaySession:
    """A Ray head on this machine, inside its ``with`` block; drivers join it at ``address``.

    Its processes are below this one, where a `CpuMeter` sees them, and obey this user only.
    """

    def __init__(self, cpus: int, store_bytes: int) -> None:
        """Say how many logical CPUs it has, and how large its object store is."""
        self._options = [f"--num-cpus={cpus}", f"--object-store-memory={store_bytes}"]
        self._port = _free_port()
        self.address = f"127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        protect_local_ray("")
        self._folder = Path(tempfile.mkdtemp(prefix="ray-"))  # the paths of its sockets may not be long
        command = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", f"--port={self._port}"]
        command += ["--node-ip-address=127.0.0.1", f"--temp-dir={self._folder}", "--include-dashboard=false"]
        command += ["--disable-usage-stats", *self._options]
        nowhere = subprocess.DEVNULL
        self._process = subprocess.Popen(command, stdout=nowhere, stderr=nowhere)  # noqa: S603
        try:
            self._wait()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # its children die with it, and a polite end takes it half a minute
        self._process.wait(30)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        deadline = time.monotonic() + _UP_WITHIN_S
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), 1):
                return
            time.sleep(0.1)
        raise RuntimeError(f"Ray did not start on port {self._port} within {_UP_WITHIN_S:.0f} s; see `ray start`")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
