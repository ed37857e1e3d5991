"""S3 and what speaks like it: obstore for reads and listings, s3fs for writes and deletes.

obstore costs a tenth of s3fs's CPU time a read or listing. Both take credentials from botocore's usual chain
(environment, profiles, web identity, instance role) and the endpoint from ``AWS_ENDPOINT_URL``, and neither
retries by itself, but for s3fs's sending once more what a kept connection's end may have swallowed:
`inpaint_encode.stores.storage` does, within one budget. obstore reads and lists Google's buckets alike, with the
credentials that it finds in the environment. Its threads do not outlive a fork: a process that was forked after it was
used, as
torch's DataLoader workers are, reads by botocore instead.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, NamedTuple

import botocore.session
import obstore
import s3fs
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    ParamValidationError,
    PartialCredentialsError,
    ProfileNotFound,
)
from botocore.parsers import ResponseParserError
from obstore.exceptions import BaseError, InvalidPathError, NotFoundError, PermissionDeniedError, UnauthenticatedError
from obstore.store import GCSStore, S3Store

from inpaint_encode.settings import SourceAccess

from .storage import ABSENT, DIRECT, Blob, Conflict, Listed, Stat, Unavailable, refuse_more

__all__ = [
    "Listing",
    "credentials_from",
    "delete",
    "read",
    "read_range",
    "server",
    "server_time",
    "stat",
    "write",
]

_PAGE = 1_000  # what S3 gives in one answer
_CONNECT_S = 5
_ANSWER_S = 20
"""How long nothing may come."""
_READ_S = 300
_CALL_S = 2 * (_CONNECT_S + _ANSWER_S)
"""For a whole call of s3fs, which may send twice."""
_SLOWEST_WRITE = 2**17
"""Bytes a second, on top of that: s3fs has no time-out of its own while it sends."""

_DENIED = (
    PermissionError,
    PermissionDeniedError,
    UnauthenticatedError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
_READABLE = re.compile(r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+(?:/(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]+)*")
"""Keys that obstore takes: no segment is empty or a dot or two, and no character is a control."""
_WRONG = (ValueError, InvalidPathError, ParamValidationError)
"""What a client says to a name that it cannot send."""
_PASSING_STATUSES = {408, 409, 429, 500, 502, 503, 504}
_PASSING_CODES = {"RequestTimeout", "IncompleteBody", "SlowDown"}
"""May come with any status, such as 400."""
_DENIED_CODES = {"ExpiredToken", "InvalidToken"}


class Listing:
    """The objects under ``prefix``, page by page; after a fault it goes on from where it was.

    obstore tells a folder's marker, the empty object ``folder/``, without its slash, and a listing does not go
    on rightly from such a name. So a page ends with an object of some bytes. Where it meets a name that it refuses,
    botocore lists the rest, and such names are set apart: they could not be read either.
    """

    def __init__(self, prefix: str, access: SourceAccess) -> None:
        self._store, path = _opened(prefix, access)
        self._bucket, self._access, self._plainly = _split(prefix)[0], access, _forked
        self._below = f"{path}/" if path else ""
        self._after: str | None = None
        self._stream: Any = None
        self._kept: list[Any] = []

    def next_page(self) -> Listed | None:
        """Return the next objects, in the store's order; None at the end."""
        try:
            with _named_errors():
                return self._plain_page() if self._plainly else self._next_page()
        except OSError as error:
            self._stream, self._kept = None, []
            if not isinstance(error.__cause__, InvalidPathError) or isinstance(self._store, GCSStore):
                raise
            self._plainly = True
            return self.next_page()
        except BaseException:
            self._stream, self._kept = None, []
            raise

    def _next_page(self) -> Listed | None:
        if self._stream is None:
            below = self._below or None
            self._stream = obstore.list(self._store, below, offset=self._after, chunk_size=_PAGE)
        entries = self._kept
        for chunk in self._stream:
            entries = [*entries, *chunk]
            end = max((number for number, entry in enumerate(entries, 1) if entry["size"]), default=0)
            if end:
                self._after, self._kept = entries[end - 1]["path"], entries[end:]
                return self._listed(entries[:end])
        self._kept = []
        return self._listed(entries) if entries else None

    def _plain_page(self) -> Listed | None:
        wanted = {"Bucket": self._bucket, "Prefix": self._below, "MaxKeys": _PAGE}
        wanted |= {"StartAfter": self._after} if self._after else {}
        objects = _plainly("list_objects_v2", self._access, **wanted).get("Contents", [])
        if not objects:
            return None
        self._after = objects[-1]["Key"]
        about = [(one["Key"].removeprefix(self._below).removesuffix("/"), one) for one in objects]
        named = [(path, one) for path, one in about if path and _READABLE.fullmatch(path)]
        return Listed(
            paths=[path for path, _ in named],
            sizes=[one["Size"] for _, one in named],
            versions=[one.get("ETag", "") for _, one in named],
            unreadable=tuple(ascii(path) for path, _ in about if path and not _READABLE.fullmatch(path)),
        )

    def _listed(self, entries: list[Any]) -> Listed:
        entries = [entry for entry in entries if entry["path"].startswith(self._below)]  # not the prefix's marker
        return Listed(
            paths=[entry["path"][len(self._below) :] for entry in entries],
            sizes=[entry["size"] for entry in entries],
            versions=[entry["e_tag"] or "" for entry in entries],
        )


