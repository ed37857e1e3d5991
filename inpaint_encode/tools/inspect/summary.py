"""What ``info``, ``report``, the report page and ``show`` share: counts, settings, and reading the job's own files.

No row is read and neither torch nor Ray is imported. For the counts a listing, ``_report.json`` or receipts,
``_lease.json`` and the plan's markers are enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.errors import UsageError
from inpaint_encode.json_files import parse_object
from inpaint_encode.output.notes import read_parsed
from inpaint_encode.output.parquet import check_counts, translate_errors
from inpaint_encode.output.plan import chunk_name
from inpaint_encode.output.plan_log import parse_marker, read_marker
from inpaint_encode.parquet_file import read_columns
from inpaint_encode.reader import Output
from inpaint_encode.reader.files import DataFiles
from inpaint_encode.schema import RECEIPT
from inpaint_encode.settings import Decoding, RowSettings
from inpaint_encode.stores import storage

MAX_RECEIPT_FILES = 32
"""Files of receipts that are read to count the rows of an unfinished job; a job writes one every 30 s."""

MAX_MARKERS = 32
"""Markers of a plan that are read to count the planned pairs of an unfinished job; one covers about 65,000 pairs."""

VAE_FIELDS = (
    *("vae_class", "vae_source", "vae_family", "weights_sha256", "config_sha256", "vae_scale_factor", "crop_multiple"),
    *("latent_channels", "latent_form", "scaling_factor", "shift_factor"),
)
"""Fields of `VaeMetadata` that are shown."""

SETTING_DEFAULTS = RowSettings().recorded() | Decoding().recorded()
"""Settings of rows by name, with their defaults."""

_COUNTERS = {
    "batches": "batches that the VAE encoded",
    "encoded_again": "images encoded again in float32, because their latent was not finite",
    "images_decoded": "images decoded without an error",
    "not_finite": "images whose first latent had NaN or infinite values",
    "objects_fetched": "image and mask files fetched from the store",
    "oom_steps": "times that a batch was halved or tiled because memory ran out",
    "retries": "requests to the store that were retried",
    "tiled": "images encoded in tiles",
}
"""Counters of a report that are not seconds, and what they count."""


@dataclass(frozen=True)
class OutputCounts:
    """Counts of an output; a count is None if only reading rows would show it."""

    state: str
    """A sentence: finished and when, in progress, stopped, or exported."""
    finished: bool
    """Whether the last run's report describes the present files."""
    planned: int | None
    """Pairs; of an unfinished job, those that are planned so far."""
    encoded: int | None
    """Pairs that became rows."""
    rejected: int | None
    files: int
    """Data files."""
    bytes: int
    """Size of the data files."""
    rejected_by_error: Mapping[str, int]
    """Empty before the job has finished."""


def count_output(output: Output) -> OutputCounts:
    """Count what an output holds.

    Raises:
        JobFailed: a file of receipts is damaged.
        PermissionError, OSError: from the store.
    """
    report, size = output.report, output.data_bytes
    try:
        held = bool(storage.stat(storage.join(output.uri, "_lease.json")))
    except FileNotFoundError:
        held = False  # a run removes its lease when it ends; the lease of a killed run stays
    if output.is_reported:
        state = f"finished {report['finished']}{'; another run is in progress or was killed' if held else ''}"
        counts = (report["pairs"], report["encoded"], report["rejected"], len(output.files), size)
        return OutputCounts(state, True, *counts, rejected_by_error=dict(report["rejected_by_error"]))
    state = "in progress, or its run was killed" if held else "not finished, and no run is writing to it"
    state += f"; _report.json is from the run that finished {report['finished']}" if report else ""
    encoded, rejected = _count_results(output)
    planned = _count_planned(output)
    if planned is None and not report and (source := _source_of_export(output)):
        state = f"an export of {source}"
    return OutputCounts(state, False, planned, encoded, rejected, len(output.files), size, {})


def _source_of_export(output: Output) -> str:
    """Return the output that ``export --to parquet`` exported to here; empty if this is no export."""
    try:
        uri, advice = storage.join(output.uri, "_export.json"), "export again with --overwrite"
        return str(read_parsed(uri, parse_object, advice).value.get("source", ""))
    except FileNotFoundError:
        return ""


