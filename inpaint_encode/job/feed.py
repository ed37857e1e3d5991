"""Feeds chunks into a running pipeline while the plan grows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from inpaint_encode.sources.signatures import find_signed

_STOP_S = 10.0
"""Seconds to wait for the thread at the end. A listing may take longer; what it still plans is valid."""


@ray.remote(num_cpus=0)
class WorkQueue:
    """Tables of work, in order. An actor, so that the task that reads it can start again from the first table."""

    def __init__(self) -> None:
        self._tables: list[pa.Table] = []
        self._closed = False
        self._changed = asyncio.Condition()

    async def add(self, table: pa.Table) -> None:
        """Add a table."""
        async with self._changed:
            self._tables.append(table)
            self._changed.notify_all()

    async def find_signed(self, path: str, urls: list[str]) -> dict[str, str]:
        """Return the signed forms of URLs, see `inpaint_encode.sources.signatures`."""
        return find_signed(path, urls)

    async def close(self) -> None:
        """End the queue; no table is added any more."""
        async with self._changed:
            self._closed = True
            self._changed.notify_all()

    async def get(self, index: int) -> pa.Table | None:
        """Return a table as soon as it is there; None behind the last one of a closed queue."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or index < len(self._tables))
            return self._tables[index] if index < len(self._tables) else None


def ask_for_signed(urls: list[str], *, queue: Any, path: str) -> dict[str, str]:
    """Ask the driver's node for the signed forms of URLs, in a task."""
    found: dict[str, str] = ray.get(queue.find_signed.remote(path, urls))
    return found


def read_queue(_row: pa.Table, *, queue: Any) -> Iterator[pa.Table]:
    """Yield the work of a `WorkQueue` row by row, until the queue is closed."""
    index = 0
    while (table := ray.get(queue.get.remote(index))) is not None:
        for row in range(table.num_rows):
            yield table.slice(row, 1)
        index += 1


def read_work(queue: Any) -> ray.data.Dataset:
    """Return the rows of a `WorkQueue`, each as soon as it is planned."""
    dataset = ray.data.from_arrow(pa.table({"queue": [0]})).map_batches(
        read_queue,
        fn_kwargs={"queue": queue},
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=0,
        label_selector={"ray.io/node-id": ray.get_runtime_context().get_node_id()},
    )
    # Ray collects the rows of a generator into blocks of this size, so that one byte means one row. The stages of a
    # pipeline return one row each anyway.
    dataset.context.target_max_block_size = 1
    return dataset


class WorkFeed:
    """Moves work from an iterator into a `WorkQueue`, in a thread.

    Args:
        first: the first table.
        work: the further tables; iterated in the thread.
        stopped: set when no further work is wanted.
    """

    def __init__(self, first: pa.Table, work: Iterator[pa.Table], stopped: threading.Event) -> None:
        self.error: BaseException | None = None
        """What ended the iterator early."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.queue = WorkQueue.options(  # type: ignore[attr-defined]
            scheduling_strategy=here
        ).remote()
        self._first, self._work = first, work
        self._stopped = stopped
        self._thread = threading.Thread(target=self._run, name="planning", daemon=True)

    def __enter__(self) -> WorkFeed:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(_STOP_S)

    def raise_error(self) -> None:
        """Raise what ended the iterator early, if anything did."""
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            table: pa.Table | None = self._first
            while table is not None and not self._stopped.is_set():
                ray.get(self.queue.add.remote(table))
                table = next(self._work, None)
        except BaseException as error:
            self.error = error
        finally:
            self.queue.close.remote()
