"""The only place that retries: exponential backoff with jitter, within one time budget for each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import stamina

from .base import Unavailable

__all__ = ["RETRY_BUDGET_S", "retry", "retry_count"]

RETRY_BUDGET_S = 25.0
"""Seconds in which one request is retried; the last wait, and the last attempt up to its own time-out, are added."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_retries = 0


def retry(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what ``call`` returns; call it again after `Unavailable`, until `RETRY_BUDGET_S` has passed.

    The host's instrumentation of stamina sees the retries; by default they are logged.
    """
    global _retries
    for attempt in stamina.retry_context(Unavailable, attempts=None, timeout=RETRY_BUDGET_S, wait_max=5.0):
        with attempt:
            _retries += attempt.num > 1
            return call(*args, **kwargs)
    raise AssertionError("a retry context ends with a result or an error")


def retry_count() -> int:
    """Return how many requests this process has retried so far."""
    return _retries