def _count_planned(output: Output) -> int | None:
    """Return the number of planned pairs according to the plan's markers; None if there are none, or many."""
    prefix = storage.join(output.uri, "_plan")
    markers = list_paths(prefix, ".json")
    if not markers or len(markers) > MAX_MARKERS:
        return None
    newest: dict[str, tuple[int, int]] = {}
    for path in markers:
        uri = storage.join(prefix, path)
        marker = parse_marker(uri, read_marker(uri))
        for chunk in marker.chunks:
            name = chunk_name(marker.unit, chunk.number)
            newest[name] = max(newest.get(name, (0, 0)), (marker.revision, chunk.pairs))
    return sum(pairs for _, pairs in newest.values())


def _count_results(output: Output) -> tuple[int, int] | tuple[None, None]:
    """Return rows and rejected pairs according to the index, and to receipts of files that are not in it.

    None if data files have no receipt, or if there are many files of receipts.
    """
    files = output.files
    if not isinstance(files, DataFiles):
        return None, None
    encoded, rejected = pc.sum(files.group_rows.flatten()).as_py() or 0, int(files.rejected.sum())
    uncounted = {
        files[number].path: files[number].version for number in np.flatnonzero(files.footer_bytes == 0).tolist()
    }
    if not uncounted:
        return encoded, rejected
    units = {part for path in uncounted for part in path.split("-")[1:2]}
    prefix = storage.join(output.uri, "_receipts")
    receipts = [path for path in list_paths(prefix) if set(path.split("-")[1:2]) & units]
    if len(receipts) > MAX_RECEIPT_FILES:
        return None, None
    for path in receipts:
        for one in read_table(storage.join(prefix, path), RECEIPT).to_pylist():
            name = f"{path.partition('-')[0]}-{one['chunk']}.parquet"
            if uncounted.get(name) == one["version"]:
                del uncounted[name]
                encoded, rejected = encoded + one["encoded"], rejected + one["rejected"]
    return (None, None) if uncounted else (encoded, rejected)


def read_table(uri: str, schema: pa.Schema) -> pa.Table:
    """Read one of the job's own Parquet files, such as a file of rejects.

    Raises:
        JobFailed: the file is damaged.
        PermissionError, OSError: from the store.
    """
    data = storage.read(uri).data
    with translate_errors(uri):
        table = read_columns(data, schema)
        if schema == RECEIPT:
            check_counts(table, schema)
        return table


def list_paths(prefix: str, suffix: str = "") -> list[str]:
    """Return the paths below ``prefix`` that end in ``suffix``."""
    return [path for page in storage.list_objects(prefix) for path in page.paths if path.endswith(suffix)]


def read_report(output: str) -> dict[str, Any]:
    """Return the report of the last finished run, ``_report.json``; empty if no run has finished.

    Raises:
        UsageError: ``output`` cannot be an output.
        JobFailed: the file is damaged.
    """
    return Output(normalize_output_uri(output), ()).report


def normalize_output_uri(spelled: str, option: str = "") -> str:
    """Normalize the path or URI of an output or a file to write.

    Args:
        spelled: path or URI, as the user gave it.
        option: named in the error; empty for an argument.

    Raises:
        UsageError: outputs and files cannot be at this URI.
    """
    try:
        return storage.normalize_uri(spelled)
    except ValueError as error:
        raise UsageError(f"{option} {error}".strip()) from None


def counter_meaning(name: str) -> str:
    """Return what a counter of a report counts, or an empty string."""
    if not name.startswith("batches_of_"):
        return _COUNTERS.get(name, "")
    if not (number := name.removeprefix("batches_of_")).isdecimal():
        return ""
    largest = int(number[:9])  # a power of two
    sizes = f"{largest // 2 + 1} to {largest} images" if largest > 2 else "2 images" if largest == 2 else "1 image"
    return f"batches of {sizes}"


def describe_value(value: Any) -> str:
    """Format a setting for people, with booleans as in a TOML file."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    if value is None or value == "":
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)
