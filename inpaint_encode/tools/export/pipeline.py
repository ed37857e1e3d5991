"""Exports an output: the destination says which data files are done, and each of the others goes to a Ray task.

With ``--to parquet``, each `compaction.Group` of data files goes to a Ray task.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data

from inpaint_encode.errors import EncodeError, JobFailed, UsageError
from inpaint_encode.job.cluster import connect_ray, translate_ray_errors
from inpaint_encode.job.progress import EVERY_S
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.output.notes import check_no_links
from inpaint_encode.output.parquet import translate_errors
from inpaint_encode.parquet_file import ParquetFile
from inpaint_encode.reader import Output
from inpaint_encode.reader.files import DataFile
from inpaint_encode.reader.output import as_rows, footer_metadata
from inpaint_encode.settings import ExportOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.inspect.summary import normalize_output_uri

from .compaction import MEMORY_FACTOR, Group, group_files, write_group, write_index
from .destination import JOB_FILE, Destination, ExportRecord, ExportTotals
from .formats import select_format, tar_bytes

EXPORT_WORK = pa.schema([("path", pa.string()), ("version", pa.string())])
"""One Ray row per data file: its path in the output, and its version in the listing."""

GROUP_WORK = EXPORT_WORK.append(
    pa.field("files", pa.list_(pa.struct([("path", pa.string()), ("version", pa.string())])))
)
"""One Ray row per `compaction.Group`."""

EXPORT_RESULT = pa.schema([("rows", pa.int64()), ("files", pa.int64()), ("bytes", pa.int64()), ("fatal", pa.string())])
"""Totals of one data file or group; ``fatal`` is an error message that ends the job, or null."""

_BATCH_ROWS = 16
"""Rows that are unpacked at a time, and threads that write their files."""


class ExportResult(NamedTuple):
    """A finished export."""

    uri: str
    whole: ExportTotals
    """Of all exported data files."""
    rows_now: int
    """Rows that this run exported."""
    seconds: float
    """Duration of this run, including Ray's start."""
    unfinished: str = ""
    """A sentence about the units that ``--to parquet`` left out; empty if there are none."""


def export_output(source: str, options: ExportOptions, on_status: Callable[[str], None]) -> ExportResult:
    """Export an output, finished or not; data files that are already exported are skipped.

    A data file that has changed is exported again, and the files of rows that were deleted are removed.

    Args:
        source: folder or prefix that a job wrote; it is only read.
        options: format and destination.
        on_status: called with a line of progress now and then.

    Raises:
        UsageError: there is no such output, the format does not support its latents, or the destination has other
            files; nothing is written.
        JobFailed: something cannot be read or written; finished data files stay exported.
    """
    begun = time.monotonic()
    output = Output.open(source)
    _ = output.metadata  # raises UsageError if the files are not from encode
    uri = normalize_output_uri(options.output, "--output")
    if f"{uri}/".startswith(f"{output.uri}/"):
        raise UsageError(
            f"--output {uri} is inside LATENTS, which must contain no other files; choose another --output"
        )
    work = _find_work(output, options)
    export = {"source": output.uri, "job": output.files[0].path.partition("-")[0], "to": options.to}
    if options.to == "parquet":
        export["file_bytes"] = str(options.max_file_bytes)
    if not output.report:
        on_status(f"no job has finished in {output.uri} yet; run this command again to export later rows")
    check_no_links(uri, recursive=True)
    with acquire_lease(storage.join(uri, "_lease.json"), on_status) as lease:
        destination = Destination(uri, lease.token, options.to)
        destination.start(export, overwrite=options.overwrite)
        if options.to == "parquet":
            destination.write(JOB_FILE, storage.read(storage.join(output.uri, JOB_FILE)).data)
        done, before = destination.remove_outdated({one.path: one.version for one in work.items})
        count, totals, reported = len(done), before, time.monotonic()
        on_status(f"{count:,} of {len(work.items):,} {work.noun} are exported")
        left = [one for one in work.items if one.path not in done]
        if left:
            destination.remove_note()
        for made in _export_on_ray(left, work, destination, options) if left else ():
            count, totals = count + 1, ExportTotals.sum_of([totals, made])
            if time.monotonic() - reported > EVERY_S:
                reported = time.monotonic()
                on_status(f"{count:,} of {len(work.items):,} {work.noun} are exported, {totals.rows:,} rows")
        if options.to == "parquet":
            write_index(destination, export["job"], {one.path for one in work.items})
    return ExportResult(uri, totals, totals.rows - before.rows, time.monotonic() - begun, work.unfinished)


class _Work(NamedTuple):
    """What to export, and the function of the Ray tasks that export it."""

    items: Sequence[DataFile | Group]
    noun: str
    """Of the items, for status lines."""
    task: Callable[..., pa.Table]
    arguments: Mapping[str, Any]
    """Of ``task``, besides the destination."""
    unfinished: str = ""
    """See `ExportResult`."""


def _find_work(output: Output, options: ExportOptions) -> _Work:
    if options.to == "parquet":
        grouping = group_files(output, options.max_file_bytes)
        return _Work(grouping.groups, "files", export_group, {"source": output.uri}, grouping.about_unfinished())
    has_frames = options.to == "comfyui" and comfyui_has_frames(output.metadata)
    arguments = {"source": output.uri, "to": options.to, "has_frames": has_frames}
    return _Work(output.files, "data files", export_data_file, arguments)


