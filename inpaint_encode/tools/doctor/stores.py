"""Checks of what a job reads and writes: each URI is tried by the calls that a job makes."""

from __future__ import annotations

import contextlib
import errno
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from rich.filesize import decimal

from inpaint_encode.stores import storage

from .finding import Finding, ok, problem, warning
from .machine import check_disk

__all__ = ["PROBE", "check_clock", "check_output", "check_source", "stores"]

PROBE = "_doctor-"
"""How the name of the folder begins in which an object is for a moment; readers skip what begins with ``_``.

In a folder of its own it is listed by one request, whatever else the output holds.
"""

_PIECE = 2**16
"""Bytes that are read of an object."""

_SKEW_S, _LATE_S = 15 * 60, 60
"""Seconds: S3 refuses a signature whose time is farther from its own than the first."""


def stores(sources: Iterable[str], output: str) -> Iterator[Finding]:
    """All checks of the sources, and of the output if there is one."""
    sources = list(sources)
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


def _check_credentials() -> Finding:
    from inpaint_encode.stores import s3

    advice = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role"
    try:
        how = s3.credentials_from()
    except PermissionError as error:
        return problem("credentials", str(error.strerror), advice)
    if how:
        return ok("credentials", f"found by {how}")
    return warning("credentials", "there are none: only public buckets can be read, and none written", advice)


def _check_server(uri: str) -> Finding:
    from inpaint_encode.stores import s3

    begun = time.monotonic()
    try:
        told = s3.server_time(uri)
    except OSError as error:
        advice = "set AWS_ENDPOINT_URL, or unset it for AWS; check AWS_REGION and the network"
        return problem("S3 server", f"{s3.server()}: {error.strerror or error}", advice)
    return check_clock(s3.server(), told, datetime.now(UTC), time.monotonic() - begun)


def check_clock(server: str, told: datetime, now: datetime, seconds: float) -> Finding:
    """Hold the server's clock, which tells whole seconds, against this machine's."""
    skew = (now - told).total_seconds()
    late = max(0.0, abs(skew) - 1 - seconds)
    found = f"{server} answers in {seconds * 1000:,.0f} ms; "
    found += f"this clock is {late:,.0f} s {'ahead' if skew > 0 else 'behind'}" if late else "the clocks agree"
    if late >= _SKEW_S:
        return problem("S3 server", found, "set this machine's clock, by NTP: S3 refuses signatures 15 minutes off")
    if late >= _LATE_S:
        return warning("S3 server", found, "set this machine's clock, by NTP, before it is 15 minutes off")
    return ok("S3 server", found)


def check_source(uri: str) -> Finding:
    """List what is below a URI, and read the start of one object; of a file, and over HTTP, only the latter."""
    try:
        place = storage.normalize_uri(uri, storage.READABLE)
    except ValueError as error:
        return problem(uri, str(error), "give an s3://, gs:// or http(s):// URI, or a path")
    try:
        return _tried_source(uri, place)
    except OSError as error:
        return _refused(uri, error, "read")


def _tried_source(uri: str, place: str) -> Finding:
    begun = time.monotonic()
    listed = next((page for page in _pages(place) if page.paths), None)
    listing_s = time.monotonic() - begun
    if listed is None:
        if "://" not in place and Path(place).is_dir():
            raise FileNotFoundError(errno.ENOENT, "the folder is empty")
        size = f" of {decimal(storage.stat(place).size)}" if _is_asked_for_its_size(place) else ""
        said, path = f"an object{size}", place
    else:
        said = f"listed, the first {len(listed.paths):,} objects in {listing_s * 1000:,.0f} ms"
        path = storage.join(place, max(zip(listed.sizes, listed.paths, strict=True))[1])
    begun = time.monotonic()
    data, _ = storage.read_range(path, 0, _PIECE)
    return ok(uri, f"{said}; {decimal(len(data))} read in {(time.monotonic() - begun) * 1000:,.0f} ms")


def _pages(place: str) -> Iterator[storage.Listed]:
    return iter(()) if place.startswith("http") else storage.list_objects(place)


