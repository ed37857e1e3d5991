"""Connecting to a Ray cluster, or starting Ray on this machine; the resources of VAE workers."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from inpaint_encode.core.machine import user_folder
from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.settings import Workers

LOGICAL_CPUS = 4
"""Minimum CPUs of a Ray that is started on this machine: a VAE worker and the tasks around it must fit."""

CONNECT_TIMEOUT_S = 10.0
"""Seconds that a cluster has to accept a connection."""

CPU_WORKER_CPUS = 2.0
"""CPUs of a VAE worker without a GPU, with ``--encode-cpus auto``."""


@contextmanager
def connect_ray(address: str) -> Iterator[None]:
    """Connect to the cluster at ``address``, or to that of RAY_ADDRESS; without either, start Ray on this machine.

    If this process is connected already, the connection is used and stays open.

    Raises:
        JobFailed: the cluster cannot be reached, or Ray does not start.
    """
    import ray

    if ray.is_initialized():
        _configure_ray_data()
        yield
        return
    cluster = address or os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {"address": cluster} if cluster else _local_options()
    try:
        if cluster:
            _check_reachable(cluster)
        from .private import keep_sigterm_handler

        with _explained_exit():
            with _signals_delayed(), keep_sigterm_handler(), _no_stderr():
                _start(options)
            _configure_ray_data()
            yield
    finally:
        _disconnect()


def _disconnect() -> None:
    """Disconnect from Ray, and keep the handler of SIGTERM.

    Ray's library installs the default action meanwhile: a SIGTERM would then end this process without its clean-up.
    """
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        ray.shutdown()
        return
    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(ray.shutdown)
        while not ended.done():
            signal.signal(signal.SIGTERM, handler)
            wait([ended], 0.01)
    signal.signal(signal.SIGTERM, handler)
    ended.result()


@contextmanager
def _explained_exit() -> Iterator[None]:
    """Print a line if this process ends inside the ``with`` block, without an exception.

    Ray ends its driver at once, without Python's clean-up, when the raylet of this machine or the cluster's head has
    died. A shell reads from a pipe whose other end only this process has, and prints the line at its end.
    """
    line = (
        "error: this process ended suddenly: Ray on this machine or the cluster's head has died, or the process was "
        "killed; run the same command again: it resumes where it stopped"
    )
    shell = ["/bin/sh", "-c", 'read -r _ || echo "$0" >&2', line]
    if not Path(shell[0]).exists():
        yield
        return
    with subprocess.Popen(shell, stdin=subprocess.PIPE, start_new_session=True) as watcher:  # noqa: S603
        try:
            yield
        finally:
            watcher.communicate(b"\n")


def _check_reachable(address: str) -> None:
    """Raise `JobFailed` if nothing listens at ``host:port``: Ray would try for ten minutes and ignore Ctrl-C."""
    found = re.fullmatch(r"\[?([^/]+?)\]?:(\d+)", address)
    try:
        if found:
            socket.create_connection((found[1], int(found[2])), CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise JobFailed(
            f"cannot connect to the Ray cluster at {address}; check --address or RAY_ADDRESS ({reason})"
        ) from error


def _start(options: dict[str, Any]) -> None:
    import ray

    from .private import job_config

    if not options["address"].startswith("ray://"):  # the driver of such a client is a process of the cluster
        options = {**options, "job_config": job_config()}
    try:
        logs = ray.LoggingConfig(encoding="JSON", log_level="WARNING")
        ray.init(logging_config=logs, logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # Ray raises a bare Exception when a node does not come up
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if options["address"] != "local":
            advice = "if it needs a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            raise JobFailed(
                f"cannot connect to the Ray cluster at {options['address']}; {advice} ({reason})"
            ) from error
        logs = f"{options['_temp_dir']}/session_latest/logs"
        raise JobFailed(f"Ray did not start; its logs are in {logs} ({reason})") from error


@contextmanager
def translate_ray_errors() -> Iterator[None]:
    """Turn errors of Ray into `JobFailed` with the error that caused them."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise JobFailed(
            f"Ray stopped the job: {_cause(error)}; finished chunks are kept; run the same command again to resume"
        ) from error


def _cause(error: Exception) -> str:
    """Return the first error of the tracebacks in Ray's message."""
    named = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Failed|Exception)): (.+)$", str(error), re.MULTILINE)
    return ": ".join(named[0]) if named else str(error).strip().splitlines()[-1]


@lru_cache
def node_cpus() -> float:
    """Return the CPUs that Ray counts on this worker's node; without Ray, those of this machine."""
    if "ray" in sys.modules:
        import ray

        if ray.is_initialized():
            here = ray.get_runtime_context().get_node_id()
            return float(next(node["Resources"].get("CPU", 1) for node in ray.nodes() if node["NodeID"] == here))
    return float(os.cpu_count() or 1)


