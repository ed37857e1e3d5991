"""The notes of an output: its small JSON files, and the JSON in the footers of its files.

A note may be damaged, or a stranger may have written it. Each is read with bounds and checked against its type. Notes
of the plan, of the index and of leases have their own modules, which use `read_parsed`, too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Annotated, Any, Generic, NamedTuple, TypedDict, TypeVar

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.json_files import convert_json, parse_object
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.schema import FOOTER_KEY
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access

MAX_NOTE_BYTES = 32_000_000
"""Largest note in bytes. Those of the largest outputs that were measured have about 4 MB."""

CHUNK_KEY = b"inpaint_encode.chunk"
"""Key of the JSON in a data file's metadata: its chunk and revision, the hash of its planned pairs, and its rejects."""

RESTORE_JOB = "restore it from a copy, such as the value of job in _report.json"
"""Advice for a damaged ``_job.json``."""

JobName = Annotated[str, re.compile("[0-9a-f]{8}")]
"""Random name of a job, with which the names of its files begin."""

Count = Annotated[int, range(2**62)]

_T = TypeVar("_T")


class DamagedNote(JobFailed):
    """A note is damaged; ``version`` is that of the file, ``reason`` what is wrong."""

    def __init__(self, uri: str, reason: str, advice: str, version: str) -> None:
        super().__init__(f"{uri} is damaged ({reason}); {advice}")
        self.reason, self.version = reason, version


class Parsed(NamedTuple, Generic[_T]):
    """The contents of a note, and the version of the file."""

    value: _T
    version: str


def read_parsed(uri: str, parse: Callable[[bytes], _T], advice: str) -> Parsed[_T]:
    """Read a note.

    Args:
        uri: of the file.
        parse: returns the contents, or raises ValueError.
        advice: what to do if the note is damaged.

    Raises:
        DamagedNote: it is damaged or too large.
        FileNotFoundError, PermissionError, OSError: from the store.
    """
    try:
        blob = storage.read(uri, max_bytes=MAX_NOTE_BYTES)
    except storage.TooLarge:
        size, version = storage.stat(uri)
        raise DamagedNote(uri, f"it has {size:,} bytes; at most {MAX_NOTE_BYTES:,} are read", advice, version) from None
    try:
        return Parsed(parse(blob.data), blob.version)
    except ValueError as error:
        raise DamagedNote(uri, str(error), advice, blob.version) from error


def check_no_links(output: str, *, recursive: bool = False) -> None:
    """Check that what a run writes and deletes in a folder is in this folder.

    Links to files are no danger: a run replaces or deletes the link itself.

    Args:
        output: an output, whose own folders begin with ``_``; or an export.
        recursive: whether the run writes to any subfolder.

    Raises:
        UsageError: a folder that the run would write to is a link.
    """
    for link in storage.linked_folders(output, recursive=recursive):
        if recursive or link.rpartition("/")[2].startswith("_"):
            raise UsageError(
                f"{link} is a link to another folder, where this command would write and delete files; replace it by a "
                "folder, or choose another folder"
            )


class _Job(TypedDict):
    job: JobName
    rows: dict[str, Any]


class _JobOptions(_Job, total=False):
    layout: int
    replaces: tuple[JobName, ...]
    created: str
    source: dict[str, Any]
    access: dict[str, Any]
    vae_source: str
    versions: dict[str, str]


def parse_job(data: bytes) -> dict[str, Any]:
    """Return the contents of ``_job.json``.

    Raises:
        ValueError: it is damaged, or its settings are none of a job.
    """
    record: dict[str, Any] = {**convert_json(_JobOptions, parse_object(data))}
    record = {"replaces": (), "vae_source": "", "versions": {}, "source": {}, "access": {}, **record}
    metadata_of_job(record)
    if "created" in record:
        _check_date(record, "created")
    access = {name: value for name, value in record["access"].items() if name in Access.__dataclass_fields__}
    convert_json(Access, access, "access")
    return {**record, "access": access, "replaces": list(record["replaces"])}


def metadata_of_job(record: Mapping[str, Any]) -> RowMetadata:
    """Return the rows' metadata from the contents of ``_job.json``.

    Raises:
        ValueError: a setting is missing, or has a wrong type.
    """
    return RowMetadata.from_dict(
        {**record["rows"], "vae_source": record["vae_source"], "versions": record.get("versions", {})}
    )


