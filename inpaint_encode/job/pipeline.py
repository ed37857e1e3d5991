"""The job: one Ray Data pipeline, and the run around it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import ray
import ray.data

from inpaint_encode.core import mask_coverage
from inpaint_encode.core.batch import LatentEncoder
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.encoder import BatchEncoder
from inpaint_encode.errors import JobFailed, TooManyRejected, UsageError
from inpaint_encode.metadata import RowMetadata, VaeMetadata
from inpaint_encode.output.lease import Lease
from inpaint_encode.output.report import RunStats, write_report
from inpaint_encode.output.resume import Remaining, job_record, open_output, row_metadata, validate_sizes
from inpaint_encode.output.shards import SharedRemaining, hold_output, lease_path
from inpaint_encode.output.state import ChunkResult, OutputState
from inpaint_encode.schema import data_schema
from inpaint_encode.settings import EncodeJob, label_selector
from inpaint_encode.sources import open_source
from inpaint_encode.sources.pairs import PairSource
from inpaint_encode.stores import storage
from inpaint_encode.vae.encode import warm_up
from inpaint_encode.vae.latents import check_supported
from inpaint_encode.vae.load import load_vae
from inpaint_encode.vae.registry import vae_metadata

from .cluster import connect_ray, needed_resources, translate_ray_errors, vae_workers
from .feed import WorkFeed, ask_for_signed, read_work
from .metrics import JobMetrics
from .progress import Display, Reminder, open_display
from .stages import MAX_CONCURRENCY, EncodeStage, commit_stage, decode_deferred, fetch_stage

MASK_CHECK_AFTER = 1_000
"""Rows after which a run's masks are checked, if it does not end before."""

REMIND_S = 60.0
"""Interval of the reminder of what the first chunk may wait for: new nodes, or a label that no node has."""

FLUSH_S = 30.0
"""Interval of writing receipts; after a kill, later chunks are read from their files."""


class Backend(NamedTuple):
    """What encodes: the job's VAE, or a replacement in a benchmark."""

    vae: VaeMetadata
    open: Callable[[RowMetadata, str], LatentEncoder]
    """Called on a worker with the rows' metadata and the device, ``"cuda"`` or ``"cpu"``; it is pickled."""


def build_pipeline(
    work: Any,
    job: EncodeJob,
    backend: Backend,
    state: OutputState,
    metadata: RowMetadata,
    plan_schema: pa.Schema,
    signatures: str = "",
) -> ray.data.Dataset:
    """Return the pipeline that fetches, decodes, encodes and commits; its rows are receipts (`schema.RECEIPT`).

    Args:
        work: a `feed.WorkQueue`, whose rows are chunks.
        job: the settings.
        backend: what encodes.
        state: of the output.
        metadata: of the rows.
        plan_schema: a schema with the source's `inpaint_encode.schema.EXTRA_COLUMNS`.
        signatures: path of the list's signed URLs on the driver's node, see `inpaint_encode.sources.signatures`.
    """
    vae = vae_workers(job.workers, job.run.address)
    batch_size = 1 if metadata.deterministic else job.workers.batch_size  # rows change each other's last bits
    fetch_on, encode_on = label_selector(job.workers.fetch_on), label_selector(job.workers.encode_on)
    one_chunk: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    schema = data_schema(metadata, plan_schema)
    make_schema = partial(pa.schema, list(schema), metadata=schema.metadata)
    fetching = _fetch_options(work, job, metadata, signatures)
    encoding = partial(backend.open, metadata), batch_size, make_schema, vae.gpus, vae.most
    return (
        read_work(work)
        .map_batches(
            fetch_stage,
            fn_kwargs={**fetching, "threads": job.workers.fetch_threads},
            num_cpus=job.workers.fetch_cpus,
            label_selector=fetch_on,
            **one_chunk,
        )
        .map_batches(
            EncodeStage,
            fn_constructor_args=(*encoding, partial(decode_deferred, **fetching)),
            compute=ray.data.ActorPoolStrategy(
                min_size=vae.least,
                max_size=vae.most,
                max_concurrent_calls_per_actor=MAX_CONCURRENCY,
                enable_true_multi_threading=True,
            ),
            num_gpus=vae.gpus or None,
            num_cpus=vae.cpus,
            label_selector=encode_on,
            **one_chunk,
        )
        .map_batches(
            commit_stage,
            fn_kwargs={"state": state, "make_schema": make_schema},
            num_cpus=job.workers.write_cpus,
            label_selector=fetch_on,
            **one_chunk,
        )
    )