def read(uri: str, access: SourceAccess, at_most: int) -> Blob:
    """See `inpaint_encode.stores.storage.read`."""
    if _forked:
        return _read_plainly(uri, access, at_most)
    store, path = _opened(uri, access)
    with _named_errors():
        answer = obstore.get(store, path)
    refuse_more(answer.meta["size"], at_most)
    with _named_errors():
        return _blob(answer)


def read_range(uri: str, start: int, length: int, access: SourceAccess) -> Blob:
    """See `inpaint_encode.stores.storage.read_range`."""
    try:
        if _forked:
            return _read_plainly(uri, access, length, Range=f"bytes={start}-{start + length - 1}")
        store, path = _opened(uri, access)
        with _named_errors():
            return _blob(obstore.get(store, path, options={"range": (start, start + length)}))
    except OSError as error:
        if isinstance(error.__cause__, Exception) and _answer(error.__cause__).status == 416:
            return Blob(b"", "")  # how S3 says that an object is empty
        raise


def stat(uri: str, access: SourceAccess) -> Stat:
    """See `inpaint_encode.stores.storage.stat`."""
    with _named_errors():
        if _forked:
            answer = _plainly("head_object", access, **_object(uri))
            return Stat(answer["ContentLength"], answer.get("ETag", ""))
        store, path = _opened(uri, access)
        about = obstore.head(store, path)
        return Stat(about["size"], about["e_tag"] or "")


def _blob(answer: obstore.GetResult) -> Blob:
    return Blob(bytes(answer.bytes()), answer.meta["e_tag"] or "")


def _read_plainly(uri: str, access: SourceAccess, at_most: int, **wanted: str) -> Blob:
    with _named_errors():
        answer = _plainly("get_object", access, **_object(uri), **wanted)
    refuse_more(answer["ContentLength"], at_most)
    with _named_errors():
        return Blob(answer["Body"].read(), answer.get("ETag", ""))


def _object(uri: str) -> dict[str, str]:
    if uri.startswith("gs://"):
        raise ValueError(f"{uri} cannot be read in a process that was forked; start it with spawn or forkserver")
    bucket, path = _split(uri)
    return {"Bucket": bucket, "Key": path}


