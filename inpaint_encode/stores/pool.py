"""Many requests at a time: the one pool of threads for parts, receipts, rejects, footers and deletions."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

THREADS = 32
"""Requests at a time. Obstore and botocore wait outside of Python's lock."""

_T = TypeVar("_T")
_R = TypeVar("_R")


def map_concurrently(
    call: Callable[[_T], _R],
    items: Iterable[_T],
    threads: int = THREADS,
    ahead: int | None = None,
    on_end: Callable[[], None] | None = None,
) -> Generator[_R, None, None]:
    """Yield ``call(item)`` of each item, in order. At most ``ahead`` results wait, by default twice ``threads``.

    Args:
        call: runs in a thread of its own.
        items: are read as calls begin.
        threads: calls at a time.
        ahead: results that wait.
        on_end: is called before the running calls are waited for, at the end and after an error. Calls that wait for
            the caller must return then.

    Raises:
        Exception: what ``call`` raises, when its result is due; calls that have not begun are dropped.
    """
    waiting: deque[Future[_R]] = deque()
    wait = True
    pool = ThreadPoolExecutor(threads, thread_name_prefix="requests")
    try:
        for item in items:
            waiting.append(pool.submit(call, item))
            if len(waiting) >= (ahead or 2 * threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except GeneratorExit:
        wait = False  # the garbage collector may be what ends this, in a thread that other threads wait for
        raise
    finally:
        if on_end:
            on_end()
        pool.shutdown(wait=wait, cancel_futures=True)