def _fetch_options(work: Any, job: EncodeJob, metadata: RowMetadata, signatures: str) -> dict[str, Any]:
    """Return the arguments that `fetch_stage` and `decode_deferred` share; those of `build_pipeline`."""
    options: dict[str, Any] = {
        "decoder": PairDecoder.of(metadata, max_pixels=job.limits.max_pixels),
        "access": job.access.to_access(),
        "max_bytes": job.limits.max_bytes,
        "cpus": job.workers.fetch_cpus,
    }
    if signatures:
        options["find_signed"] = partial(ask_for_signed, queue=work, path=signatures)
    return options


def _open_source(job: EncodeJob) -> PairSource:
    source = open_source(job.source, job.access.to_access())
    if job.run.shard and source.is_signed:
        raise UsageError(
            "--shard cannot be combined with a list of signed URLs, because only one of the runs reads the whole list; "
            "leave out --shard"
        )
    return source


def run_job(
    job: EncodeJob, display: Display | None = None, backend_of: Callable[[EncodeJob], Backend] | None = None
) -> dict[str, Any]:
    """Run a job, from a script or a notebook, and return its report; chunks that are done are not encoded again.

    Example:
        >>> job = EncodeJob(
        ...     source=Source(images="photos", masks="masks"),
        ...     vae=VaeSource(vae="stabilityai/sd-vae-ft-mse"),
        ...     output=Output(output="latents"),
        ... )
        >>> report = run_job(job)

    Args:
        job: the settings.
        display: shows the progress; by default on standard error.
        backend_of: returns what encodes; by default `vae_backend`.

    Returns:
        The contents of ``_report.json``.

    Raises:
        UsageError: the settings cannot work, or the output was written with other settings; nothing was written.
        TooManyRejected: more pairs were rejected than ``--max-rejected`` allows.
        JobFailed: the job cannot go on; run it again to resume.
    """
    if display is None:
        with open_display() as opened:
            return run_job(job, opened, backend_of)
    try:
        output = storage.normalize_uri(job.output.output)
    except ValueError as error:
        raise UsageError(f"--output {error}") from None
    source = _open_source(job)
    display.say(f"loading the VAE {job.vae.vae}")
    backend = (backend_of or vae_backend)(job)
    metadata = row_metadata(job.rows, job.decoding, backend.vae)
    validate_sizes(metadata)
    with hold_output(output, job.run, display.say) as lease:
        record = job_record(job, metadata, source.extra_columns)
        path = lease_path(job.run)
        state, inventory = open_output(output, record, overwrite=job.output.overwrite, token=lease.token, lease=path)
        display.say("reading the list of pairs" if job.source.pairs else "listing the images and the masks")
        stopped = threading.Event()
        if job.run.shard:
            left: Remaining = SharedRemaining(state, inventory, job, source, display.say, stopped)
        else:
            left = Remaining(state, inventory, job, source)
        with closing(left):
            work = left.work()
            first = next(work, None)
            run = _Run(job, state, left, lease, display)
            if first is not None:
                state.remove_note()
                display.say("waiting for Ray")
                with connect_ray(job.run.address), WorkFeed(first, work, stopped) as feed:
                    signed = source.signatures.path if source.signatures else ""
                    about = (job, backend, state, metadata, left.log.schema, signed)
                    run.consume(build_pipeline(feed.queue, *about), feed)
            return run.finish(left, source, {"job": state.job, **record})


def vae_backend(job: EncodeJob) -> Backend:
    """Load the job's VAE once here, so that a bad one fails before Ray starts; workers load it again."""
    vae = load_vae(job.vae)
    warm_up(vae)
    found = vae_metadata(vae, job.vae)
    check_supported(row_metadata(job.rows, job.decoding, found), vae, found)
    return Backend(found, partial(BatchEncoder.load, job.vae, compiled=job.workers.compile))


