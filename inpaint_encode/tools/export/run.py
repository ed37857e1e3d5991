"""Export a whole output: what is done is known from the destination, each data file left goes to a Ray task."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import ray.data

from inpaint_encode.errors import JobFailed, UsageError
from inpaint_encode.job.cluster import failures_named, joined
from inpaint_encode.job.progress import EVERY_S
from inpaint_encode.metadata import RowMetadata
from inpaint_encode.output.lease import Lease, hold
from inpaint_encode.reader import Output
from inpaint_encode.settings import ExportOptions
from inpaint_encode.stores import storage

from .chunk import FILE, export_file
from .destination import Destination, Total

__all__ = ["Exported", "export_output", "receipts_of"]


class Exported(NamedTuple):
    """What is at the destination, and what this run put there."""

    uri: str
    whole: Total
    rows_now: int
    seconds: float
    """Of this run, with Ray's start."""


def receipts_of(work: pa.Table, source: str, destination: Destination, to: str, *, video: bool) -> ray.data.Dataset:
    """Export each row of ``work``, a `chunk.FILE`; a row of the result is a data file's `chunk.RECEIPT`."""
    told = {"source": source, "destination": destination, "to": to, "video": video}
    return (
        ray.data.from_arrow(work)
        .repartition(target_num_rows_per_block=1)
        .map_batches(export_file, fn_kwargs=told, batch_size=1, batch_format="pyarrow")
    )


def export_output(source: str, options: ExportOptions, say: Callable[[str], None]) -> Exported:
    """Export an output, finished or not; whatever was done there before is not done again.

    A data file that has changed since it was exported is exported anew, and the files of rows that are not in the
    output any more are removed.

    Args:
        source: folder or prefix that a job wrote; it is only read.
        options: as what and where to.
        say: is told, in a line, how far the work is.

    Raises:
        UsageError: before anything is written: there is no such output, its latents cannot be had in this format, or
            something else is at the destination.
        JobFailed: something could not be read or written; what is done stays.
    """
    begun = time.monotonic()
    output = Output.open(source)
    metadata = output.metadata
    uri = _destination_uri(output, options.output)
    video = options.to == "comfyui" and _has_frames(metadata)
    record = {"source": output.uri, "job": output.files[0].path.partition("-")[0], "to": options.to}
    if not output.report:
        say(f"no encode has ended in {output.uri} yet; what it adds later is exported by this command, run again")
    with hold(storage.join(uri, "_lease.json"), say) as lease:
        destination = Destination(uri, lease.token)
        destination.begin(record, overwrite=options.overwrite)
        versions = {file.path: file.version for file in output.files}
        done = destination.settle(versions)
        run = _Run(done, len(versions), lease, say)
        work = pa.Table.from_pylist(
            [{"path": file, "version": versions[file]} for file in versions if file not in done], FILE
        )
        if work.num_rows:
            with joined(options.address), failures_named():
                run.consume(receipts_of(work, output.uri, destination, options.to, video=video))
    return Exported(uri, run.whole, run.rows_now, time.monotonic() - begun)


def _destination_uri(output: Output, given: str) -> str:
    try:
        uri = storage.normalize_uri(given)
    except ValueError as error:
        raise UsageError(f"--output {error}") from None
    if f"{uri}/".startswith(f"{output.uri}/"):
        raise UsageError(
            f"--output {uri} is in the output that is exported, where encode allows no other files; choose another"
        )
    return uri


def _has_frames(metadata: RowMetadata) -> bool:
    """Whether ComfyUI has such latents as clips of one frame.

    Raises:
        UsageError: it has no such latents at all.
    """
    from inpaint_encode.vae.registry import known_family  # brings torch, which takes seconds to import

    family = known_family(metadata.vae.vae_class, "the VAE of the output")
    if family.scaled:
        raise UsageError(
            f"--to comfyui: latents of {metadata.vae.vae_class} are scaled as those of the model that it is a small "
            "copy of, and nothing says which that is, so that ComfyUI would scale them once more; encode with the "
            "model's own VAE, or choose another --to"
        )
    if metadata.vae.crop_multiple != metadata.vae.vae_scale_factor:
        raise UsageError(
            f"--to comfyui: ComfyUI has latents of {metadata.vae.vae_class} packed, and these are plain; encode with "
            "--flux2-latents packed, or choose another --to"
        )
    return family.video


class _Run:
    """What the driver does while data files are exported: count, show, and stop when it must."""

    def __init__(self, done: Mapping[str, Total], data_files: int, lease: Lease, say: Callable[[str], None]) -> None:
        self.whole, self.rows_now = Total(), 0
        for total in done.values():
            self.whole = self.whole.plus(total)
        self._done, self._all = len(done), data_files
        self._lease, self._say = lease, say
        say(f"{self._done:,} of {self._all:,} data files are exported")

    def consume(self, receipts: ray.data.Dataset) -> None:
        """Take in every receipt."""
        said = time.monotonic()
        for batch in receipts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for receipt in batch.to_pylist():
                self._take(receipt)
            if time.monotonic() - said > EVERY_S:
                said = time.monotonic()
                self._say(f"{self._done:,} of {self._all:,} data files are exported, {self.whole.rows:,} rows")

    def _take(self, receipt: Mapping[str, Any]) -> None:
        if receipt["fatal"]:
            raise JobFailed(f"{receipt['fatal']}; what is done stays, and the same command goes on from it")
        if self._lease.lost.is_set():
            raise JobFailed("another run exports there now; this one stops")
        self.whole = self.whole.plus(Total(receipt["rows"], receipt["files"], receipt["bytes"]))
        self.rows_now += receipt["rows"]
        self._done += 1
