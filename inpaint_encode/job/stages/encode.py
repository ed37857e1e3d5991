"""The middle stage, a Ray actor with one VAE: a chunk's pixels become latents and grown masks."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from inpaint_encode.core.batch import Batch, EncodedBatch, LatentEncoder, Launched, OutOfMemory, is_out_of_memory
from inpaint_encode.errors import JobFailed
from inpaint_encode.job.transfer import DECODED, ENCODED, table_of
from inpaint_encode.schema import pack_mask

from .chunk import Chunk, Counters, Row

__all__ = ["CALLS_AT_ONCE", "Encoder"]

CALLS_AT_ONCE = 2
"""Chunks that an actor works on: while one's last batches are collected, the other's are launched."""

_AHEAD = 2
"""Batches of a chunk that are under way before the first is waited for."""


LOGICAL_GPUS = "INPAINT_ENCODE_LOGICAL_GPUS"
"""Set to 1 on a cluster whose GPUs are only numbers, as in tests: a worker that was given one encodes on the CPU."""


class Encoder:
    """An actor that holds one VAE: the constructor loads it and encodes once, so that a bad model fails there.

    Raises:
        JobFailed: Ray gave it a GPU, and torch finds none on its node.
    """

    def __init__(
        self, open_encoder: Callable[[str], LatentEncoder], batch_size: int | Literal["auto"], gpus: float, workers: int
    ) -> None:
        import torch

        on_gpu = gpus > 0 and torch.cuda.is_available()
        if gpus > 0 and not on_gpu and os.environ.get(LOGICAL_GPUS) != "1":
            raise JobFailed(_no_cuda(gpus, torch.version.cuda))
        if not on_gpu:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
        self._encoder = open_encoder("cuda" if on_gpu else "cpu")
        self._batch_size = batch_size
        self._device = _DeviceClock()

    def __call__(self, row: pa.Table) -> pa.Table:
        """Encode a chunk of `schema.DECODED` in batches of equal sizes; its pixels do not leave the actor."""
        chunk = Chunk.unfolded(row, DECODED)
        results = self._encode_rows(chunk.table, chunk.counters)
        made = table_of(results, pa.schema([ENCODED.field(name) for name in _RESULT]))
        columns = {name: (made if name in _RESULT else chunk.table)[name] for name in ENCODED.names}
        return chunk.folded(pa.table(columns, schema=ENCODED), _nothing_encoded(results))

    def _encode_rows(self, table: pa.Table, counters: Counters) -> list[Row]:
        """One result for each row, in its place; rows that were rejected before keep their error."""
        results: list[Row] = table.select(["error", "message"]).to_pylist()
        under_way: deque[tuple[list[int], Batch, Launched | RuntimeError]] = deque()

        def collect() -> None:
            indices, batch, launched = under_way.popleft()
            for index, result in zip(indices, self._collected(batch, launched, counters), strict=True):
                results[index] |= result

        for indices, batch in _equal_sizes(table, self._images_at_once):
            under_way.append((indices, batch, self._launched(batch, counters)))
            if len(under_way) > _AHEAD:
                collect()
        while under_way:
            collect()
        return results

    def _images_at_once(self, height: int, width: int) -> int:
        return self._encoder.images_at_once(height, width) if self._batch_size == "auto" else self._batch_size

    def _launched(self, batch: Batch, counters: Counters) -> Launched | RuntimeError:
        counters.add("wait_s", self._device.begin())
        try:
            return self._encoder.launch(batch)
        except RuntimeError as error:  # torch's, out of memory included
            return error

    def _collected(self, batch: Batch, launched: Launched | RuntimeError, counters: Counters) -> list[Row]:
        """The results of a batch; if it failed, of its halves, so that one image's failure is that image's alone."""
        try:
            if isinstance(launched, RuntimeError):
                raise launched
            encoded = launched.result()
        except RuntimeError as error:
            return self._alone(batch, error, counters)
        finally:
            self._device.end()
        for stage, seconds in encoded.seconds.items():
            counters.add(f"{stage}_s", seconds)
        counters.add("batches", 1)
        counters.add(f"batches_of_{1 << (len(batch.pixels) - 1).bit_length()}", 1)
        counters.add("oom_steps", encoded.oom_steps)
        with counters.timed("copy_back"):
            results = list(_results(encoded, self._encoder.precision))
        counters.add("tiled", sum(encoded.tiled))
        counters.add("not_finite", len(encoded.again) or int(np.count_nonzero(~encoded.finite)))
        counters.add("encoded_again", len(encoded.again))
        return results

    def _alone(self, batch: Batch, error: RuntimeError, counters: Counters) -> list[Row]:
        counters.add("oom_steps", error.steps if isinstance(error, OutOfMemory) else 0)
        if len(batch.pixels) > 1:
            indices, half = range(len(batch.pixels)), len(batch.pixels) // 2
            halves = [batch.part(indices[:half]), batch.part(indices[half:])]
            return [row for part in halves for row in self._collected(part, self._launched(part, counters), counters)]
        message = f"{batch.height} x {batch.width} pixels: {str(error).splitlines()[0]}"
        counters.add("not_finite", error.not_finite if isinstance(error, OutOfMemory) else 0)
        if is_out_of_memory(error):  # of which no device breaks
            return [{"error": "encode.out_of_memory", "message": message}]
        self._encoder.check()  # an error that broke the device is not this image's
        return [{"error": "encode.failed", "message": message}]


def _no_cuda(gpus: float, built_for: str | None) -> str:
    node = socket.gethostname()
    if built_for is None:
        why = "torch there is a build without CUDA: give GPU nodes the cuda image"
    else:
        why = f"torch there is built for CUDA {built_for}: give the node an NVIDIA driver that is new enough for it"
    return (
        f"a VAE worker was given {gpus:g} GPU on node {node}, but torch finds no CUDA device; {why}, or encode on CPUs "
        "with --gpus-per-worker 0"
    )


_RESULT = (
    *("samples", "samples_shape", "original_samples", "noise_mask", "latent_mask", "mask_coverage"),
    *("precision", "tiled", "error", "message"),
)


class _DeviceClock:
    """How long the device has had nothing to do, whichever of the actor's threads brings it work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way = 0
        self._idle_since = time.perf_counter()

    def begin(self) -> float:
        """Note that a batch is launched; return the seconds since the last one ended, if none is under way."""
        with self._lock:
            self._under_way += 1
            return time.perf_counter() - self._idle_since if self._under_way == 1 else 0.0

    def end(self) -> None:
        """Note that a batch has ended."""
        with self._lock:
            self._under_way -= 1
            self._idle_since = time.perf_counter()


