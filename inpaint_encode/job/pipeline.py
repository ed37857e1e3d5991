"""The job: one expression in Ray Data, and the run around it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import fields
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
from inpaint_encode.output.lease import Lease, hold
from inpaint_encode.output.report import Tally, write_report
from inpaint_encode.output.resume import Remaining, job_record, open_output, refuse_sizes, remaining
from inpaint_encode.output.state import Committed, Ledger
from inpaint_encode.settings import EncodeJob, selector
from inpaint_encode.sources import find_pairs
from inpaint_encode.stores import storage
from inpaint_encode.vae import VaeFacts, load_vae, vae_facts, warm_up
from inpaint_encode.vae.latent_values import refuse_unfit

from .cluster import encoders, failures_named, joined, waited_for
from .metrics import JobMetrics
from .progress import Display, Reminder
from .stages import CALLS_AT_ONCE, Encoder, commit, fetch_and_decode

__all__ = ["Backend", "receipts_of", "run_job", "vae_backend"]

JUDGED_AT = 1_000
"""Rows after which a run's masks are judged, if it does not end before."""

REMIND_S = 60.0
"""How often it is said what the first chunk may be waiting for: nodes on their way, or a label that no node has."""

FLUSH_S = 30.0
"""How often the receipts are kept; what a killed run had not kept yet is read from the files themselves."""


class Backend(NamedTuple):
    """What makes the latents: the VAE of a job, or whatever a benchmark puts in its place."""

    facts: VaeFacts
    open: Callable[[str], LatentEncoder]
    """Called on a worker with the device, ``"cuda"`` or ``"cpu"``; pickled, so small."""


def receipts_of(
    work: pa.Table, job: EncodeJob, backend: Backend, ledger: Ledger, made_by: dict[str, Any]
) -> ray.data.Dataset:
    """Read, fetch, decode, encode, commit: a row of ``work`` is a chunk, and so is every row after it."""
    vae = encoders(job.workers, job.run.address)
    batch_size = 1 if job.rows.deterministic else job.workers.batch_size  # what else is in a batch changes last bits
    fetch_on, encode_on = selector(job.workers.fetch_on), selector(job.workers.encode_on)
    return (
        ray.data.from_arrow(work)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            fetch_and_decode,
            fn_kwargs=_reading(job, made_by),
            num_cpus=job.workers.fetch_cpus,
            label_selector=fetch_on,
            **_A_CHUNK,
        )
        .map_batches(
            Encoder,
            fn_constructor_args=(backend.open, batch_size, vae.gpus, vae.most),
            compute=ray.data.ActorPoolStrategy(
                min_size=vae.least,
                max_size=vae.most,
                max_concurrent_calls_per_actor=CALLS_AT_ONCE,
                enable_true_multi_threading=True,
            ),
            num_gpus=vae.gpus or None,
            num_cpus=vae.cpus,
            label_selector=encode_on,
            **_A_CHUNK,
        )
        .map_batches(
            commit,
            fn_kwargs={"ledger": ledger, "made_by": made_by},
            num_cpus=job.workers.write_cpus,
            label_selector=fetch_on,
            **_A_CHUNK,
        )
    )


_A_CHUNK: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}


def _reading(job: EncodeJob, made_by: dict[str, Any]) -> dict[str, Any]:
    """What the first stage is told, beside the chunk."""
    decoder = PairDecoder.of(made_by, max_pixels=job.limits.max_pixels)
    limits = {"max_bytes": job.limits.max_bytes, "threads": job.workers.fetch_threads}
    return {"decoder": decoder, "access": job.access, **limits}


def run_job(
    job: EncodeJob, display: Display, backend_of: Callable[[EncodeJob], Backend] | None = None
) -> dict[str, Any]:
    """Run the whole job and return its report; whatever was done there before is not done again.

    Args:
        job: what to do.
        display: is told how far it is.
        backend_of: makes the latents; by default `vae_backend`.

    Raises:
        UsageError: before Ray is started, and before anything is written among rows of other settings.
        TooManyRejected: more pairs were rejected than ``--max-rejected`` allows.
        JobFailed: the job could not go on, or its counts do not add up.
    """
    output = _normalised_output(job)
    display.say("reading the manifest" if job.source.pairs else "listing the images and the masks")
    found = find_pairs(job.source, job.access)
    display.say(f"loading the VAE {job.vae.vae}")
    backend = (backend_of or vae_backend)(job)
    facts = backend.facts
    refuse_sizes(job.decoding, facts.crop_multiple)
    with hold(storage.join(output, "_lease.json"), display.say) as lease:
        record = job_record(job, facts.as_dict(), found.extra_columns)
        ledger, inventory = open_output(output, record, overwrite=job.output.overwrite, token=lease.token)
        left = remaining(ledger, inventory, job, found)
        found = found.without_pairs()
        pa.default_memory_pool().release_unused()
        run = _Run(job, ledger, left, lease, display)
        if left.work.num_rows:
            made_by = {**facts.as_dict(), **record["rows"], "versions": record["versions"]}
            display.say("waiting for Ray")
            with joined(job.run.address):
                run.consume(receipts_of(left.work, job, backend, ledger, made_by))
        ledger.settle(run.chunks)
        about = {"job": ledger.job, **record}
        ledger.still_mine()
        report = write_report(ledger.uri("_report.json"), about, left.pairs, found, run.whole, run.tally)
        run.refuse_too_many(finished=True)
        return report


