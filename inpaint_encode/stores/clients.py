"""What the clients of all buckets share: obstore's options, and the translation of errors."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import botocore.exceptions as aws
import obstore.exceptions as obs
from botocore.parsers import ResponseParserError

from .base import ANSWER_S, CONNECT_S, READ_S, Conflict, TooLarge, Unavailable
from .redaction import redacted

_CLIENT_ERRORS = (obs.BaseError, aws.BotoCoreError, aws.ClientError, ResponseParserError)
_DENIED = (PermissionError, obs.PermissionDeniedError, obs.UnauthenticatedError)
_NO_CREDENTIALS = (aws.NoCredentialsError, aws.PartialCredentialsError, aws.ProfileNotFound)
_INVALID_NAME = (ValueError, obs.InvalidPathError, aws.ParamValidationError)
_TRANSIENT = {408, 409, 429, 500, 502, 503, 504}
_TRANSIENT_CODES = {"RequestTimeout", "IncompleteBody", "SlowDown"}
"""Transient with any status, such as 400."""
_DENIED_CODES = {"ExpiredToken", "InvalidToken"}


class RangeNotSatisfiable(OSError):
    """The object ends before the range starts."""


def obstore_options(endpoint: str | None) -> dict[str, Any]:
    """Return the options of every obstore client: time-outs, and no retries."""
    return {
        "client_options": {
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=CONNECT_S),
            "read_timeout": timedelta(seconds=ANSWER_S),
            "timeout": timedelta(seconds=READ_S),
        },
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
    }


@contextmanager
def translate_errors() -> Iterator[None]:
    """Raise the errors of obstore, botocore and s3fs as those that `storage` documents."""
    try:
        yield
    except TooLarge:
        raise
    except (*_CLIENT_ERRORS, OSError, ValueError) as error:
        raise _translated(error) from error


def _translated(error: Exception) -> Exception:
    status, code, message = _answer(error)
    line = " ".join(f"the store answered {status} {code} {message}".split()) if status else _first_line(error)
    line = redacted(line)
    if isinstance(error, FileNotFoundError | obs.NotFoundError) or status == 404:
        return FileNotFoundError(errno.ENOENT, line)
    if isinstance(error, _DENIED + _NO_CREDENTIALS) or status in {401, 403} or code in _DENIED_CODES:
        return PermissionError(errno.EACCES, line)
    if status == 412:
        return Conflict(line)
    if status == 416:
        return RangeNotSatisfiable(errno.EINVAL, line)
    transient = not status or status in _TRANSIENT or code in _TRANSIENT_CODES
    if isinstance(error, _INVALID_NAME) or not transient:
        return OSError(errno.EINVAL, line)
    return Unavailable(errno.EIO, line)


def _answer(error: Exception) -> tuple[int, str, str]:
    """Return the store's status, error code and message; 0 and empty strings if there was no answer."""
    parsed = getattr(error if isinstance(error, aws.ClientError) else error.__cause__, "response", None)
    if parsed:  # botocore's, which s3fs raises its errors from
        details = parsed.get("Error", {})
        status = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return int(status), details.get("Code", ""), details.get("Message", "")
    text = str(error)  # obstore has the answer only in its text
    found = [re.search(pattern, text) for pattern in (r"status code: (\d{3})", "<Code>(.*?)<", "<Message>(.*?)<")]
    status, code, message = (match[1] if match else "" for match in found)
    return int(status or 0), code, message


def _first_line(error: Exception) -> str:
    """Return the error's text without obstore's debug output."""
    line = " ".join(str(error).partition("\n\nDebug source")[0].split())
    return line or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
