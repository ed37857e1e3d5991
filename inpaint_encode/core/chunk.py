"""The whole work on a chunk of pairs, without Ray and without an output: fetch, decode, encode.

`encode_chunk` does it all. A job runs its two parts, `fetch_and_decode` and `encode_pairs`, on different workers. Every
pair becomes one result, in the order of the pairs; a pair that fails becomes a `Reject`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby, islice, repeat
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from inpaint_encode.errors import JobFailed, PairRejected
from inpaint_encode.sources import Changed, NullValue, PairReader, SourceFile
from inpaint_encode.stores import storage

from .batch import Batch, EncodedBatch, EncodeFuture, LatentEncoder, OutOfMemory, is_out_of_memory
from .circuit_breaker import CircuitBreaker
from .counters import Counters
from .decode import DecodedImage, PairDecoder
from .geometry import format_size
from .isolation import ProcessCrashed

PREFETCH_BATCHES = 2
"""Batches of a chunk that are launched before the first result is collected."""

MAX_MASK_BYTES = 2**29
"""Once the masks of an image have this many bytes, the others are not fetched with them: their pairs are deferred."""

_T = TypeVar("_T")
_TimeLimit = Callable[[Literal["decode", "read"]], AbstractContextManager[Any]]


class Pair(NamedTuple):
    """An image and one of its masks, by their URIs."""

    key: str
    image_uri: str
    mask_uri: str
    mask_index: int = 0
    image_version: str = ""
    """As planned, then as read; empty if it is not known."""
    mask_version: str = ""


@dataclass(frozen=True, slots=True)
class DecodedPair:
    """A pair in pixels, cropped."""

    pair: Pair
    image: DecodedImage
    """Pairs of one image share it."""
    mask: NDArray[np.uint8]
    """``[ceil(H * W / 8)]``: packed bits, 1 where the image is repainted; not grown."""


@dataclass(frozen=True, slots=True)
class EncodedPair:
    """A row without the source's own columns."""

    pair: Pair
    image: DecodedImage
    samples: NDArray[Any]
    """``[C, h, w]`` in the stored type."""
    original_samples: NDArray[Any] | None
    noise_mask: NDArray[np.uint8]
    """``[ceil(H * W / 8)]``: packed bits, grown."""
    latent_mask: NDArray[Any] | None
    """``[1, h, w]``."""
    mask_coverage: float
    """Mean of ``noise_mask``."""
    precision: str
    tiled: bool


@dataclass(frozen=True, slots=True)
class Reject:
    """A pair that did not become a row."""

    pair: Pair
    error: str
    """A stable name, such as ``image.truncated``."""
    message: str


@dataclass(frozen=True, slots=True)
class Deferred:
    """A pair that is not decoded yet, because the chunk's decoded pairs fill the memory that it may take."""

    pair: Pair


def encode_chunk(
    pairs: Sequence[Pair],
    reader: PairReader,
    decoder: PairDecoder,
    encoder: LatentEncoder,
    *,
    batch_size: int | Literal["auto"] = "auto",
    threads: int = 16,
    tile: bool | None = None,
) -> list[EncodedPair | Reject]:
    """Fetch, decode and encode pairs; return one result per pair, in their order.

    Args:
        pairs: pairs of one image must be neighbors, so that it is fetched and decoded once.
        reader: reads images and masks.
        decoder: decodes and crops them.
        encoder: encodes batches of one size.
        batch_size: images in a batch; "auto" leaves it to the encoder.
        threads: concurrent downloads.
        tile: whether to encode in tiles; None: as the rows' metadata say.

    Raises:
        JobFailed: a store fails, the VAE fails on every image, or there is too little memory to decode.
    """
    counters, breaker = Counters(float), CircuitBreaker(reader)
    decoded: list[DecodedPair | Reject] = []
    for result in fetch_and_decode(pairs, reader, decoder, breaker, counters, threads=threads):
        if isinstance(result, Deferred):
            raise JobFailed(f"there is too little memory to decode {result.pair.image_uri}")
        decoded.append(result)
    if breaker.failure:
        raise JobFailed(breaker.failure)
    results = encode_pairs(decoded, encoder, counters, batch_size=batch_size, tile=tile)
    check_vae([result for result in results if isinstance(result, Reject)], len(results))
    return results


