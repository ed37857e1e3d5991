"""Private APIs of Ray. This module is the only one that uses them; without them the job runs, with one log line.

Ray Data keeps statistics of every block for `Dataset.stats`, which a job never reads: six kilobytes per chunk of three
stages, two gigabytes for a hundred million pairs. `drop_block_statistics` drops them.

Ray starts a task again, without end, if its worker dies; the process that owns the task counts its attempts.
`task_attempt` returns the count.

``ray.init`` replaces the process's handler of SIGTERM. `keep_sigterm_handler` prevents that.

``ray.init`` puts the current folder first on the module path of all workers, so that a ``numpy.py`` in a folder of a
stranger would run there. `job_config` prevents that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray._private.utils
import ray.data
from ray._private.worker import global_worker
from ray.job_config import JobConfig

from inpaint_encode.stores.redaction import get_logger

try:
    from ray.data._internal.execution.execution_callback import ExecutionCallback
except ImportError:
    ExecutionCallback = None

_LOG = get_logger(__name__)


class _DropBlockStatistics(ExecutionCallback or object):  # type: ignore[misc]
    """Called by Ray's scheduling loop, in its own thread, at each step."""

    def on_execution_step(self, executor: Any) -> None:
        """Empty the operators' lists of statistics."""
        for operator in getattr(executor, "_topology", None) or ():
            if kept := getattr(operator, "_output_blocks_stats", None):
                kept.clear()


def drop_block_statistics() -> None:
    """Let datasets that are created after this call keep no statistics of their blocks."""
    callbacks = getattr(ray.data.DataContext.get_current(), "custom_execution_callback_classes", None)
    if ExecutionCallback is None or callbacks is None:
        _LOG.warning("this version of Ray keeps statistics of every block; the driver needs more memory")
    elif _DropBlockStatistics not in callbacks:
        callbacks.append(_DropBlockStatistics)


def task_attempt() -> int:
    """Return which attempt of its task this process runs, from 1. A lost worker or node adds one, whatever its cause.

    Without Ray's private API each attempt counts as the first one.
    """
    if not ray.is_initialized():
        return 1
    count = getattr(global_worker.core_worker, "get_current_task_attempt_number", None)
    if count is None:
        _LOG.warning("this version of Ray does not tell attempts; a file that kills its worker can stall the job")
        return 1
    return int(count()) + 1


@contextmanager
def keep_sigterm_handler() -> Iterator[None]:
    """Keep ``ray.init`` from replacing the handler of SIGTERM by one that exits before Ray's processes are known."""
    replaced = getattr(ray._private.utils, "set_sigterm_handler", None)
    if replaced is None:
        yield
        return
    ray._private.utils.set_sigterm_handler = lambda _handler: None
    try:
        yield
    finally:
        ray._private.utils.set_sigterm_handler = replaced


class _OwnFolders(list[str]):
    """Folders on the module path of workers: of those that Ray adds, the ones that this process has on its own path."""

    def extend(self, folders: Iterable[str]) -> None:
        own = {Path(folder).absolute() for folder in sys.path}  # "" is the current folder
        super().extend(folder for folder in folders if Path(folder) in own)


def job_config() -> JobConfig:
    """Return the configuration of a driver whose workers look for modules only where this process does."""
    config = JobConfig()
    if isinstance(getattr(config, "_py_driver_sys_path", None), list):
        config._py_driver_sys_path = _OwnFolders()
    else:
        _LOG.warning(
            "this version of Ray may import modules from the current folder; start from a folder that you trust"
        )
    return config
