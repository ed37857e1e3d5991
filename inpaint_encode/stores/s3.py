"""S3 and compatible servers: credentials, clients, and writes.

All clients take their credentials from botocore's chain (environment, profiles, web identity, instance role) and their
endpoint from ``AWS_ENDPOINT_URL``. None retries, except that s3fs repeats a request once if its connection breaks.
"""

from __future__ import annotations

import contextlib
import errno
import os
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any

import botocore.session
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError
from obstore.store import S3Store

from .base import ABSENT, ANSWER_S, CONNECT_S, DEFAULT_ACCESS, Access, Conflict
from .clients import obstore_options, translate_errors
from .redaction import check_credentials, remember_secret

_CALL_S = 2 * (CONNECT_S + ANSWER_S)
"""Time-out in seconds for a call of s3fs, which may send its request twice."""
_MIN_UPLOAD_RATE = 2**17
"""Bytes a second; a write may take ``_CALL_S`` plus its size over this rate. s3fs has no time-out while it sends."""


@lru_cache
def connect(bucket: str, access: Access = DEFAULT_ACCESS) -> S3Store:
    """Return obstore's client of a bucket."""
    endpoint = access.endpoint_url or _endpoint()
    signed = not access.anonymous and _find_credentials() is not None
    return S3Store(
        bucket,
        region=_region(),
        skip_signature=not signed,
        credential_provider=_credentials if signed else None,
        **obstore_options(endpoint),
        **({"request_payer": True} if access.requester_pays else {}),
        **({"endpoint": endpoint} if endpoint else {}),
    )


@lru_cache
def botocore_client(access: Access) -> Any:
    """Return botocore's S3 client."""
    unsigned = access.anonymous or _find_credentials() is None
    config = Config(**_botocore_options(), **({"signature_version": UNSIGNED} if unsigned else {}))
    endpoint = access.endpoint_url or _endpoint()
    return _session().create_client("s3", endpoint_url=endpoint, region_name=_region(), config=config)


def request(operation: str, access: Access, **parameters: Any) -> dict[str, Any]:
    """Return botocore's answer to an operation, such as ``get_object``; raises botocore's errors."""
    payer = {"RequestPayer": "requester"} if access.requester_pays else {}
    answer: dict[str, Any] = getattr(botocore_client(access), operation)(**parameters, **payer)
    return answer


def write(uri: str, data: bytes, expect: str | None) -> str:
    """See `storage.write`. The object is one PUT of any size, up to the store's limit of 5 GB."""
    condition = {} if expect is None else {"IfNoneMatch": "*"} if expect == ABSENT else {"IfMatch": expect}
    seconds = _CALL_S + len(data) / _MIN_UPLOAD_RATE
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        with translate_errors():
            answer = _s3fs().call_s3("put_object", Bucket=bucket, Key=key, Body=data, timeout=seconds, **condition)
    except FileNotFoundError as error:
        if expect:  # AWS answers 404 to If-Match where others answer 412
            raise Conflict(f"{uri} no longer exists") from error
        raise
    if not answer.get("ETag"):
        raise OSError(errno.EINVAL, "the store returned no ETag, without which two writers can overwrite each other")
    return str(answer["ETag"])


def delete(uri: str) -> None:
    """See `storage.delete`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    with contextlib.suppress(FileNotFoundError), translate_errors():
        _s3fs().call_s3("delete_object", Bucket=bucket, Key=key, timeout=_CALL_S)


@translate_errors()
def credentials_from() -> str:
    """Return where botocore's chain found credentials, such as ``env`` or ``iam-role``; empty if it found none.

    Raises:
        PermissionError: the credentials are incomplete, have a control character, or the named profile does not exist.
    """
    found = _find_credentials()
    return str(found.method) if found else ""


def server() -> str:
    """Return the environment's endpoint, by default that of the AWS region."""
    return _endpoint() or f"https://s3.{_region()}.amazonaws.com"


@translate_errors()
def server_time(uri: str) -> datetime:
    """Return the time on the clock of a bucket's server, in whole seconds. The request is not retried.

    Raises:
        PermissionError: the credentials are incomplete.
        OSError: no server answers, or its answer has no date.
    """
    bucket = uri.removeprefix("s3://").partition("/")[0]
    try:
        answer = botocore_client(DEFAULT_ACCESS).head_bucket(Bucket=bucket)
    except ClientError as error:
        answer = error.response  # an error's answer has a date, too
    if date := answer["ResponseMetadata"]["HTTPHeaders"].get("date"):
        return parsedate_to_datetime(date)
    raise ValueError("the server's answer has no date")


def forget_clients() -> None:
    """Drop all clients: the next request makes new ones, from the environment as it is then."""
    for cached in (connect, botocore_client, _session, _s3fs):
        cached.cache_clear()


@lru_cache
def _session() -> botocore.session.Session:
    os.register_at_fork(after_in_child=forget_clients)  # connections belong to one process
    return botocore.session.get_session()


def _find_credentials() -> Any:
    """Return the credentials of botocore's chain, None if there are none; their values are never shown.

    Raises:
        PermissionError: a credential variable has a control character.
    """
    check_credentials("AWS_")
    found = _session().get_credentials()
    if found is not None and not hasattr(found, "refresh_needed"):  # these do not expire, and need no request
        remember_secret(found.secret_key, found.token)
    return found


def _botocore_options() -> dict[str, Any]:
    """Return botocore's options: time-outs, and a single attempt."""
    return {"connect_timeout": CONNECT_S, "read_timeout": ANSWER_S, "retries": {"total_max_attempts": 1}}


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _region() -> str:
    """Return the region. botocore itself ignores AWS_REGION, which all other SDKs of AWS use."""
    return os.environ.get("AWS_REGION") or _session().get_config_variable("region") or "us-east-1"


def _credentials() -> Any:
    """Return credentials for obstore, which asks again when they expire; botocore refreshes them if necessary."""
    credentials = _find_credentials()
    if credentials is None:
        raise PermissionError("the credentials were removed from the environment")
    frozen = credentials.get_frozen_credentials()
    remember_secret(frozen.secret_key, frozen.token)
    return {
        "access_key_id": frozen.access_key,
        "secret_access_key": frozen.secret_key,
        "token": frozen.token,
        "expires_at": datetime.now(UTC) + timedelta(minutes=5),
    }


@lru_cache
def _s3fs() -> Any:
    import s3fs  # not needed for reading

    files = s3fs.S3FileSystem(
        anon=_find_credentials() is None,
        endpoint_url=_endpoint(),
        client_kwargs={"region_name": _region()},
        config_kwargs=_botocore_options(),
        skip_instance_cache=True,
    )
    files.retries = 1
    return files
