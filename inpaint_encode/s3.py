"""S3 and what speaks like it: obstore for reads and listings, s3fs for writes and deletes.

obstore costs a tenth of s3fs's CPU time a read. Both take credentials from botocore's usual chain (environment,
profiles, web identity, instance role) and the endpoint from ``AWS_ENDPOINT_URL``, and neither retries by
itself: `inpaint_encode.storage` does, within one budget.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import botocore.session
import obstore
import s3fs
from botocore.exceptions import BotoCoreError, NoCredentialsError
from obstore.exceptions import GenericError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from .storage import ABSENT, Blob, Conflict, Listed, Unavailable

__all__ = ["delete", "list_page", "read", "write"]

_PAGE = 1_000  # what S3 gives in one answer
_CONNECT_S = 5
_ANSWER_S = 20
_TRANSIENT = {errno.EBUSY, errno.EIO, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE, errno.ECONNREFUSED}


def list_page(prefix: str, after: str | None) -> Listed | None:
    """Return the next objects under ``prefix``, in the order of their paths, from ``after`` on; None at the end."""
    bucket, path = _split(prefix)
    below = f"{path}/" if path else ""
    offset = None if after is None else below + after
    with _named_errors():
        stream = obstore.list(_store(bucket), below or None, offset=offset, chunk_size=_PAGE)
        page = next(iter(stream), None)
    if page is None:
        return None
    return Listed(
        paths=[entry["path"][len(below) :] for entry in page],
        sizes=[entry["size"] for entry in page],
        versions=[entry["e_tag"] or "" for entry in page],
    )


def read(uri: str) -> Blob:
    """See `inpaint_encode.storage.read`."""
    bucket, path = _split(uri)
    with _named_errors():
        answer = obstore.get(_store(bucket), path)
        return Blob(bytes(answer.bytes()), answer.meta["e_tag"] or "")


def write(uri: str, data: bytes, expect: str | None) -> str:
    """See `inpaint_encode.storage.write`; one PUT whatever the size, up to the store's limit of 5 GB."""
    condition = {} if not expect else {"IfMatch": expect}
    mode = "create" if expect == ABSENT else "overwrite"
    path = uri.removeprefix("s3://")
    with _named_errors():
        answer = _s3fs().pipe_file(path, data, chunksize=len(data) + 1, mode=mode, **condition)
        return str(answer["ETag"])


def delete(uri: str) -> None:
    """See `inpaint_encode.storage.delete`."""
    with contextlib.suppress(FileNotFoundError), _named_errors():
        _s3fs().rm_file(uri.removeprefix("s3://"))


def _split(uri: str) -> tuple[str, str]:
    bucket, _, path = uri.removeprefix("s3://").partition("/")
    return bucket, path


@lru_cache
def _session() -> botocore.session.Session:
    return botocore.session.get_session()


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@lru_cache
def _store(bucket: str) -> S3Store:
    endpoint = _endpoint()
    known = _session().get_credentials() is not None
    return S3Store(
        bucket,
        region=_session().get_config_variable("region") or "us-east-1",
        skip_signature=not known,
        credential_provider=_credentials if known else None,
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "timeout": timedelta(seconds=_ANSWER_S),
        },
        retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
        **({"endpoint": endpoint} if endpoint else {}),
    )


def _credentials() -> Any:
    """What obstore asks for whenever the last answer has expired; botocore refreshes what it must."""
    credentials = _session().get_credentials()
    if credentials is None:
        raise PermissionError("the credentials are gone from the environment")
    frozen = credentials.get_frozen_credentials()
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + timedelta(minutes=5),
    }


@lru_cache
def _s3fs() -> s3fs.S3FileSystem:
    timeouts = {
        "connect_timeout": _CONNECT_S,
        "read_timeout": _ANSWER_S,
        "retries": {"total_max_attempts": 1},
    }
    anonymous = _session().get_credentials() is None
    files = s3fs.S3FileSystem(anon=anonymous, endpoint_url=_endpoint(), config_kwargs=timeouts)
    files.retries = 1
    return files


@contextmanager
def _named_errors() -> Iterator[None]:
    """Both clients' errors, as the ones that `inpaint_encode.storage` promises."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, _first_line(error)) from error
    except (PermissionDeniedError, UnauthenticatedError, NoCredentialsError) as error:
        raise PermissionError(errno.EACCES, _first_line(error)) from error
    except GenericError as error:
        raise _from_status(error) from error
    except (TimeoutError, BotoCoreError, ConnectionError) as error:
        raise Unavailable(errno.EIO, _first_line(error)) from error
    except OSError as error:
        raise _from_errno(error) from error


def _from_status(error: GenericError) -> OSError:
    """A 4xx other than time-out, conflict and slow-down will not pass by waiting."""
    status = re.search(r"status code: (\d{3})", str(error))
    code = status[1] if status else ""
    if code == "404":
        return FileNotFoundError(errno.ENOENT, _first_line(error))
    if code in {"401", "403"}:
        return PermissionError(errno.EACCES, _first_line(error))
    if code.startswith(("3", "4")) and code not in {"408", "409", "429"}:
        return OSError(errno.EINVAL, _first_line(error))
    return Unavailable(errno.EIO, _first_line(error))


def _from_errno(error: OSError) -> Exception:
    if isinstance(error, PermissionError | Unavailable):
        return error
    if "pre-conditions" in str(error) or "ConditionalRequestConflict" in str(error):
        return Conflict(str(error))
    return Unavailable(errno.EIO, _first_line(error)) if error.errno in _TRANSIENT else error


def _first_line(error: BaseException) -> str:
    """The part of a client's many-lined error that a person needs."""
    line = (str(error) or type(error).__name__).splitlines()[0]
    answer = re.search(r"status code: (\d{3}[^:]*)", line)
    return f"the store answered {answer[1]}" if answer else line