def _export_on_ray(
    items: Sequence[DataFile | Group], work: _Work, destination: Destination, options: ExportOptions
) -> Iterator[ExportTotals]:
    """Export each item in a Ray task; yield its totals when it is done."""
    columns = {"path": [one.path for one in items], "version": [one.version for one in items]}
    table, resources = pa.table(columns, EXPORT_WORK), {}
    with connect_ray(options.address), translate_ray_errors():
        if options.to == "parquet":
            files = pa.array([one.files for one in items if isinstance(one, Group)], GROUP_WORK.field("files").type)
            table = table.append_column(GROUP_WORK.field("files"), files)
            # Ray never starts a task that needs more memory than any node has.
            largest = max(node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"])
            resources = {"memory": min(MEMORY_FACTOR * options.max_file_bytes, largest)}
        results = (
            ray.data.from_arrow(table)
            .repartition(target_num_rows_per_block=1)
            .map_batches(
                work.task,
                fn_kwargs={**work.arguments, "destination": destination},
                batch_size=1,
                batch_format="pyarrow",
                **resources,
            )
        )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for result in batch.to_pylist():
                if fatal := result.pop("fatal"):
                    raise JobFailed(f"{fatal}; exported {work.noun} stay, and the same command resumes from them")
                yield ExportTotals(**result)


def export_group(row: pa.Table, *, source: str, destination: Destination) -> pa.Table:
    """Export a group; return a row of `EXPORT_RESULT`.

    Args:
        row: one row of `GROUP_WORK`.
        source: the output that contains the data files.
        destination: where the file is written.
    """
    (work,) = row.to_pylist()
    group = Group(work["path"], work["version"], tuple((file["path"], file["version"]) for file in work["files"]))
    try:
        result: dict[str, Any] = write_group(group, source=source, destination=destination)._asdict()
    except EncodeError as error:
        result = {"fatal": str(error)}
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        result = {"fatal": f"{group.path} cannot be exported: {error}"}
    return pa.Table.from_pylist([result], EXPORT_RESULT)


def export_data_file(row: pa.Table, *, source: str, destination: Destination, to: str, has_frames: bool) -> pa.Table:
    """Export a data file; return a row of `EXPORT_RESULT`.

    All files are written between two records; the first lists files that a crash may leave behind.

    Args:
        row: one row of `EXPORT_WORK`.
        source: the output that contains the data file.
        destination: where the files are written.
        to: name of the format.
        has_frames: see `select_format`.
    """
    (work,) = row.to_pylist()
    path, uri = work["path"], storage.join(source, work["path"])
    try:
        blob = storage.read(uri)
        if blob.version != work["version"]:
            raise JobFailed(f"{uri} has changed since it was listed: an encode job is running; wait until it ends")
        file = ParquetFile(blob.data, page_checksum_verification=True)
        with translate_errors(uri):
            metadata = footer_metadata(file)
        form = select_format(to, file.schema.names, metadata, has_frames=has_frames)
        keys = file.read(columns=["key"])["key"].to_pylist()
        tar = f"{path.removesuffix('.parquet')}.tar"
        files = (tar,) if form.is_tar else tuple(name for key in keys for name in form.names(key))
        record = ExportRecord(work["version"], done=False, rows=len(keys), bytes=0, files=files)
        destination.write_record(path, record)
        batches = (as_rows(batch) for batch in file.iter_batches(batch_size=_BATCH_ROWS))
        size = 0
        if form.is_tar:
            data = tar_bytes(chain.from_iterable(map(form.files_of, chain.from_iterable(batches))))
            destination.check_lease()
            size = destination.write(tar, data)
        else:
            with ThreadPoolExecutor(_BATCH_ROWS) as pool:
                for batch in batches:
                    destination.check_lease()
                    sizes = pool.map(lambda row: sum(destination.write(*one) for one in form.files_of(row)), batch)
                    size += sum(sizes)
        record = replace(record, done=True, bytes=size)
        destination.write_record(path, record)
        result: dict[str, Any] = record.totals._asdict()
    except EncodeError as error:
        result = {"fatal": str(error)}
    except (OSError, pa.ArrowException, ValueError, KeyError) as error:
        result = {"fatal": f"{uri} cannot be exported: {error}"}
    return pa.Table.from_pylist([result], EXPORT_RESULT)


def comfyui_has_frames(metadata: RowMetadata) -> bool:
    """Return whether ComfyUI's latents of this VAE have an axis of frames.

    Raises:
        UsageError: ComfyUI cannot use these latents.
    """
    from inpaint_encode.vae.registry import vae_class_of  # imports torch, which takes seconds

    vae = metadata.vae
    vae_class = vae_class_of(vae.vae_class, "the VAE of the output")
    if vae_class.latents_are_scaled:
        raise UsageError(
            f"--to comfyui: latents of {vae.vae_class} are already scaled, and the model that they are scaled for is "
            "unknown; ComfyUI would scale them again; encode with the full VAE of your model, or choose another --to"
        )
    if vae.crop_multiple != vae.vae_scale_factor:
        raise UsageError(
            "--to comfyui needs packed Flux.2 latents, but the output stores plain ones; encode with --flux2-latents "
            "packed, or choose another --to"
        )
    return vae_class.video
