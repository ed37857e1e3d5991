"""The stages that Ray runs on a chunk: fetch and decode in a task, encode in an actor, commit in a task.

Each takes one Ray row, a chunk, and returns one. All are safe to run twice: a chunk's rows depend on the chunk alone,
and a commit never replaces another. An error that is not one pair's own (a failing store, a full disk) becomes
``fatal``.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from itertools import chain
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from inpaint_encode.core import mask_coverage
from inpaint_encode.core.batch import LatentEncoder
from inpaint_encode.core.chunk import (
    DecodedPair,
    Deferred,
    EncodedPair,
    IdleClock,
    Pair,
    Reject,
    check_vae,
    encode_pairs,
    fetch_and_decode,
)
from inpaint_encode.core.circuit_breaker import CircuitBreaker
from inpaint_encode.core.counters import Counters
from inpaint_encode.core.decode import PairDecoder
from inpaint_encode.core.isolation import DecodingProcess, IsolatedDecoder, IsolatedReader, time_limit
from inpaint_encode.core.machine import machine_memory
from inpaint_encode.errors import EncodeError, JobFailed
from inpaint_encode.output import plan
from inpaint_encode.output.rows import rejects_table, row_groups, rows_table
from inpaint_encode.output.state import ChunkResult, OutputState
from inpaint_encode.schema import DUPLICATE_KEY, EXTRA_COLUMNS, PAIRS, RECEIPT, REJECTS, WORK
from inpaint_encode.sources import PairReader
from inpaint_encode.stores import storage
from inpaint_encode.stores.base import Access
from inpaint_encode.stores.redaction import get_logger, redact_handlers

from .cluster import node_cpus, private_folder
from .transfer import DECODED, ReusableBuffer, pack_chunk, pack_decoded, unpack_chunk, unpack_decoded

MAX_CONCURRENCY = 2
"""Chunks that an actor works on: while the last batches of one are collected, those of the other are launched."""

ISOLATED_FROM = 4
"""Attempt of a chunk from which a child process reads and decodes its files, one by one: a file may have killed the
workers of three attempts. Workers and nodes that were lost for other reasons count too, which only costs time."""

MAX_ATTEMPTS = 30
"""Attempts to fetch or to encode a chunk. Ray would start a worker that always dies without end."""

_PIXELS_FRACTION = 4
"""The decoded pixels of all fetch tasks of a node take at most a quarter of its memory."""

LOGICAL_GPUS = "INPAINT_ENCODE_LOGICAL_GPUS"
"""Environment variable; "1" on a cluster whose GPUs are only numbers, as in tests: workers with a GPU use the CPU."""

_LOG = get_logger(__name__)
_PIXELS = ReusableBuffer()

FindSigned = Callable[[list[str]], dict[str, str]]
"""Returns the signed forms of URLs, see `inpaint_encode.sources.signatures`."""


def no_signatures(_urls: list[str]) -> dict[str, str]:
    """Return no signed URL."""
    return {}


def fetch_stage(
    row: pa.Table,
    *,
    decoder: PairDecoder,
    access: Access,
    max_bytes: int,
    threads: int,
    cpus: float = 1.0,
    find_signed: FindSigned = no_signatures,
) -> pa.Table:
    """Read the chunk's pairs from the plan, fetch their files and decode them.

    Args:
        row: the chunk's work.
        decoder: decodes the files.
        access: how the stores are accessed.
        max_bytes: limit for the size of a file.
        threads: concurrent downloads.
        cpus: CPUs of this task. The node runs as many tasks as fit its CPUs, and they share its memory.
        find_signed: returns the signed forms of the URLs of a list that has some.
    """
    redact_handlers()
    work = {name: row[name][0].as_py() for name in WORK.names}
    counters, retries, attempt = Counters(float), storage.retry_count(), _attempt()
    if attempt > MAX_ATTEMPTS:
        return pack_chunk(work, counters, _died(work), decoded=DECODED.empty_table())
    try:
        with counters.timed("fetch"):
            planned = plan.read_chunk(work["part"], work["chunk"], work["hash"])
    except (OSError, JobFailed) as error:
        fatal = f"the list of planned pairs cannot be read: {error}"
        return pack_chunk(work, counters, fatal, decoded=DECODED.empty_table())
    planned = planned.filter(planned["encode"]) if work["keep"] else planned
    named_twice = pc.is_valid(planned["error"])
    planned = pa.concat_tables([planned.filter(named_twice), planned.filter(pc.invert(named_twice))])
    pairs = [Pair(*(one[name] for name in Pair._fields)) for one in planned.select(PAIRS.names).to_pylist()]
    messages = planned["error"].drop_null().to_pylist()
    rejects = [Reject(pair, DUPLICATE_KEY, message) for pair, message in zip(pairs, messages, strict=False)]
    reader, breaker = _open_reader(work, pairs, access, max_bytes, find_signed)
    limits: dict[str, Any] = {"max_bytes": _task_memory(cpus), "time_limit": time_limit}
    with ExitStack() as stack:
        if attempt >= ISOLATED_FROM:
            _LOG.warning("attempt %d of chunk %s: its files are decoded in a child process", attempt, work["chunk"])
            process = stack.enter_context(DecodingProcess(reader, decoder))
            reader, decoder, threads = IsolatedReader(reader, process), IsolatedDecoder.in_process(process), 1
            del limits["time_limit"]  # the child has its own
        results = fetch_and_decode(pairs[len(rejects) :], reader, decoder, breaker, counters, threads=threads, **limits)
        try:
            decoded = pack_decoded(chain(rejects, results), _PIXELS)
        except JobFailed as error:
            return pack_chunk(work, counters, str(error), decoded=DECODED.empty_table())
    if EXTRA_COLUMNS in planned.column_names:
        decoded = decoded.append_column(EXTRA_COLUMNS, planned[EXTRA_COLUMNS].combine_chunks())
    counters["retries"] += storage.retry_count() - retries
    return pack_chunk(work, counters, breaker.failure, decoded=decoded)


def _open_reader(
    work: Mapping[str, Any], pairs: Sequence[Pair], access: Access, max_bytes: int, find_signed: FindSigned
) -> tuple[PairReader, CircuitBreaker]:
    """Return a reader that has the signed forms of the pairs' URLs, and the circuit breaker of the chunk."""
    urls = [uri for pair in pairs for uri in (pair.image_uri, pair.mask_uri) if uri.startswith(("http://", "https://"))]
    reader = PairReader(access, max_bytes, find_signed(urls) if urls else {})
    others = partial(plan.other_images, work["part"], work["chunk"])
    return reader, CircuitBreaker(reader, others, retried=work["keep"])