def _plainly(operation: str, access: SourceAccess, **wanted: Any) -> dict[str, Any]:
    """Ask by botocore, whose clients live in one thread."""
    if access.requester_pays:
        wanted["RequestPayer"] = "requester"
    try:
        answer: dict[str, Any] = getattr(_botocore(access), operation)(**wanted)
    except ClientError as error:
        raise OSError(str(error)) from error  # as s3fs does
    return answer


def write(uri: str, data: bytes, expect: str | None) -> str:
    """See `inpaint_encode.stores.storage.write`; one PUT whatever the size, up to the store's limit of 5 GB."""
    bucket, path = _split(uri)
    condition = {} if expect is None else {"IfNoneMatch": "*"} if expect == ABSENT else {"IfMatch": expect}
    seconds = _CALL_S + len(data) / _SLOWEST_WRITE
    try:
        with _named_errors():
            answer = _s3fs().call_s3("put_object", Bucket=bucket, Key=path, Body=data, timeout=seconds, **condition)
    except FileNotFoundError as error:
        if expect:
            raise Conflict(f"{uri} is not there any more") from error  # AWS answers 404 to If-Match, others 412
        raise
    if not answer.get("ETag"):
        raise OSError(errno.EINVAL, "the store tells no ETag, and without one nothing is safe from a second writer")
    return str(answer["ETag"])


def delete(uri: str) -> None:
    """See `inpaint_encode.stores.storage.delete`."""
    bucket, path = _split(uri)
    with contextlib.suppress(FileNotFoundError), _named_errors():
        _s3fs().call_s3("delete_object", Bucket=bucket, Key=path, timeout=_CALL_S)


def credentials_from() -> str:
    """Where botocore's chain found credentials, such as ``env`` or ``iam-role``; empty if it found none.

    Raises:
        PermissionError: they are there in part, or the profile that is named is not.
    """
    with _named_errors():
        found = _session().get_credentials()
        return str(found.method) if found else ""


def server() -> str:
    """The server that the environment says: of AWS, that of the region."""
    return _endpoint() or f"https://s3.{_region()}.amazonaws.com"


def server_time(uri: str) -> datetime:
    """What the store's clock says, to the second; asked once, and not again if there is no answer.

    Raises:
        PermissionError: the credentials are there in part.
        OSError: no server answers, or what answers tells no time.
    """
    with _named_errors():
        try:
            told = _botocore(DIRECT).head_bucket(Bucket=_split(uri)[0])["ResponseMetadata"]
        except ClientError as error:
            told = error.response["ResponseMetadata"]  # whatever the answer is, it has a date
        if date := told["HTTPHeaders"].get("date"):
            return parsedate_to_datetime(date)
        raise OSError(errno.EINVAL, "the server does not tell the time")


def _split(uri: str) -> tuple[str, str]:
    bucket, _, path = uri.partition("://")[2].partition("/")
    return bucket, path


def _opened(uri: str, access: SourceAccess) -> tuple[S3Store | GCSStore, str]:
    bucket, path = _split(uri)
    with _named_errors():  # credentials that are there in part, or a profile that is not
        return (_gcs_store if uri.startswith("gs://") else _store)(bucket, access), path


@lru_cache
def _session() -> botocore.session.Session:
    return botocore.session.get_session()


def _endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


def _region() -> str:
    """Botocore itself does not look at AWS_REGION, though every other SDK of AWS does."""
    return os.environ.get("AWS_REGION") or _session().get_config_variable("region") or "us-east-1"


@lru_cache
def _store(bucket: str, access: SourceAccess = DIRECT) -> S3Store:
    endpoint = access.endpoint_url or _endpoint()
    known = not access.anonymous and _session().get_credentials() is not None
    return S3Store(
        bucket,
        region=_region(),
        skip_signature=not known,
        credential_provider=_credentials if known else None,
        **_client_of(endpoint),
        **({"request_payer": True} if access.requester_pays else {}),
        **({"endpoint": endpoint} if endpoint else {}),
    )