def _normalised_output(job: EncodeJob) -> str:
    try:
        return storage.normalise(job.output.output)
    except ValueError as error:
        raise UsageError(f"--output {error}") from None


def vae_backend(job: EncodeJob) -> Backend:
    """Load the job's VAE once here, so that a bad one fails before Ray starts; workers load it again."""
    vae = load_vae(job.vae)
    warm_up(vae)
    facts = vae_facts(vae, job.vae)
    refuse_unfit(job.rows, vae, facts)
    opened = partial(BatchEncoder.load, job.vae, job.rows, facts.as_dict(), compiled=job.workers.compile)
    return Backend(facts, opened)


_HELD = [field.name for field in fields(Committed)]


class _Run:
    """What the driver does while chunks are decided: count, show, keep receipts, and stop when it must."""

    def __init__(self, job: EncodeJob, ledger: Ledger, left: Remaining, lease: Lease, display: Display) -> None:
        self.chunks: dict[int, Committed] = dict(left.done)
        self.whole = Tally.of(left.done.values())
        self.tally = Tally()
        self._workers, self._options = job.workers, job.run
        self._ledger, self._lease, self._display = ledger, lease, display
        self._name = f"{datetime.now(UTC):%Y%m%d%H%M%S}-{lease.token[:4]}"
        self._unkept: list[dict[str, Any]] = []
        self._kept_files, self._kept_at = 0, time.monotonic()
        self._paced_from: tuple[float, int] | None = None
        self._pairs = left.pairs
        self._warned = False
        display.start(left.pairs, self.whole.decided)

    def consume(self, receipts: ray.data.Dataset) -> None:
        """Take in every receipt; the chunks that were decided are kept whatever ends this."""
        metrics = JobMetrics(self._ledger.job, self._pairs - self.whole.decided)
        needs = waited_for(self._workers, encoders(self._workers, self._options.address))
        try:
            with failures_named(), Reminder(self._display.say, needs, REMIND_S) as reminder:
                for batch in receipts.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
                    reminder.stop()
                    for receipt in batch.to_pylist():
                        self._take(receipt, metrics)
        finally:
            self._keep()
        self._judge_masks()

    def refuse_too_many(self, *, finished: bool) -> None:
        """Raise `TooManyRejected` if the whole output has more rejects than is allowed."""
        rejected, decided = self.whole.rejected, self.whole.decided
        if not self._options.allows(rejected, decided, finished=finished):
            raise TooManyRejected(
                f"{rejected:,} of {decided:,} pairs are rejected ({_most_common(self.whole)}); --max-rejected allows "
                f"{self._options.max_rejected}; see {self._ledger.uri('_rejected')}"
            )

    def _take(self, receipt: dict[str, Any], metrics: JobMetrics) -> None:
        if receipt["fatal"]:
            raise JobFailed(f"{receipt['fatal']}; what is done stays, and the same command goes on from it")
        if self._lease.lost.is_set():
            raise JobFailed("another run has taken over this output; this one stops")
        held = Committed(**{name: receipt[name] for name in _HELD} | {"errors": dict(receipt["errors"])})
        self.chunks[receipt["chunk"]] = held
        self.whole.add(held)
        self.tally.add(held, receipt["counters"])
        metrics.add(held.encoded, held.errors, dict(receipt["counters"]))
        self._display.update(self.whole.decided, self.whole.rejected, self._pace())
        self._unkept.append(receipt)
        if self.tally.encoded >= JUDGED_AT:
            self._judge_masks()
        if time.monotonic() - self._kept_at > FLUSH_S:
            self._keep()
        self.refuse_too_many(finished=False)

    def _judge_masks(self) -> None:
        """Say once if they look inverted, empty or full."""
        if not self._warned and (sentence := mask_coverage.suspicion(self.tally.counters)):
            self._display.say(f"warning: {sentence}")
            self._warned = True

    def _pace(self) -> float:
        """Pairs a second since the first receipt: what the rest will take, without Ray's start."""
        now = time.monotonic()
        self._paced_from = self._paced_from or (now, self.tally.decided)
        since, before = self._paced_from
        return (self.tally.decided - before) / (now - since) if now > since else 0.0

    def _keep(self) -> None:
        if self._unkept:
            self._ledger.write_receipts(self._name, self._kept_files, self._unkept)
            self._unkept, self._kept_files = [], self._kept_files + 1
        self._kept_at = time.monotonic()


def _most_common(tally: Tally) -> str:
    return ", ".join(f"{count:,} {error}" for error, count in tally.errors.most_common(3))
