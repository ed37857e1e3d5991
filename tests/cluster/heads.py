"""Ray heads and nodes started with ``ray start``, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import psutil

from tests.warm import WARM_SITE

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def ray_start(*options: object, **environment: str):
    """Run ``ray start --block`` inside the ``with`` block; its raylet and workers end with it."""
    paths = f"{WARM_SITE}:{ROOT}", f"{BIN}:{os.environ['PATH']}"
    env = {**os.environ, "PYTHONPATH": paths[0], "PATH": paths[1], **environment}
    command = [BIN / "ray", "start", "--block", "--disable-usage-stats", *options]
    process = subprocess.Popen(
        [str(part) for part in command], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        ended = process.poll() is not None  # a test may have killed it
        family = [] if ended else psutil.Process(process.pid).children(recursive=True)
        for member in [process, *family]:  # a submitted job's driver does not die with its node
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        process.wait(30)


@contextlib.contextmanager
def head(*options: object, port: int = 0, **environment: str):
    """Run a head with a dashboard inside the ``with`` block; yield its `Head`."""
    folder, port = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp")), port or free_port()
    web, agent = free_port(), free_port()
    arguments = ["--head", f"--port={port}", f"--temp-dir={folder}", f"--dashboard-port={web}", *options]
    arguments += [f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={free_port()}"]
    try:
        with ray_start(*arguments, **environment) as process:
            for one in (port, web, agent):
                wait_for(lambda one=one: answers(one), 300, f"a head on port {one}")
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{web}", agent, folder, process)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def node(cluster: Head, *options: object, **environment: str):
    """Run one more node inside the ``with`` block, with a folder of its own as on another machine.

    In the head's folder it would unpack the code of a job over the code that runs there.
    """
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        own = [f"--address={cluster.address}", f"--temp-dir={folder}", f"--dashboard-agent-listen-port={free_port()}"]
        with ray_start(*own, *options, **environment) as process:
            yield process


class Head:
    """Addresses of a head's GCS, dashboard and agent, the folder of its sessions, and its process."""

    def __init__(self, address: str, dashboard: str, agent: int, folder: Path, process: subprocess.Popen) -> None:
        self.address, self.dashboard, self.agent, self.folder, self.process = address, dashboard, agent, folder, process

    def state(self, kind: str, **filters: str) -> list[dict]:
        """List ``nodes``, ``actors`` or ``tasks`` by Ray's state API."""
        asked = [("limit", "10000"), ("detail", "true")]
        for key, value in filters.items():
            asked += [("filter_keys", key), ("filter_predicates", "="), ("filter_values", value)]
        url = f"{self.dashboard}/api/v0/{kind}?{urllib.parse.urlencode(asked)}"
        token = {"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=30) as answer:
            return json.load(answer)["data"]["result"]["result"]

    def kill_raylet(self, node_id: str) -> None:
        """Kill a node that the autoscaler started, as when a spot node ends; its workers die with it."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if f"--node_id={node_id}" in child.cmdline():
                child.kill()

    def worker_logs(self) -> str:
        """Text of the logs of all workers."""
        files = (self.folder / "session_latest/logs").glob("worker-*")
        return "\n".join(file.read_text(errors="replace") for file in files)


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def wait_for(ready, seconds: float, what: str, explain=str, pause: float = 0.1):
    """Call ``ready`` until its result is true, ``pause`` seconds apart; return the result.

    Raises:
        TimeoutError: ``what`` did not come within ``seconds``; the message ends with the result of ``explain``.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if answer := ready():
            return answer
        time.sleep(pause)
    raise TimeoutError(f"{what} did not come within {seconds:.0f} s {explain()}")