def _equal_sizes(table: pa.Table, images_at_once: Callable[[int, int], int]) -> Iterator[tuple[list[int], Batch]]:
    """Yield batches of decodable rows and their indices, by size in order of appearance."""
    carriers = _carriers(table)
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index, row in enumerate(table.select(["height", "width", "error"]).to_pylist()):
        if row["error"] is None:
            groups[row["height"], row["width"]].append(index)
    for size, indices in groups.items():
        at_once = images_at_once(*size)
        for start in range(0, len(indices), at_once):
            part = indices[start : start + at_once]
            pixels = [_bytes(table["pixels"][carriers[index]]) for index in part]
            masks = [_bytes(table["mask"][index]) for index in part]
            yield part, Batch(*size, pixels, masks, [table["key"][index].as_py() for index in part])


def _carriers(table: pa.Table) -> NDArray[np.int64]:
    """For each row the index of the row that has its image's pixels."""
    has = table["pixels"].is_valid().to_numpy()
    return np.maximum.accumulate(np.where(has, np.arange(len(has)), 0))


def _bytes(value: pa.LargeBinaryScalar) -> NDArray[np.uint8]:
    return np.frombuffer(value.as_buffer(), np.uint8)


def _results(encoded: EncodedBatch, precision: str) -> Iterator[Row]:
    again = frozenset(encoded.again)
    for index, samples in enumerate(encoded.samples):
        if not encoded.finite[index]:
            yield {
                "error": "encode.not_finite",
                "message": _not_finite(samples, "float32" if index in again else precision),
            }
        elif not encoded.stored[index]:
            yield {"error": "encode.too_large", "message": _too_large(samples)}
        else:
            noise_mask = encoded.noise_mask[index]
            yield {
                "samples": samples,
                "samples_shape": samples.shape,
                "original_samples": None if encoded.original_samples is None else encoded.original_samples[index],
                "noise_mask": pack_mask(noise_mask),
                "latent_mask": None if encoded.latent_mask is None else encoded.latent_mask[index],
                "mask_coverage": np.count_nonzero(noise_mask) / noise_mask.size,
                "precision": "float32" if index in again else precision,
                "tiled": bool(encoded.tiled and encoded.tiled[index]),
            }


def _not_finite(samples: NDArray[Any], precision: str) -> str:
    bad = np.count_nonzero(~np.isfinite(samples))
    return f"{bad:,} of {samples.size:,} latent values are not finite, computed in {precision}"


def _too_large(samples: NDArray[Any]) -> str:
    bad = np.count_nonzero(~np.isfinite(samples))
    return (
        f"{bad:,} of {samples.size:,} latent values are larger than {samples.dtype} holds; use --samples-dtype float32"
    )


def _nothing_encoded(results: list[Row]) -> str | None:
    """If every image of a chunk fails in the VAE, it is the VAE."""
    if results and all(result["error"] == "encode.failed" for result in results):
        return f"the VAE fails on all {len(results)} images of a chunk, the last: {results[-1]['message']}"
    return None