def fetch_and_decode(
    pairs: Sequence[Pair],
    reader: PairReader,
    decoder: PairDecoder,
    breaker: CircuitBreaker,
    counters: Counters,
    *,
    threads: int,
    max_bytes: int = sys.maxsize,
    time_limit: _TimeLimit = nullcontext,
) -> Iterator[DecodedPair | Reject | Deferred]:
    """Fetch and decode pairs, each image once for all its masks; yield one result per pair, in their order.

    Args:
        pairs: pairs of one image must be neighbors.
        reader: reads images and masks.
        decoder: decodes and crops them.
        breaker: decides when a store is failing; the caller must check ``breaker.failure`` at the end.
        counters: receive ``fetch_s``, ``decode_s``, ``objects_fetched`` and ``images_decoded``.
        threads: concurrent downloads; at most twice as many images wait to be decoded.
        max_bytes: limit for the pixels and the packed masks of all decoded pairs. The pairs after it are `Deferred`.
            The first image is decoded whatever its size.
        time_limit: is entered for each file that is decoded, and while files are awaited.

    Raises:
        JobFailed: the child process of an isolated reader or decoder cannot be started.
    """
    done, kept = 0, 0
    pool = ThreadPoolExecutor(threads)
    try:
        images = _prefetched(pool, pairs, reader, breaker, counters, time_limit, ahead=2 * threads)
        for group, image_file, mask_files in images:
            files = [image_file, *(file for file in mask_files if file is not image_file)]
            counters["objects_fetched"] += sum(isinstance(file, storage.Blob) for file in files)
            with counters.timed("decode"):
                image = _decoded(decoder.image, image_file, "image", time_limit)
            if isinstance(image, DecodedImage):
                counters["images_decoded"] += 1
                kept += image.pixels.size
            for pair, mask_file in zip(group, mask_files, strict=True):
                mask: Any = image
                if isinstance(image, DecodedImage):
                    kept += image.pixels.size // 24
                    with counters.timed("decode"):
                        mask = _decoded(decoder.mask, mask_file, "mask", time_limit, image)
                        mask = mask if mask is None or isinstance(mask, PairRejected) else np.packbits(mask)
                if mask is None or (kept > max_bytes and done > 0):
                    yield from map(Deferred, pairs[done:])
                    return
                done += 1
                if isinstance(mask, PairRejected):
                    uri = pair.mask_uri if mask.stage == "mask" else pair.image_uri
                    named = uri in mask.message or pair.mask_uri in mask.message
                    yield Reject(pair, mask.error, mask.message if named else f"{uri}: {mask.message}")
                else:
                    assert isinstance(image, DecodedImage)
                    versions = {"image_version": image_file.version, "mask_version": mask_file.version}
                    yield DecodedPair(pair._replace(**versions), image, mask)
    finally:
        pool.shutdown(cancel_futures=True)


def _prefetched(
    pool: ThreadPoolExecutor,
    pairs: Iterable[Pair],
    reader: PairReader,
    breaker: CircuitBreaker,
    counters: Counters,
    time_limit: _TimeLimit,
    *,
    ahead: int,
) -> Iterator[tuple[list[Pair], Any, list[Any]]]:
    """Yield the pairs of each image with its file and its masks' files, in order; count the waits as ``fetch_s``."""
    waiting: deque[tuple[list[Pair], Future[list[SourceFile | PairRejected | None]]]] = deque()
    images = groupby(pairs, key=lambda pair: pair.image_uri)
    while True:
        for _, group in islice(images, ahead - len(waiting)):
            of_image = list(group)
            waiting.append((of_image, pool.submit(_fetch_image_and_masks, of_image, reader, breaker)))
        if not waiting:
            return
        of_image, future = waiting.popleft()
        with counters.timed("fetch"), time_limit("read"):
            image_file, *mask_files = future.result()
        yield of_image, image_file, mask_files


def _fetch_image_and_masks(
    pairs: list[Pair], reader: PairReader, breaker: CircuitBreaker
) -> list[SourceFile | PairRejected | None]:
    """Return the file of the image that ``pairs`` share and then those of their masks; None for masks over the limit.

    No mask is requested if the image cannot be read: a store that answers for masks alone must not seem to work.
    """
    image = _fetch(pairs[0], "image", reader, breaker)
    files, held = [image, *repeat(None, len(pairs))], 0
    for index, pair in enumerate(pairs, 1):
        if isinstance(image, PairRejected) or pair.mask_uri == pair.image_uri:
            files[index] = image
        elif held <= MAX_MASK_BYTES:
            files[index] = mask = _fetch(pair, "mask", reader, breaker)
            held += len(mask.data) if isinstance(mask, storage.Blob) else 0
    return files