class _RunCounts(TypedDict):
    encoded: Count
    rejected: Count
    seconds: float
    pairs_per_second: float
    counters: dict[str, float]


class _MaskCounts(TypedDict, total=False):
    warning: str | None


class _Run(_RunCounts, total=False):
    masks: _MaskCounts
    decided_over_time: tuple[tuple[float, Count], ...]


class _ReportCounts(TypedDict):
    finished: str
    pairs: Count
    encoded: Count
    rejected: Count
    files: Count
    data_bytes: Count
    this_run: _Run


class _Report(_ReportCounts, total=False):
    rejected_by_error: dict[str, Count]
    pairs_left: Count
    unpaired_images: Count
    unpaired_masks: Count
    ignored_files: Count
    unpaired_image_uris: tuple[str, ...]
    unpaired_mask_uris: tuple[str, ...]
    job: _ReportJob


class _ReportJob(TypedDict, total=False):
    rows: dict[str, Any]


_NO_COUNTS = {
    "rejected_by_error": {},
    "unpaired_images": 0,
    "unpaired_masks": 0,
    "ignored_files": 0,
    "unpaired_image_uris": (),
    "unpaired_mask_uris": (),
    "job": {},
}


def parse_report(data: bytes) -> dict[str, Any]:
    """Return the contents of ``_report.json``.

    Raises:
        ValueError: it is damaged.
    """
    report: dict[str, Any] = {**_NO_COUNTS, **convert_json(_Report, parse_object(data))}
    run = {"masks": {}, "decided_over_time": (), **report["this_run"]}
    run["masks"] = {"warning": None, **run["masks"]}
    _check_date(report, "finished")
    times = [0.0, *(time for time, _ in run["decided_over_time"])]
    if not 0 <= run["seconds"] < 1e10 or sorted(times) != times:
        raise ValueError("this_run has times that no run has")
    return {**report, "this_run": run}


def _check_date(values: Mapping[str, Any], name: str) -> None:
    try:
        datetime.fromisoformat(values[name])
    except ValueError:
        raise ValueError(f"{name} is {ascii(values[name])[:40]}, which is no date") from None


class ChunkFooter(NamedTuple):
    """What the footer of a data file says about its chunk."""

    chunk: str
    revision: int
    hash: str
    """Of the chunk's planned pairs; empty in files of version 0.1."""
    rejected: tuple[dict[str, str | None], ...]
    """Rows of `inpaint_encode.schema.REJECTS`."""


class _Reject(TypedDict):
    key: str
    error: str


class _RejectColumns(_Reject, total=False):
    image_uri: str | None
    mask_uri: str | None
    stage: str | None
    message: str | None


_RejectsOf = tuple[_RejectColumns, ...]
_Revision = Annotated[int, range(2**31)]


class _Footer(TypedDict):
    chunk: Annotated[str, re.compile(r"\d{6}-\d{5}")]
    revision: _Revision
    hash: str
    rejected: _RejectsOf


class _OldFooter(TypedDict):
    chunk: Annotated[int, range(10**8)]
    generation: _Revision
    rejected: _RejectsOf


def parse_chunk_footer(metadata: Mapping[bytes, bytes] | None) -> ChunkFooter:
    """Return the chunk of a data file, of this version or of 0.1.

    Args:
        metadata: of the Parquet file.

    Raises:
        ValueError: it is missing or damaged.
    """
    values = parse_object(_footer_json(metadata, CHUNK_KEY))
    if "generation" in values:
        old = convert_json(_OldFooter, values, "footer")
        return ChunkFooter(f"{old['chunk']:08d}", old["generation"], "", old["rejected"])  # type: ignore[arg-type]
    footer = convert_json(_Footer, values, "footer")
    return ChunkFooter(footer["chunk"], footer["revision"], footer["hash"], footer["rejected"])  # type: ignore[arg-type]


def parse_metadata_footer(metadata: Mapping[bytes, bytes] | None) -> RowMetadata:
    """Return how the rows of a data file were made.

    Args:
        metadata: of the Parquet file.

    Raises:
        ValueError: it is missing or damaged.
    """
    return RowMetadata.from_dict(parse_object(_footer_json(metadata, FOOTER_KEY)))


def _footer_json(metadata: Mapping[bytes, bytes] | None, key: bytes) -> bytes:
    if key not in (metadata := metadata or {}):
        raise ValueError(f"its footer has no {key.decode()}")
    return metadata[key]