def _attempt() -> int:
    """Return which attempt of its task this is, from 1; without Ray it is the first."""
    if "ray" not in sys.modules:
        return 1
    from .private import task_attempt

    return task_attempt()


def _died(work: Mapping[str, Any]) -> str:
    return (
        f"{MAX_ATTEMPTS} workers have died over chunk {work['chunk']}; Ray's logs have the cause; if it is memory, "
        "lower --max-pixels, or --chunk-rows with a new output"
    )


def _task_memory(cpus: float) -> int:
    """Return the bytes of decoded pixels that a task of this many CPUs may hold."""
    return int(machine_memory() / _PIXELS_FRACTION / max(1.0, node_cpus() / cpus))


def decode_deferred(
    work: Mapping[str, Any],
    pairs: Sequence[Pair],
    counters: Counters,
    *,
    decoder: PairDecoder,
    access: Access,
    max_bytes: int,
    cpus: float = 1.0,
    find_signed: FindSigned = no_signatures,
) -> Iterator[list[DecodedPair | Reject]]:
    """Fetch and decode the pairs that a fetch task has deferred; yield their results in parts that fit in memory.

    A child process decodes them: a file that kills its process must not kill the actor and its VAE.

    Args:
        work: the chunk's.
        pairs: the deferred pairs.
        counters: as of `fetch_and_decode`.
        decoder: these and the others are those of `fetch_stage`.
        access: see there.
        max_bytes: see there.
        cpus: see there.
        find_signed: see there.

    Raises:
        JobFailed: a store fails, or the child process cannot be started.
    """
    reader, breaker = _open_reader(work, pairs, access, max_bytes, find_signed)
    with DecodingProcess(reader, decoder) as process:
        isolated = IsolatedReader(reader, process), IsolatedDecoder.in_process(process)
        while pairs:
            memory = _task_memory(cpus)
            results = list(fetch_and_decode(pairs, *isolated, breaker, counters, threads=1, max_bytes=memory))
            if breaker.failure:
                raise JobFailed(breaker.failure)
            if isinstance(results[0], Deferred):
                raise JobFailed(f"there is too little memory to decode {results[0].pair.image_uri}")
            pairs = [result.pair for result in results if isinstance(result, Deferred)]
            yield [result for result in results if not isinstance(result, Deferred)]


