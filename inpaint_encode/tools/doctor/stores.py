"""Checks of sources and output, by the same calls that a job makes."""

from __future__ import annotations

import contextlib
import errno
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.filesize import decimal

from inpaint_encode.stores import s3, storage
from inpaint_encode.stores.redaction import check_credentials

from .findings import Finding, ok, problem, warning
from .machine import check_disk

PROBE_PREFIX = "_doctor-"
"""Prefix of the folder for the object that `check_output` writes. Readers skip names that begin with ``_``.

The folder is new, so that one request lists it, however large the output is.
"""

_READ_BYTES = 2**16
"""Bytes to read of an object."""

_MAX_SKEW_S, _LARGE_SKEW_S = 15 * 60, 60
"""Seconds. S3 rejects signatures whose time differs by more than the first."""


def check_stores(sources: Iterable[str], output: str) -> Iterator[Finding]:
    """Check S3's credentials and server if a URI needs them, then each source and the output."""
    sources = list(sources)
    yield from _check_variables()
    on_s3 = [uri for uri in (*sources, output) if uri.startswith("s3://")]
    if on_s3:
        access = [_check_credentials(), _check_server(on_s3[0])]
        yield from access
        if any(finding.level == "problem" for finding in access):
            sources = [uri for uri in sources if uri not in on_s3]
            output = "" if output in on_s3 else output
    for uri in sources:
        yield check_source(uri)
    if output:
        yield from check_output(output)


def _check_variables() -> Iterator[Finding]:
    """Yield a problem for each provider with a credential variable that has a control character."""
    for provider in ("AWS_", "AZURE_", "GOOGLE_", "HF_", "HUGGING_FACE_"):
        try:
            check_credentials(provider)
        except PermissionError as error:
            yield problem("credentials", str(error.strerror), "correct the variable, or unset it")


def _check_credentials() -> Finding:
    advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
    try:
        provider = s3.credentials_from()
    except PermissionError as error:
        return problem("credentials", f"they cannot be used: {error.strerror}", advice)
    if provider:
        return ok("credentials", f"found in: {provider}")
    return warning("credentials", "none; only public buckets can be read, and nothing can be written", advice)


def _check_server(uri: str) -> Finding:
    """Check that the server of a bucket answers, and compare this machine's clock with its time in whole seconds."""
    start = time.monotonic()
    try:
        server_time = s3.server_time(uri)
    except OSError as error:
        advice = "set AWS_ENDPOINT_URL, or unset it for AWS; check AWS_REGION and the network"
        return problem("S3 server", f"{s3.server()} does not answer ({error.strerror or error})", advice)
    seconds = time.monotonic() - start
    skew = (datetime.now(UTC) - server_time).total_seconds()
    error_s = max(0.0, abs(skew) - 1 - seconds)
    wrong = f"this machine's clock is {error_s:,.0f} s {'ahead' if skew > 0 else 'behind'}"
    found = f"{s3.server()} answers in {seconds * 1000:,.0f} ms; {wrong if error_s else 'clocks agree'}"
    if error_s >= _MAX_SKEW_S:
        return problem(
            "S3 server",
            found,
            "synchronise this machine's clock (NTP): S3 rejects requests if the clocks differ by 15 minutes",
        )
    if error_s >= _LARGE_SKEW_S:
        return warning("S3 server", found, "synchronise this machine's clock (NTP), before it differs by 15 minutes")
    return ok("S3 server", found)


def check_source(uri: str) -> Finding:
    """List a prefix and read the start of one object; a single file, and anything over HTTP, is only read."""
    try:
        place = storage.normalize_uri(uri, storage.READABLE)
    except ValueError as error:
        return problem(uri, str(error), "give an s3://, gs:// or http(s):// URI, or a path")
    is_http = place.startswith("http")
    start = time.monotonic()
    try:
        listed = None if is_http else next((page for page in storage.list_objects(place) if page.paths), None)
        listing_ms = (time.monotonic() - start) * 1000
        if listed:
            found = f"listed, the first page ({len(listed.paths):,}) in {listing_ms:,.0f} ms"
            place = storage.join(place, max(zip(listed.sizes, listed.paths, strict=True))[1])
        elif "://" not in place and Path(place).is_dir():
            raise FileNotFoundError(errno.ENOENT, "the folder is empty")
        else:
            # A job asks for the sizes of Parquet files and tars only. A URL that is signed for GET does not allow HEAD.
            has_size = not is_http or place.endswith((".parquet", ".tar"))
            found = f"an object of {decimal(storage.stat(place).size)}" if has_size else "an object"
        start = time.monotonic()
        data, _ = storage.read_range(place, 0, _READ_BYTES)
    except OSError as error:
        return _store_problem(uri, error, "read")
    return ok(uri, f"{found}; {decimal(len(data))} read in {(time.monotonic() - start) * 1000:,.0f} ms")