@lru_cache
def _botocore(access: SourceAccess) -> Any:
    unsigned = access.anonymous or _session().get_credentials() is None
    config = Config(
        connect_timeout=_CONNECT_S,
        read_timeout=_ANSWER_S,
        retries={"total_max_attempts": 1},
        **({"signature_version": UNSIGNED} if unsigned else {}),
    )
    endpoint = access.endpoint_url or _endpoint()
    return _session().create_client("s3", endpoint_url=endpoint, region_name=_region(), config=config)


@lru_cache
def _gcs_store(bucket: str, access: SourceAccess) -> GCSStore:
    server = {"base_url": access.endpoint_url} if access.endpoint_url else {}
    return GCSStore(bucket, skip_signature=access.anonymous, **_client_of(access.endpoint_url), **server)


_forked = False
"""Whether this process is a copy of one that had used obstore, whose threads did not come along."""


def _after_fork() -> None:
    global _forked
    _forked = _forked or bool(_store.cache_info().currsize or _gcs_store.cache_info().currsize)
    for cached in (_session, _store, _gcs_store, _botocore, _s3fs):
        cached.cache_clear()


os.register_at_fork(after_in_child=_after_fork)


def _client_of(endpoint: str | None) -> dict[str, Any]:
    return {
        "client_options": {
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=_CONNECT_S),
            "read_timeout": timedelta(seconds=_ANSWER_S),
            "timeout": timedelta(seconds=_READ_S),
        },
        "retry_config": {"max_retries": 0, "retry_timeout": timedelta(seconds=1)},
    }


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
    files = s3fs.S3FileSystem(
        anon=anonymous,
        endpoint_url=_endpoint(),
        client_kwargs={"region_name": _region()},
        config_kwargs=timeouts,
        skip_instance_cache=True,
    )
    files.retries = 1
    return files


class _Answer(NamedTuple):
    """What the store answered; the status is 0 if it did not."""

    status: int
    code: str
    message: str


@contextmanager
def _named_errors() -> Iterator[None]:
    """Both clients' errors, as the ones that `inpaint_encode.stores.storage` promises."""
    try:
        yield
    except (BaseError, BotoCoreError, ResponseParserError, OSError, ValueError) as error:
        raise _named(error, _answer(error)) from error


def _named(error: Exception, answer: _Answer) -> Exception:
    """A 4xx other than time-out, conflict and slow-down will not pass by waiting."""
    line = _one_line(error, answer)
    if isinstance(error, FileNotFoundError | NotFoundError) or answer.status == 404:
        return FileNotFoundError(errno.ENOENT, line)
    if isinstance(error, _DENIED) or answer.status in {401, 403} or answer.code in _DENIED_CODES:
        return PermissionError(errno.EACCES, line)
    if answer.status == 412:
        return Conflict(line)
    passing = answer.status in _PASSING_STATUSES or answer.code in _PASSING_CODES
    if isinstance(error, _WRONG) or (answer.status and not passing):
        return OSError(errno.EINVAL, line)
    return Unavailable(errno.EIO, line)


def _answer(error: Exception) -> _Answer:
    """s3fs has what botocore parsed, as its error's cause; obstore has the answer in its error's text."""
    parsed = getattr(error.__cause__, "response", None)
    if parsed:
        told = parsed.get("Error", {})
        status = parsed.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return _Answer(int(status), told.get("Code", ""), told.get("Message", ""))
    text = str(error)
    found = [re.search(pattern, text) for pattern in (r"status code: (\d{3})", "<Code>(.*?)<", "<Message>(.*?)<")]
    status, code, message = (match[1] if match else "" for match in found)
    return _Answer(int(status or 0), code, message)


def _one_line(error: Exception, answer: _Answer) -> str:
    """The part of a client's many-lined error that a person needs."""
    if answer.status:
        return " ".join(f"the store answered {answer.status} {answer.code} {answer.message}".split())
    line = " ".join(str(error).partition("\n\nDebug source")[0].split())
    return line or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