class EncodeStage:
    """An actor with one VAE; the constructor loads it and encodes a small image, so that a bad model fails there.

    Args:
        open_encoder: returns the encoder on ``"cuda"`` or ``"cpu"``.
        batch_size: images in a batch; "auto" leaves it to the encoder.
        make_schema: returns the schema of the data files. Workers call it, because a schema that Ray ships comes with
            Ray's own types of tensors.
        gpus: GPUs that Ray gave the actor.
        workers: actors that share a node's CPUs, at most.
        decode_deferred: `decode_deferred` with the settings of the fetch tasks.

    Raises:
        JobFailed: Ray gave it a GPU, and torch finds none.
    """

    def __init__(
        self,
        open_encoder: Callable[[str], LatentEncoder],
        batch_size: int | Literal["auto"],
        make_schema: Callable[[], pa.Schema],
        gpus: float,
        workers: int,
        decode_deferred: Callable[..., Iterator[list[DecodedPair | Reject]]],
    ) -> None:
        import torch

        redact_handlers()
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            with suppress(OSError):  # torch runs the code that it finds there; another user may make its own folder
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = private_folder("torch")
        on_gpu = gpus > 0 and torch.cuda.is_available()
        if gpus > 0 and not on_gpu and os.environ.get(LOGICAL_GPUS) != "1":
            raise JobFailed(_no_cuda(gpus, torch.version.cuda))
        if not on_gpu:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
        self._encoder = open_encoder("cuda" if on_gpu else "cpu")
        self._batch_size = batch_size
        self._schema = make_schema()
        self._decode_deferred = decode_deferred
        self._clock = IdleClock()

    def __call__(self, row: pa.Table) -> pa.Table:
        """Encode a chunk; its pixels do not leave the actor. Deferred pairs are decoded and encoded part by part."""
        work, before, fatal, (decoded,) = unpack_chunk(row, "decoded")
        counters = Counters(float, before)
        if fatal is None and _attempt() > MAX_ATTEMPTS:
            fatal = _died(work)
        extra = decoded[EXTRA_COLUMNS].combine_chunks() if EXTRA_COLUMNS in decoded.column_names else None
        tables, rejects, start = [rows_table([], self._schema, extra and extra.slice(0, 0))], list[Reject](), 0
        try:
            pairs = unpack_decoded(decoded) if fatal is None else []
            first = [pair for pair in pairs if not isinstance(pair, Deferred)]
            deferred = [pair.pair for pair in pairs if isinstance(pair, Deferred)]
            parts: Iterator[list[DecodedPair | Reject]] = iter(())
            if deferred:
                counters["deferred"] += len(deferred)
                parts = self._decode_deferred(work, deferred, counters)
            for part in chain([first], parts):
                results = encode_pairs(part, self._encoder, counters, batch_size=self._batch_size, clock=self._clock)
                at = [start + index for index, result in enumerate(results) if isinstance(result, EncodedPair)]
                encoded = [result for result in results if isinstance(result, EncodedPair)]
                own = None if extra is None else extra.take(pa.array(at, pa.int64()))
                tables.append(rows_table(encoded, self._schema, own))
                rejects += [result for result in results if isinstance(result, Reject)]
                start += len(results)
            check_vae(rejects, start)
        except JobFailed as error:
            fatal, tables, rejects = str(error), tables[:1], []
        rows = pa.concat_tables([table for table in tables[1:] if table.num_rows] or tables[:1])
        return pack_chunk(work, counters, fatal, rows=rows, rejects=rejects_table(rejects))


def _no_cuda(gpus: float, built_for: str | None) -> str:
    if built_for is None:
        remedy = "torch on that node was built without CUDA: use the CUDA container image on GPU nodes"
    else:
        remedy = f"torch on that node is built for CUDA {built_for}: install an NVIDIA driver that supports it"
    given = f"{gpus:g} GPU{'s' if gpus > 1 else ''}"
    return (
        f"a VAE worker has {given} on node {socket.gethostname()}, but torch finds no CUDA device; {remedy}, or "
        "encode on CPUs with --gpus-per-worker 0"
    )


def commit_stage(row: pa.Table, *, state: OutputState, make_schema: Callable[[], pa.Schema]) -> pa.Table:
    """Write a chunk's rows and rejects into the output; return its receipt (`inpaint_encode.schema.RECEIPT`)."""
    redact_handlers()
    work, before, fatal, (rows, rejects) = unpack_chunk(row, "rows", "rejects")
    schema, counters, retries = make_schema(), Counters(float, before), storage.retry_count()
    receipt: dict[str, Any] = ChunkResult(0, 0, {}, 0, version="", rejects_version="").to_receipt()
    receipt |= {"chunk": work["chunk"], "revision": work["revision"], "hash": work["hash"], "fatal": fatal}
    if fatal is None:
        try:
            with counters.timed("write"):
                committed = state.commit(work, row_groups(rows, schema), schema, rejects.cast(REJECTS))
            receipt |= committed.to_receipt()
            for name, count in mask_coverage.coverage_counters(rows["mask_coverage"].to_numpy()):
                counters[name] += count
            for reject in rejects.select(["key", "error", "message"]).to_pylist():
                fields = {"key": reject["key"], "error": reject["error"], "reason": reject["message"]}
                _LOG.warning("pair rejected", extra={"job": state.job, **fields})
        except (EncodeError, OSError) as error:
            receipt["fatal"] = f"{state.data_uri(work['chunk'])} cannot be written: {error}"
    counters["retries"] += storage.retry_count() - retries
    receipt["counters"] = list(counters.items())
    return pa.Table.from_pylist([receipt], RECEIPT)