def _store_problem(uri: str, error: OSError, action: str) -> Finding:
    """Return the problem of a source or output; ``action`` is ``read`` or ``written``."""
    if isinstance(error, FileNotFoundError):
        advice = "check the spelling, and for a bucket AWS_ENDPOINT_URL and AWS_REGION"
    elif isinstance(error, PermissionError) and action == "read":
        advice = "allow these credentials to list and read it; for a public bucket, give encode --anonymous"
    elif isinstance(error, PermissionError):
        advice = "allow these credentials to list, write and delete there"
    else:
        advice = "check AWS_ENDPOINT_URL, AWS_REGION and the network; on a disk, check that it exists and is not full"
    return problem(uri, f"cannot be {action} ({error.strerror or error})", advice)


def check_output(uri: str) -> Iterator[Finding]:
    """Write a small object to the output, check that the store keeps conditions on writes, and delete the object."""
    try:
        place = storage.normalize_uri(uri)
    except ValueError as error:
        yield problem(uri, str(error), "give --output an s3:// URI or a path")
        return
    if "://" not in place:
        yield check_disk("output's disk", Path(place), "--output")
    probe = storage.join(place, f"{PROBE_PREFIX}{uuid.uuid4().hex}", "probe")
    new_folders = [] if "://" in probe else [folder for folder in Path(probe).parents if not folder.exists()]
    start = time.monotonic()
    try:
        if violations := "; ".join(_violations(probe)):
            advice = "use AWS S3, another store with conditional writes, or a disk: two runs could overwrite each other"
            finding = problem(uri, violations, advice)
        else:
            ms = (time.monotonic() - start) * 1000
            found = "conditional writes work; a test object was written, replaced, read, listed and deleted"
            finding = ok(uri, f"{found} in {ms:,.0f} ms")
    except OSError as error:
        finding = _store_problem(uri, error, "written")
    finally:
        removed = _remove(probe, new_folders)
    left = "" if removed else f"; {probe} could not be deleted: delete it yourself"
    yield finding._replace(found=f"{finding.found}{left}")


def _violations(probe: str) -> Iterator[str]:
    """Yield each guarantee of `inpaint_encode.stores.storage` that the store does not keep; exactly-once needs all.

    Lists first: some servers create a missing bucket when an object is written.
    """
    folder, _, name = probe.rpartition("/")
    next(storage.list_objects(folder), None)
    version = storage.write_once(probe, b"1")
    if _writes(probe, b"2", storage.ABSENT):
        yield "the store ignores If-None-Match: an existing object was overwritten"
        version = storage.stat(probe).version
    if _writes(probe, b"33", '"00000000000000000000000000000000"'):
        yield "the store ignores If-Match: another version was overwritten"
        version = storage.stat(probe).version
    if not _writes(probe, b"4444", version):
        yield "If-Match does not accept the version that the store returned"
    elif storage.read(probe).data != b"4444":
        yield "a read does not return the last write"
    if not any(name in page.paths for page in storage.list_objects(folder)):
        yield "a new object is not listed"
    storage.delete(probe)
    with contextlib.suppress(FileNotFoundError):
        storage.stat(probe)
        yield "a deleted object still exists"


def _writes(probe: str, data: bytes, expect: str) -> bool:
    """Return whether the store accepts a conditional write."""
    try:
        storage.write_once(probe, data, expect=expect)
    except storage.Conflict:
        return False
    return True


def _remove(probe: str, new_folders: list[Path]) -> bool:
    """Delete the object and the folders that were created for it; return whether the object is gone."""
    try:
        storage.delete(probe)
    except OSError:
        with contextlib.suppress(OSError):
            storage.stat(probe)
            return False
    for folder in new_folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return True