def _fetch(
    pair: Pair, role: Literal["image", "mask"], reader: PairReader, breaker: CircuitBreaker
) -> SourceFile | PairRejected:
    """Return the pair's image file or its mask file; a `PairRejected` for a failure."""
    uri, version = (pair.image_uri, pair.image_version) if role == "image" else (pair.mask_uri, pair.mask_version)
    if reason := breaker.reason_to_skip(uri):
        return PairRejected("fetch.unavailable", reason)
    try:
        file = reader.read(uri, version, key=pair.key)
    except JobFailed:
        raise
    except Exception as error:  # no object, whatever its name or the answer, may stop the others
        rejection = _fetch_error(uri, error, role)
    else:
        breaker.record_answer(uri, read=isinstance(file, storage.Blob))
        return file
    if rejection.error == "fetch.denied":
        breaker.record_denied(uri, rejection.message)
    elif rejection.error == "fetch.unavailable":
        breaker.record_unanswered(uri, rejection.message)
    elif rejection.error not in ("fetch.failed", f"{role}.crashed"):
        breaker.record_answer(uri, read=False)
    return rejection


def _fetch_error(uri: str, error: Exception, role: Literal["image", "mask"]) -> PairRejected:
    """Return the rejection for an error of the store; an unknown error counts as the object's."""
    reason = f"{uri}: {getattr(error, 'strerror', None) or error}"
    match error:
        case ProcessCrashed():
            return PairRejected(f"{role}.crashed", reason)
        case NullValue() if role == "mask":
            return PairRejected("mask.missing", reason)
        case FileNotFoundError():
            return PairRejected("fetch.not_found", f"{uri} does not exist ({error.strerror or error})")
        case storage.TooLarge():
            return PairRejected("fetch.too_large", reason)
        case Changed():
            return PairRejected("fetch.changed", f"{reason}; run again with --refresh to use the new version")
        case PermissionError():
            return PairRejected("fetch.denied", reason)
        case storage.Unavailable():
            budget = f"no complete answer within {storage.RETRY_BUDGET_S:.0f} s of retries"
            return PairRejected("fetch.unavailable", f"{uri}: {budget}; the last error: {error.strerror or error}")
        case OSError():
            return PairRejected("fetch.failed", reason)
    return PairRejected("fetch.failed", f"{uri}: {error!r}")


def _decoded(
    decode: Callable[..., _T],
    file: SourceFile | PairRejected | None,
    stage: str,
    time_limit: _TimeLimit,
    *image: DecodedImage,
) -> _T | PairRejected | None:
    """Decode a file, unless it is rejected already; return the rejection if it fails, and None if memory is short."""
    if file is None or isinstance(file, PairRejected):
        return file
    try:
        with time_limit("decode"):
            return decode(file.data, *image)
    except PairRejected as rejection:
        return rejection
    except ProcessCrashed as crash:
        return PairRejected(f"{stage}.crashed", str(crash))
    except MemoryError:
        return None
    except JobFailed:
        raise
    except Exception as error:  # no file, whatever its bytes, may stop the others
        return PairRejected(f"{stage}.corrupt", repr(error))


@dataclass
class IdleClock:
    """How long a device has had nothing to do, whichever thread launches its batches."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    running: int = 0
    """Batches that are launched and not collected."""
    idle_since: float = field(default_factory=time.perf_counter)


def encode_pairs(
    pairs: Sequence[DecodedPair | Reject],
    encoder: LatentEncoder,
    counters: Counters,
    *,
    batch_size: int | Literal["auto"] = "auto",
    tile: bool | None = None,
    clock: IdleClock | None = None,
) -> list[EncodedPair | Reject]:
    """Encode pairs in batches of equal sizes; return one result per pair, in their order.

    Args:
        pairs: rejects stay as they are.
        encoder: encodes batches of one size.
        counters: receive the seconds by stage and the counts of batches, tiles and fallbacks.
        batch_size: images in a batch; "auto" leaves it to the encoder.
        tile: whether to encode in tiles; None: as the rows' metadata say.
        clock: of the device, if several threads use it.

    Raises:
        RuntimeError: the device is not usable any more.
    """
    worker = _BatchWorker(encoder, counters, clock or IdleClock(), tile)
    results: list[Any] = list(pairs)
    sizes: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index, pair in enumerate(pairs):
        if isinstance(pair, DecodedPair):
            sizes[pair.image.pixels.shape[0], pair.image.pixels.shape[1]].append(index)
    batches: list[list[int]] = []
    for size, indices in sizes.items():
        at_once = encoder.batch_size(*size) if batch_size == "auto" else batch_size
        batches += [indices[start : start + at_once] for start in range(0, len(indices), at_once)]
    launched: deque[tuple[list[int], Batch, EncodeFuture | RuntimeError]] = deque()
    for number in range(len(batches) + PREFETCH_BATCHES):
        if number < len(batches):
            some = [results[index] for index in batches[number]]
            pixels = [one.image.pixels.reshape(-1) for one in some]
            height, width = some[0].image.pixels.shape[:2]
            batch = Batch(height, width, pixels, [one.mask for one in some], [one.pair.key for one in some])
            launched.append((batches[number], batch, worker.launch(batch)))
        if number >= PREFETCH_BATCHES:
            indices, batch, future = launched.popleft()
            encoded = worker.collect([results[index] for index in indices], batch, future)
            for index, result in zip(indices, encoded, strict=True):
                results[index] = result
    return results


def check_vae(rejects: Sequence[Reject], pairs: int) -> None:
    """Raise `JobFailed` if the VAE failed on each of a chunk's ``pairs``."""
    if pairs and pairs == sum(reject.error == "encode.failed" for reject in rejects):
        raise JobFailed(f"the VAE fails on every image of a chunk ({pairs}); the last error: {rejects[-1].message}")


