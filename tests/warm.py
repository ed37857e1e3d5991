"""Ray workers by fork: one process imports torch and diffusers, and every worker starts as its copy.

Each job starts a new encoder process. Importing takes four seconds, hundreds of times in a session. With
``runtime_env={"py_executable": WarmWorkers.executable}`` Ray starts this file as its worker. This file asks the
server process for a copy of itself. The copy runs Ray's worker script with the arguments, the environment, the folder
and the files of the asking process. Ray is imported after the fork, because it reads the environment at import.

``tests/warm_site`` spares the copy one more import of ray, see there.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

_IMPORTED = ("inpaint_encode.core.encoder", "diffusers.models.autoencoders.autoencoder_kl", "pandas", "pyarrow.dataset")
_IMPORTED += (
    "inpaint_encode.job.stages",
    "inpaint_encode.output.shards",
    "google.protobuf.descriptor_pb2",
    "jsonschema",
)
_IMPORTED += ("rich.progress",)
WARM_SITE = str(Path(__file__).parent / "warm_site")
"""Folder for ``PYTHONPATH`` of Ray's nodes: their warm workers start sooner."""
_SOCKET = "INPAINT_ENCODE_WARM_WORKERS"


class WarmWorkers:
    """Runs the server process inside the ``with`` block. Start Ray inside too: it needs the environment variable."""

    executable = f"{sys.executable} -S -E {__file__}"

    def __enter__(self) -> WarmWorkers:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        os.environ[_SOCKET] = f"{self._folder.name}/socket"
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [WARM_SITE, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, __file__, os.environ[_SOCKET]]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdout.readline(), "the process that workers are copied from did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()


def ask_for_worker(arguments: list[str]) -> None:
    """In the process that Ray starts: ask for a copy and wait for its end."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(os.environ[_SOCKET])
        wanted = json.dumps([arguments, dict(os.environ), str(Path.cwd())]).encode()
        socket.send_fds(connection, [len(wanted).to_bytes(4, "big")], [0, 1, 2])
        connection.sendall(wanted)
        connection.recv(1)


def serve(path: str) -> None:
    """In the server process: import, report that it is ready, and fork for each request."""
    del sys.path[0]  # this folder, which has a package named ray
    for name in _IMPORTED:
        importlib.import_module(name)
    assert "ray" not in sys.modules
    gc.collect()
    gc.freeze()  # a collection in a copy need not visit, and so copy, half a million objects
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(64)
        print(flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:  # its end is the session's, however
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                become_worker(connection)
            connection.close()


def become_worker(connection: socket.socket) -> None:
    """In the copy: take over arguments, environment and files of the asking process; run the worker's script."""
    length, files, _, _ = socket.recv_fds(connection, 4, 3)
    wanted = b""
    while len(wanted) < int.from_bytes(length, "big"):
        wanted += connection.recv(2**20)
    arguments, environment, folder = json.loads(wanted)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    if os.environ.get("INPAINT_ENCODE_POISONED"):
        runpy.run_path(str(Path(__file__).parent / "poison.py"))
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        serve(sys.argv[1])
    else:
        ask_for_worker(sys.argv[1:])
