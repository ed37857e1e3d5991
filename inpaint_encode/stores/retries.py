"""The only place that retries: exponential backoff with jitter, within one time budget for each request.

The loop is our own because stamina's hooks and switches are global: they belong to the host process.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from .base import Unavailable

__all__ = ["RETRY_BUDGET_S", "retry", "retry_count"]

RETRY_BUDGET_S = 25.0
"""Seconds in which one request is retried; the last wait, and the last attempt up to its own time-out, are added."""

_FIRST_WAIT_S, _MAX_WAIT_S, _JITTER_S = 0.1, 5.0, 1.0

_P = ParamSpec("_P")
_T = TypeVar("_T")

_retries = 0


def retry(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what ``call`` returns; call it again after `Unavailable`, until `RETRY_BUDGET_S` has passed."""
    global _retries
    start, wait = time.monotonic(), _FIRST_WAIT_S
    while True:
        try:
            return call(*args, **kwargs)
        except Unavailable:
            if time.monotonic() - start >= RETRY_BUDGET_S:
                raise
        time.sleep(min(wait + random.uniform(0, _JITTER_S), _MAX_WAIT_S))  # noqa: S311
        wait *= 2
        _retries += 1


def retry_count() -> int:
    """Return how many requests this process has retried so far."""
    return _retries