@dataclass(frozen=True)
class _BatchWorker:
    """Launches batches and turns their results into rows and rejects."""

    encoder: LatentEncoder
    counters: Counters
    clock: IdleClock
    tile: bool | None

    def launch(self, batch: Batch) -> EncodeFuture | RuntimeError:
        """Launch a batch; an error is returned, so that it is handled like one of its result."""
        with self.clock.lock:
            if not self.clock.running:
                self.counters["wait_s"] += time.perf_counter() - self.clock.idle_since
            self.clock.running += 1
        try:
            return self.encoder.launch(batch, tile=self.tile)
        except RuntimeError as error:  # torch's, out of memory included
            return error

    def collect(
        self, pairs: Sequence[DecodedPair], batch: Batch, future: EncodeFuture | RuntimeError
    ) -> list[EncodedPair | Reject]:
        """Return the results of a batch. If it failed, its halves are encoded, so that only one image is rejected."""
        counters = self.counters
        try:
            if isinstance(future, RuntimeError):
                raise future
            encoded = future.result()
        except RuntimeError as error:
            return self._after_failure(pairs, batch, error)
        finally:
            with self.clock.lock:
                self.clock.running -= 1
                self.clock.idle_since = time.perf_counter()
        for stage, seconds in encoded.seconds.items():
            counters[f"{stage}_s"] += seconds
        counters["batches"] += 1
        counters[f"batches_of_{1 << (len(batch.pixels) - 1).bit_length()}"] += 1
        counters["oom_steps"] += encoded.oom_steps
        with counters.timed("copy_back"):
            results = [_result(pair, encoded, index, self.encoder.precision) for index, pair in enumerate(pairs)]
        counters["tiled"] += sum(encoded.tiled)
        counters["not_finite"] += len(encoded.in_float32) or int(np.count_nonzero(~encoded.finite))
        counters["encoded_again"] += len(encoded.in_float32)
        return results

    def _after_failure(
        self, pairs: Sequence[DecodedPair], batch: Batch, error: RuntimeError
    ) -> list[EncodedPair | Reject]:
        self.counters["oom_steps"] += error.steps if isinstance(error, OutOfMemory) else 0
        if len(pairs) > 1:
            middle = len(pairs) // 2
            halves = [range(middle), range(middle, len(pairs))]
            parts = [([pairs[index] for index in half], batch.part(half)) for half in halves]
            return [result for some, part in parts for result in self.collect(some, part, self.launch(part))]
        message = f"{format_size(batch.height, batch.width)} pixels: {str(error).splitlines()[0]}"
        self.counters["not_finite"] += error.not_finite if isinstance(error, OutOfMemory) else 0
        if is_out_of_memory(error):
            return [Reject(pairs[0].pair, "encode.out_of_memory", message)]
        self.encoder.check()  # raises if the error broke the device, which is not this image's fault
        return [Reject(pairs[0].pair, "encode.failed", message)]


def _result(pair: DecodedPair, encoded: EncodedBatch, index: int, precision: str) -> EncodedPair | Reject:
    """Return row ``index`` of a batch."""
    samples = encoded.samples[index]
    precision = "float32" if index in encoded.in_float32 else precision
    if not (encoded.finite[index] and encoded.fits_stored_dtype[index]):
        bad = f"{np.count_nonzero(~np.isfinite(samples)):,} of {samples.size:,} latent values"
        if not encoded.finite[index]:
            return Reject(pair.pair, "encode.not_finite", f"{bad} are not finite (computed in {precision})")
        largest = f"{bad} are larger than {samples.dtype} can hold; use --samples-dtype float32"
        return Reject(pair.pair, "encode.too_large", largest)
    noise_mask = encoded.noise_mask[index]
    return EncodedPair(
        pair=pair.pair,
        image=pair.image,
        samples=samples,
        original_samples=None if encoded.original_samples is None else encoded.original_samples[index],
        noise_mask=np.packbits(noise_mask),
        latent_mask=None if encoded.latent_mask is None else encoded.latent_mask[index][None],
        mask_coverage=np.count_nonzero(noise_mask) / noise_mask.size,
        precision=precision,
        tiled=bool(encoded.tiled and encoded.tiled[index]),
    )
