"""Exports an output: the destination says which data files are done, and each of the others goes to a Ray task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from inpaint_encode.errors import EncodeError, JobFailed, UsageError
from inpaint_encode.job.cluster import connect_ray, translate_ray_errors
from inpaint_encode.job.progress import EVERY_S
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.lease import acquire_lease
from inpaint_encode.reader import Output
from inpaint_encode.reader.output import as_rows, footer_metadata
from inpaint_encode.settings import ExportOptions
from inpaint_encode.stores import storage
from inpaint_encode.tools.inspect.summary import normalize_output_uri

from .destination import Destination, ExportRecord, ExportTotals
from .formats import select_format, tar_bytes

EXPORT_WORK = pa.schema([("path", pa.string()), ("version", pa.string())])
"""One Ray row per data file: its path in the output, and its version in the listing."""

EXPORT_RESULT = pa.schema([("rows", pa.int64()), ("files", pa.int64()), ("bytes", pa.int64()), ("fatal", pa.string())])
"""Totals of one data file; ``fatal`` is an error message that ends the job, or null."""

_BATCH_ROWS = 16
"""Rows that are unpacked at a time, and threads that write their files."""


class ExportResult(NamedTuple):
    """A finished export."""

    uri: str
    whole: ExportTotals
    """Of all data files."""
    rows_now: int
    """Rows that this run exported."""
    seconds: float
    """Duration of this run, including Ray's start."""


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
    metadata = output.metadata  # raises UsageError if the files are not from encode
    uri = normalize_output_uri(options.output, "--output")
    if f"{uri}/".startswith(f"{output.uri}/"):
        raise UsageError(
            f"--output {uri} is inside LATENTS, which must contain no other files; choose another --output"
        )
    has_frames = options.to == "comfyui" and comfyui_has_frames(metadata)
    export = {"source": output.uri, "job": output.files[0].path.partition("-")[0], "to": options.to}
    if not output.report:
        on_status(f"no job has finished in {output.uri} yet; run this command again to export later rows")
    with acquire_lease(storage.join(uri, "_lease.json"), on_status) as lease:
        destination = Destination(uri, lease.token)
        destination.start(export, overwrite=options.overwrite)
        versions = {file.path: file.version for file in output.files}
        done = destination.remove_outdated(versions)
        work = [{"path": path, "version": version} for path, version in versions.items() if path not in done]
        on_status(f"{len(done):,} of {len(versions):,} data files are exported")
        totals, reported = list(done.values()), time.monotonic()
        arguments = {"source": output.uri, "destination": destination, "to": options.to, "has_frames": has_frames}
        for made in _export_on_ray(work, arguments, options.address) if work else ():
            totals.append(made)
            if time.monotonic() - reported > EVERY_S:
                reported, rows = time.monotonic(), ExportTotals.sum_of(totals).rows
                on_status(f"{len(totals):,} of {len(versions):,} data files are exported, {rows:,} rows")
    rows_now = ExportTotals.sum_of(totals[len(done) :]).rows
    return ExportResult(uri, ExportTotals.sum_of(totals), rows_now, time.monotonic() - begun)


def _export_on_ray(work: list[dict[str, str]], arguments: Mapping[str, Any], address: str) -> Iterator[ExportTotals]:
    """Export each data file of ``work``, rows of `EXPORT_WORK`, in a Ray task; yield its totals when it is done."""
    with connect_ray(address), translate_ray_errors():
        results = (
            ray.data.from_arrow(pa.Table.from_pylist(work, EXPORT_WORK))
            .repartition(target_num_rows_per_block=1)
            .map_batches(export_data_file, fn_kwargs=dict(arguments), batch_size=1, batch_format="pyarrow")
        )
        for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for result in batch.to_pylist():
                if fatal := result.pop("fatal"):
                    raise JobFailed(f"{fatal}; exported data files stay, and the same command resumes from them")
                yield ExportTotals(**result)


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
        file = pq.ParquetFile(pa.BufferReader(blob.data), page_checksum_verification=True)
        form = select_format(to, file.schema_arrow.names, footer_metadata(file), has_frames=has_frames)
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
    except (OSError, pa.ArrowException) as error:
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