def _is_asked_for_its_size(place: str) -> bool:
    """Behind HTTP only what is read by ranges: a URL that is signed for GET gives an image, and not its size."""
    return not place.startswith("http") or place.endswith((".parquet", ".tar"))


def _refused(uri: str, error: OSError, verb: str) -> Finding:
    found = f"cannot be {verb}: {error.strerror or error}"
    if isinstance(error, FileNotFoundError):
        advice = "check the spelling, and for a bucket AWS_ENDPOINT_URL and AWS_REGION"
    elif isinstance(error, PermissionError):
        advice = f"let these credentials list and {verb.replace('written', 'write and delete')} there"
        advice += "; of a public bucket, encode reads with --anonymous" if verb == "read" else ""
    else:
        advice = "check AWS_ENDPOINT_URL, AWS_REGION and the network; on a disk, that it is there and not full"
    return problem(uri, found, advice)


def check_output(uri: str) -> Iterator[Finding]:
    """Write a small object where a job would write, replace it, hold the store to its conditions, and delete it."""
    try:
        place = storage.normalize_uri(uri)
    except ValueError as error:
        yield problem(uri, str(error), "give --output an s3:// URI or a path")
        return
    if "://" not in place:
        yield check_disk("output's disk", Path(place), "--output")
    probe = storage.join(place, f"{PROBE}{uuid.uuid4().hex}", "probe")
    made = _missing_folders(probe)
    begun, refusal = time.monotonic(), None
    try:
        broken = list(_broken_promises(probe))
    except OSError as error:
        refusal = _refused(uri, error, "written")
    finally:
        gone = _leave_nothing(probe, made)
    if refusal:
        yield refusal if gone else refusal._replace(found=f"{refusal.found}; {probe} is left there, remove it")
    elif broken:
        advice = "write to a store that keeps conditions, such as AWS S3, or to a disk: two runs may spoil each other"
        yield problem(uri, "; ".join(broken), advice)
    else:
        ms = (time.monotonic() - begun) * 1000
        yield ok(uri, f"written, replaced, read, listed and deleted under conditions, in {ms:,.0f} ms")


def _broken_promises(probe: str) -> Iterator[str]:
    """What of the promises of `inpaint_encode.stores.storage` the store does not keep; exactly-once rests on each.

    It is listed first: some servers make a bucket that is not there when something is written to it.
    """
    folder, _, name = probe.rpartition("/")
    next(storage.list_objects(folder), None)
    version = storage.write(probe, b"1", expect=storage.ABSENT)
    if _passes(lambda: storage.write(probe, b"2", expect=storage.ABSENT)):
        yield "it ignores If-None-Match: an object that is there was written over"
        version = storage.stat(probe).version
    if _passes(lambda: storage.write(probe, b"33", expect='"00000000000000000000000000000000"')):
        yield "it ignores If-Match: another version was written over"
        version = storage.stat(probe).version
    try:
        storage.write(probe, b"4444", expect=version)
    except storage.Conflict:
        yield "it does not know the version that it gave"
    else:
        if storage.read(probe).data != b"4444":
            yield "what was read is not what was written last"
    if not any(name in page.paths for page in storage.list_objects(folder)):
        yield "what was written is not listed"
    storage.delete(probe)
    with contextlib.suppress(FileNotFoundError):
        storage.stat(probe)
        yield "what was deleted is still there"


def _passes(write: Callable[[], str]) -> bool:
    """Whether a write is done that should be refused."""
    try:
        write()
    except storage.Conflict:
        return False
    return True


def _missing_folders(probe: str) -> list[Path]:
    """Of a path on a disk, the folders that a write will make, the innermost first."""
    return [] if "://" in probe else [folder for folder in Path(probe).parents if not folder.exists()]


def _leave_nothing(probe: str, made: list[Path]) -> bool:
    """Remove the object and the folders that were made for it; return whether that is so."""
    try:
        storage.delete(probe)
    except OSError:
        with contextlib.suppress(OSError):
            storage.stat(probe)
            return False
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return True
