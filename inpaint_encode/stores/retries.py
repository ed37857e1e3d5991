"""The only place that retries: exponential backoff with jitter, within one time budget for each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential_jitter

from .base import Unavailable

RETRY_BUDGET_S = 25.0
"""Seconds in which one request is retried; the last wait, and the last attempt up to its own time-out, are added."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_retries = 0


def retry(call: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """Return what ``call`` returns; call it again after `Unavailable`, until `RETRY_BUDGET_S` has passed."""
    retrying = Retrying(
        retry=retry_if_exception_type(Unavailable),
        stop=stop_after_delay(RETRY_BUDGET_S),
        wait=wait_exponential_jitter(initial=0.1, max=5.0, jitter=1.0),
        before_sleep=_count,
        reraise=True,
    )
    return retrying(call, *args, **kwargs)


def _count(_state: RetryCallState) -> None:
    global _retries
    _retries += 1


def retry_count() -> int:
    """Return how many requests this process has retried so far."""
    return _retries