class _Run:
    """The driver's part of a run: count results, show progress, write receipts, and stop when necessary."""

    def __init__(self, job: EncodeJob, state: OutputState, left: Remaining, lease: Lease, display: Display) -> None:
        self.chunks: dict[str, ChunkResult] = dict(left.done)
        self.totals = RunStats.of(left.done.values())
        self.stats = RunStats()
        self._workers, self._options = job.workers, job.run
        self._state, self._lease, self._display = state, lease, display
        self._name = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{lease.token[:4]}"
        self._unwritten: list[dict[str, Any]] = []
        self._receipt_files, self._written_at = 0, time.monotonic()
        self._rate_from: tuple[float, int] | None = None
        self._left, self._log, self._index = left, left.log, left.index
        self._masks_checked = False
        display.start(self._log.pairs, self.totals.decided)

    def consume(self, receipts: ray.data.Dataset, feed: WorkFeed) -> None:
        """Process every receipt; those of committed chunks are written even if this raises.

        Raises:
            JobFailed, UsageError, OSError: a chunk cannot be committed, or ``feed`` has ended with an error.
        """
        metrics = JobMetrics(self._state.job, self._log.pairs - self.totals.decided)
        needs = needed_resources(self._workers, vae_workers(self._workers, self._options.address))
        try:
            with translate_ray_errors(), Reminder(self._display.say, needs, REMIND_S) as reminder:
                for batch in receipts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    reminder.stop()
                    for receipt in batch.to_pylist():
                        self._add(receipt, metrics)
                    feed.raise_error()
                feed.raise_error()
        except KeyboardInterrupt:
            self._write_receipts()
            self._lease.release()  # first: to disconnect from Ray may take longer than a scheduler waits
            raise
        finally:
            self._write_receipts()
        self._check_masks()

    def finish(self, left: Remaining, source: PairSource, about: dict[str, Any]) -> dict[str, Any]:
        """Complete the output, write the report and return it.

        Args:
            left: what the run has encoded.
            source: has been read.
            about: the job, for the report.
        """
        whole = RunStats.of(left.finish(self.chunks, self._display.say).values())
        self._state.check_lease()
        limit, partial = self._options.limit, bool(self._options.limit or self._options.shard)
        uri, left_out = self._state.uri("_report.json"), left.left_out(source.left_out)
        report = write_report(uri, about, left.planned(), left_out, whole, self.stats, limit=limit, partial=partial)
        self.check_rejected(finished=True)
        return report

    def check_rejected(self, *, finished: bool) -> None:
        """Raise `TooManyRejected` if the whole output has more rejects than ``--max-rejected`` allows."""
        rejected, decided = self.totals.rejected, self.totals.decided
        if not self._options.allows(rejected, decided, finished=finished):
            frequent = ", ".join(f"{count:,} {error}" for error, count in self.totals.errors.most_common(3))
            raise TooManyRejected(
                f"{rejected:,} of {decided:,} pairs are rejected ({frequent}); --max-rejected allows "
                f"{self._options.max_rejected}; see {self._state.uri('_rejected')}"
            )

    def _add(self, receipt: dict[str, Any], metrics: JobMetrics) -> None:
        if receipt["fatal"]:
            raise JobFailed(f"{receipt['fatal']}; finished chunks are kept; run the same command again to resume")
        if self._lease.lost.is_set():
            raise JobFailed(
                f"another run has taken over this output (see {self._lease.uri}); this run stops; its finished "
                "chunks are kept"
            )
        result = ChunkResult.from_receipt(receipt)
        self.chunks[receipt["chunk"]] = result
        self.totals.add(result)
        self.stats.add(result, receipt["counters"])
        metrics.add(result.encoded, result.errors, dict(receipt["counters"]))
        self._display.update(self.totals.decided, self._log.pairs, self.totals.rejected, self._rate())
        self._unwritten.append(receipt)
        self._index.add(receipt, self.chunks)
        self._left.note_committed(receipt["chunk"])
        if self.stats.encoded >= MASK_CHECK_AFTER:
            self._check_masks()
        if time.monotonic() - self._written_at > FLUSH_S:
            self._write_receipts()
        self.check_rejected(finished=False)

    def _check_masks(self) -> None:
        """Warn once if the masks look inverted, empty or full."""
        if not self._masks_checked and (warning := mask_coverage.coverage_warning(self.stats.counters)):
            self._display.say(f"warning: {warning}")
            self._masks_checked = True

    def _rate(self) -> float:
        """Return the pairs per second since the first receipt, without Ray's start."""
        now = time.monotonic()
        self._rate_from = self._rate_from or (now, self.stats.decided)
        since, before = self._rate_from
        return (self.stats.decided - before) / (now - since) if now > since else 0.0

    def _write_receipts(self) -> None:
        """Write the receipts since the last call. They are a cache, so a failure must not hide why a job ends."""
        self._written_at = time.monotonic()
        try:
            if self._unwritten:
                self._state.write_receipts(self._name, self._receipt_files, self._unwritten)
                self._unwritten, self._receipt_files = [], self._receipt_files + 1
        except OSError as error:
            self._display.say(
                f"warning: receipts cannot be written ({error}); a resumed run reads the data files instead"
            )
