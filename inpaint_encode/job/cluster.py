"""Joining the Ray cluster that is there, or starting a quiet one on this machine."""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.settings import Workers

__all__ = ["Encoders", "encoders", "encoders_of", "failures_named", "joined", "protect_local_ray", "waited_for"]

LOGICAL_CPUS = 4
"""Least number of CPUs that a Ray on this machine is told to have: an encoder and the tasks around it must all fit."""

ANSWER_S = 10.0
"""How long a cluster has to take a connection."""

CPU_ENCODER_CPUS = 2.0
"""An encoder without a GPU, unless it is told."""


@contextmanager
def joined(address: str) -> Iterator[None]:
    """Be connected to the cluster at ``address``, the one this process runs in, or a new local one.

    A connection that this process had already is used and left as it is.
    """
    import ray

    if ray.is_initialized():
        _quieten()
        yield
        return
    cluster = address or os.environ.get("RAY_ADDRESS")
    options = {"address": cluster} if cluster else _local_options()
    try:
        if cluster:
            _refuse_silent(cluster)
        with _interrupts_held(), _no_stderr():
            _start(options)
        _quieten()
        yield
    finally:
        ray.shutdown()


def _refuse_silent(address: str) -> None:
    """Raise if nothing listens at ``host:port``: Ray would try for ten minutes and longer, deaf to Ctrl-C."""
    found = re.fullmatch(r"\[?([^/]+?)\]?:(\d+)", address)
    try:
        if found:
            socket.create_connection((found[1], int(found[2])), ANSWER_S).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        advice = "check --address, or RAY_ADDRESS where it is not given"
        raise JobFailed(f"the Ray cluster at {address} cannot be joined: {reason}; {advice}") from error


def _start(options: dict[str, Any]) -> None:
    import ray

    try:
        logs = ray.LoggingConfig(encoding="JSON", log_level="WARNING")
        ray.init(logging_config=logs, logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # Ray raises a bare Exception when a node does not come up
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if "address" in options:
            advice = "where it has a token, set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
            raise JobFailed(f"the Ray cluster at {options['address']} cannot be joined: {reason}; {advice}") from error
        raise JobFailed(f"Ray did not start: {reason}; `inpaint-encode doctor` looks at what it needs") from error


@contextmanager
def failures_named() -> Iterator[None]:
    """Turn what Ray raises when it gives up into `JobFailed`, which names the error that it began with."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise JobFailed(f"Ray gave up: {_cause(error)}; what is done stays, and the same command goes on") from error


def _cause(error: Exception) -> str:
    """Of the tracebacks that Ray strings together, the one line that names the error they began with."""
    named = re.findall(r"^(?:[\w.]+\.)?(\w*(?:Error|Failed|Exception)): (.+)$", str(error), re.MULTILINE)
    return ": ".join(named[0]) if named else str(error).strip().splitlines()[-1]


class Encoders(NamedTuple):
    """What the VAE workers of a job take, each, and how many there may be."""

    gpus: float
    cpus: float
    least: int
    most: int


def encoders(workers: Workers, address: str) -> Encoders:
    """Return what an encoder takes of the cluster that this process is connected to; raises as `encoders_of` does."""
    import ray

    own = not (address or os.environ.get("RAY_ADDRESS"))
    return encoders_of(workers, ray.cluster_resources().get("GPU", 0), own=own)


def encoders_of(workers: Workers, there: float, *, own: bool) -> Encoders:
    """Return what an encoder takes, and how many to start, where ``there`` GPUs are now; a Ray of our own gets no more.

    Raises:
        UsageError: they need GPUs that are not there: our own Ray never has them, and of a cluster that starts them on
            demand it cannot be known how many are wanted.
    """
    asked = workers.gpus_per_worker
    gpus = float(there > 0) if asked == "auto" else float(asked)
    if gpus > there and own:
        why = "use 0 or auto; `inpaint-encode doctor` says why there is none"
        raise UsageError(f"--gpus-per-worker {asked}, but this machine has no such GPU; {why}")
    if gpus > there and not workers.max_workers:
        raise UsageError(
            f"--gpus-per-worker {asked}, and the cluster has {there:g} GPUs now; if it starts more on demand, say for "
            "how many workers, with --max-workers"
        )
    fitting = int(there / gpus) if gpus else 1
    most = workers.max_workers or max(workers.min_workers, fitting)
    return Encoders(gpus, _cpus_of(workers, gpus), min(workers.min_workers, most), most)


def waited_for(workers: Workers, vae: Encoders) -> str:
    """Return what a job needs before its first chunk is done, in the words of the options that ask for it."""
    encode_on, fetch_on = (f" on nodes with {on}" if on else "" for on in (workers.encode_on, workers.fetch_on))
    parts = {"GPU": vae.gpus, "CPU": vae.cpus}
    device = " and ".join(f"{amount:g} {name}" for name, amount in parts.items() if amount)
    return (
        f"no chunk is done yet; needed are a VAE worker of {device}{encode_on}, and tasks of "
        f"{max(workers.fetch_cpus, workers.write_cpus):g} CPU{fetch_on}; `ray status` shows what the cluster lacks"
    )


def _cpus_of(workers: Workers, gpus: float) -> float:
    if workers.encode_cpus != "auto":
        cpus = float(workers.encode_cpus)
    else:
        cpus = 0.0 if gpus else CPU_ENCODER_CPUS
    if not gpus and cpus == workers.fetch_cpus:
        return cpus + 0.001  # two stages that take the same are run by Ray in one process, in turn
    return cpus


def protect_local_ray(address: str) -> None:
    """See to it that a Ray started by this process obeys this user only: by a token, unless that is settled.

    Its ports are open on the machine's address, whatever address it is told. Ray reads these variables once, when it
    is imported, so this must come first. A cluster that is there already brings its own authentication.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # every pool of actors prints a harmless error line
    if address or os.environ.get("RAY_ADDRESS"):
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let Ctrl-C wait: a Ray that is interrupted while it starts leaves processes behind."""
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
    """Throw away what the libraries under Ray write there as they start; what goes wrong is raised."""
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
    return {"num_cpus": cpus, "include_dashboard": False}


def _quieten() -> None:
    """Leave the display to us, and let a job wait for GPU nodes as long as they take."""
    import ray.data

    from .private import drop_block_statistics

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1
    drop_block_statistics()
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
