"""Exports an output: the destination says which data files are done, and each of the others goes to a Ray task."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import pyarrow as pa
import ray.data

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.job.cluster import connect_ray, translate_ray_errors
from inpaint_encode.job.progress import EVERY_S
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.lease import Lease, hold
from inpaint_encode.reader import Output
from inpaint_encode.settings import ExportOptions
from inpaint_encode.stores import storage

from .data_file import EXPORT_WORK, export_data_file
from .destination import Destination, ExportTotals

__all__ = ["ExportResult", "build_pipeline", "export_output"]


class ExportResult(NamedTuple):
    """A finished export."""

    uri: str
    whole: ExportTotals
    """Of all data files."""
    rows_now: int
    """Rows that this run exported."""
    seconds: float
    """Duration of this run, including Ray's start."""


def build_pipeline(
    work: pa.Table, source: str, destination: Destination, to: str, *, has_frames: bool
) -> ray.data.Dataset:
    """Return a dataset that exports each row of ``work``, an `EXPORT_WORK`, to a row of `EXPORT_RESULT`."""
    options = {"source": source, "destination": destination, "to": to, "has_frames": has_frames}
    return (
        ray.data.from_arrow(work)
        .repartition(target_num_rows_per_block=1)
        .map_batches(export_data_file, fn_kwargs=options, batch_size=1, batch_format="pyarrow")
    )


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
    uri = _destination_uri(output, options.output)
    has_frames = options.to == "comfyui" and comfyui_has_frames(metadata)
    export = {"source": output.uri, "job": output.files[0].path.partition("-")[0], "to": options.to}
    if not output.report:
        on_status(f"no job has finished in {output.uri} yet; run this command again to export later rows")
    with hold(storage.join(uri, "_lease.json"), on_status) as lease:
        destination = Destination(uri, lease.token)
        destination.start(export, overwrite=options.overwrite)
        versions = {file.path: file.version for file in output.files}
        done = destination.remove_outdated(versions)
        whole = ExportTotals()
        for totals in done.values():
            whole = whole.plus(totals)
        rows_before = whole.rows
        work = [{"path": path, "version": version} for path, version in versions.items() if path not in done]
        on_status(f"{len(done):,} of {len(versions):,} data files are exported")
        if work:
            with connect_ray(options.address), translate_ray_errors():
                table = pa.Table.from_pylist(work, EXPORT_WORK)
                results = build_pipeline(table, output.uri, destination, options.to, has_frames=has_frames)
                whole = _consume(results, whole, len(done), len(versions), lease, on_status)
    return ExportResult(uri, whole, whole.rows - rows_before, time.monotonic() - begun)


def _consume(
    results: ray.data.Dataset,
    whole: ExportTotals,
    done: int,
    data_files: int,
    lease: Lease,
    on_status: Callable[[str], None],
) -> ExportTotals:
    """Run the pipeline; return ``whole`` plus the totals of its results."""
    reported = time.monotonic()
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for result in batch.to_pylist():
            if result["fatal"]:
                raise JobFailed(f"{result['fatal']}; exported data files stay, and the same command resumes from them")
            if lease.lost.is_set():
                raise JobFailed(f"another run is exporting to this destination (see {lease.uri}); this run stops")
            whole = whole.plus(ExportTotals(result["rows"], result["files"], result["bytes"]))
            done += 1
        if time.monotonic() - reported > EVERY_S:
            reported = time.monotonic()
            on_status(f"{done:,} of {data_files:,} data files are exported, {whole.rows:,} rows")
    return whole


def _destination_uri(output: Output, given: str) -> str:
    try:
        uri = storage.normalize_uri(given)
    except ValueError as error:
        raise UsageError(f"--output {error}") from None
    if f"{uri}/".startswith(f"{output.uri}/"):
        raise UsageError(
            f"--output {uri} is inside the exported output, which must hold no other files; choose another"
        )
    return uri


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