class VaeWorkers(NamedTuple):
    """Resources of each VAE worker, and their minimum and maximum number."""

    gpus: float
    cpus: float
    least: int
    most: int


def vae_workers(workers: Workers, address: str) -> VaeWorkers:
    """Return the VAE workers for the connected cluster; raises as `vae_workers_for` does."""
    import ray

    own = not (address or os.environ.get("RAY_ADDRESS"))
    return vae_workers_for(workers, ray.cluster_resources().get("GPU", 0), own=own)


def vae_workers_for(workers: Workers, present: float, *, own: bool) -> VaeWorkers:
    """Return the resources and the number of VAE workers.

    Args:
        workers: the options.
        present: GPUs of the cluster now.
        own: whether this process started Ray, which then gets no more GPUs.

    Raises:
        UsageError: the workers need GPUs that a local Ray does not have, or their maximum is unknown on a cluster that
            starts GPU nodes on demand.
    """
    asked = workers.gpus_per_worker
    gpus = float(present > 0) if asked == "auto" else float(asked)
    if gpus > present and own:
        raise UsageError(
            f"--gpus-per-worker {asked} is more than the GPUs that Ray finds here ({present:g}); use 0 or auto, or run "
            "`inpaint-encode doctor` to find out why"
        )
    if gpus > present and not workers.max_workers:
        raise UsageError(
            f"--gpus-per-worker {asked} is more than the cluster's GPUs now ({present:g}); if it starts GPU nodes "
            "on demand, set --max-workers"
        )
    fitting = int(present / gpus) if gpus else 1
    most = workers.max_workers or max(workers.min_workers, fitting)
    return VaeWorkers(gpus, _cpus_of(workers, gpus), min(workers.min_workers, most), most)


def needed_resources(workers: Workers, vae: VaeWorkers) -> str:
    """Return a sentence with the resources that a job's first chunk needs."""
    encode_on, fetch_on = (f" on nodes with {on}" if on else "" for on in (workers.encode_on, workers.fetch_on))
    parts = {"GPU": vae.gpus, "CPU": vae.cpus}
    device = " and ".join(f"{amount:g} {name}" for name, amount in parts.items() if amount)
    return (
        f"no chunk is done yet; each VAE worker needs {device}{encode_on}, and each other task "
        f"{max(workers.fetch_cpus, workers.write_cpus):g} CPU{fetch_on}; `ray status` shows requests that wait for "
        "nodes"
    )


def _cpus_of(workers: Workers, gpus: float) -> float:
    if workers.encode_cpus != "auto":
        cpus = float(workers.encode_cpus)
    else:
        cpus = 0.0 if gpus else CPU_WORKER_CPUS
    if not gpus and cpus == workers.fetch_cpus:
        return cpus + 0.001  # Ray runs two stages with equal resources in one process, one after the other
    return cpus


def secure_local_ray(address: str) -> None:
    """Require an auth token for a Ray that this process starts, and let it listen on 127.0.0.1 only.

    Variables that are set already win. Ray reads them when it is imported, so call this first. An existing cluster has
    its own authentication.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # each actor pool prints a harmless error
    if address or os.environ.get("RAY_ADDRESS"):
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if "ray" not in sys.modules:  # a Ray that is imported already would look for the node at another address
        # The node's address is then 127.0.0.1 on Linux too; else Ray's metrics listen on 0.0.0.0 and require no token.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


@contextmanager
def _signals_delayed() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM: a Ray that is interrupted while it starts leaves processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    handlers = {
        number: signal.signal(number, lambda n, _: held.append(n)) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Discard what Ray's libraries write to standard error while they start; errors are raised."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _local_options() -> dict[str, Any]:
    cpus = max(LOGICAL_CPUS, os.cpu_count() or 1)
    return {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": private_folder()}


def private_folder(name: str = "ray") -> str:
    """Return a folder inside one that only this user can open: of the logs and sockets of a local Ray, or other files.

    Ray lets everyone read and write its folder, /tmp/ray by default. The path is short, because those of sockets below
    it must be.
    """
    root = "/tmp" if Path("/tmp").is_dir() else tempfile.gettempdir()  # noqa: S108 - `user_folder` checks it
    return str((user_folder(root) or Path(tempfile.mkdtemp(prefix="ie-", dir=root))) / name)


def _configure_ray_data() -> None:
    """Turn off Ray Data's own progress output, and its time-out for jobs that wait for GPU nodes."""
    import ray.data

    from .private import drop_block_statistics

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    drop_block_statistics()
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
