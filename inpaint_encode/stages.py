"""What Ray calls, a chunk at a time: fetch and decode in tasks, encode in actors, commit in tasks.

Each stage takes one Ray row, a folded chunk, and gives one. All are safe to run twice: a chunk's rows depend on
the chunk alone, and its commit never replaces a decision. A pair that fails keeps its place, with its ``error``.
A fault that is no pair's own (a store that answers nobody, a disk that is full) travels on as ``fatal``.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from . import plan, rows, storage
from .errors import EncodeError, PairRejected
from .images import DecodedPair, decode_pair
from .ledger import Ledger
from .settings import RowSettings, VaeSource

__all__ = ["Encoder", "commit", "fetch_and_decode"]

_T = TypeVar("_T")
_Row = dict[str, Any]
_Files = tuple[storage.Blob, storage.Blob]
_Fetched = tuple[_Row, _Files | PairRejected]


class _Counters:
    """Seconds by stage and counts, carried along with the chunk and summed in the report."""

    def __init__(self, before: Iterable[tuple[str, float]] = ()) -> None:
        self.values: defaultdict[str, float] = defaultdict(float, before)
        self._retries = storage.retries()

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.values[f"{stage}_s"] += time.perf_counter() - start

    def items(self) -> dict[str, float]:
        self.values["retries"] += storage.retries() - self._retries
        return dict(self.values)


@dataclass(frozen=True)
class _Chunk:
    """A chunk between two stages."""

    work: _Row
    table: pa.Table
    counters: _Counters
    fatal: str | None

    @classmethod
    def unfolded(cls, row: pa.Table, schema: pa.Schema) -> _Chunk:
        work = {name: row[name][0].as_py() for name in rows.WORK.names}
        counters = _Counters(row["counters"][0].as_py())
        return cls(work, rows.unfold(row, schema), counters, row["fatal"][0].as_py())

    def folded(self, table: pa.Table, fatal: str | None = None) -> pa.Table:
        return rows.fold(table, self.work, counters=self.counters.items(), fatal=fatal or self.fatal)


def fetch_and_decode(row: pa.Table, *, multiple: int, threads: int) -> pa.Table:
    """Read the chunk's pairs from the plan, fetch both files of each, decode and crop them to ``multiple``."""
    work = {name: row[name][0].as_py() for name in rows.WORK.names}
    chunk = _Chunk(work, rows.DECODED.empty_table(), _Counters(), None)
    try:
        with chunk.counters.timed("fetch"):
            pairs = plan.read_chunk(work["part"], work["chunk"]).to_pylist()
    except OSError as error:
        return chunk.folded(chunk.table, f"the plan cannot be read: {error}")
    wanted = [pair for pair in pairs if pair["encode"] or not work["keep"]]
    fetcher = _Fetcher()
    with ThreadPoolExecutor(threads) as pool:
        answers = _waits(_fetched(pool, fetcher, wanted, 2 * threads), chunk.counters)
        decoded = [_decode_row(pair, files, multiple, chunk.counters) for pair, files in answers]
    return chunk.folded(pa.Table.from_pylist(decoded, rows.DECODED), fetcher.down or _nobody_is_served(decoded))


def _fetched(pool: ThreadPoolExecutor, fetcher: _Fetcher, pairs: list[_Row], ahead: int) -> Iterator[_Fetched]:
    """Yield pairs and their files in order, with no more than ``ahead`` pairs' bytes waiting to be decoded."""
    waiting: deque[tuple[_Row, Future[_Files | PairRejected]]] = deque()
    for pair in pairs:
        waiting.append((pair, pool.submit(fetcher.fetch_pair, pair)))
        if len(waiting) >= ahead:
            pair, files = waiting.popleft()
            yield pair, files.result()
    yield from ((pair, files.result()) for pair, files in waiting)


def _waits(answers: Iterable[_T], counters: _Counters) -> Iterator[_T]:
    """Count as fetching the time that decoding waits for the next answer."""
    iterator = iter(answers)
    while True:
        with counters.timed("fetch"):
            answer = next(iterator, None)
        if answer is None:
            return
        yield answer


class _Fetcher:
    """Reads pairs, and notices when it is the store and not an object that is at fault."""

    def __init__(self) -> None:
        self.down: str | None = None
        self._last_good: str | None = None

    def fetch_pair(self, pair: _Row) -> _Files | PairRejected:
        try:
            return self._fetch(pair["image_uri"]), self._fetch(pair["mask_uri"])
        except PairRejected as rejection:
            return rejection

    def _fetch(self, uri: str) -> storage.Blob:
        if self.down:
            raise PairRejected("fetch.unavailable", self.down)
        try:
            blob = storage.read(uri)
        except FileNotFoundError:
            raise PairRejected("fetch.not_found", f"{uri} is not there any more") from None
        except PermissionError as error:
            raise self._denied(uri, error) from error
        except storage.Unavailable as error:
            raise self._unavailable(uri, error) from error
        except OSError as error:
            raise PairRejected("fetch.failed", f"{uri}: {error.strerror or error}") from error
        self._last_good = uri
        return blob

    def _denied(self, uri: str, error: OSError) -> PairRejected:
        """If an object that was allowed before is not any more, it is the credentials, not the object."""
        message = f"{uri}: {error.strerror or error}"
        try:
            if self._last_good:
                storage.read(self._last_good)
        except PermissionError:
            self.down = f"the store allows nothing any more; {message}"
        except OSError:
            pass  # says nothing about this object
        return PairRejected("fetch.denied", message)

    def _unavailable(self, uri: str, error: OSError) -> PairRejected:
        """If an object that was fine before gets no answer either, waiting for the others is in vain."""
        budget = f"{storage.RETRY_BUDGET_S:.0f} s"
        message = f"{uri}: no whole answer within {budget}, the last fault: {error.strerror or error}"
        try:
            if self._last_good is None:
                raise error
            storage.read(self._last_good)
        except storage.Unavailable:
            self.down = f"the store does not answer; {message}"
        return PairRejected("fetch.unavailable", message)


def _nobody_is_served(decoded: list[_Row]) -> str | None:
    """If no pair of the chunk could be fetched, and not for its own sake, that decides about none of them."""
    errors = {row.get("error") for row in decoded}
    if not errors or not errors <= {"fetch.denied", "fetch.unavailable", "fetch.failed"}:
        return None
    return f"none of {len(decoded)} pairs could be fetched, the last for: {decoded[-1]['message']}"


def _decode_row(pair: _Row, files: _Files | PairRejected, multiple: int, counters: _Counters) -> _Row:
    try:
        if isinstance(files, PairRejected):
            raise files
        with counters.timed("decode"):
            decoded = decode_pair(files[0].data, files[1].data, multiple)
        versions = {"image_version": files[0].version, "mask_version": files[1].version}
        return {**pair, **versions, **_decoded_columns(decoded)}
    except PairRejected as rejection:
        return {**pair, **_rejection_columns(pair, rejection)}
    except Exception as error:  # no file, however odd, may stop the others
        return {**pair, **_rejection_columns(pair, PairRejected("decode.corrupt", repr(error)))}


def _decoded_columns(decoded: DecodedPair) -> _Row:
    return {
        "source_height": decoded.source_height,
        "source_width": decoded.source_width,
        "crop_top": decoded.crop.top,
        "crop_left": decoded.crop.left,
        "height": decoded.crop.height,
        "width": decoded.crop.width,
        "pixels": decoded.pixels.tobytes(),
        "mask": rows.pack_mask(decoded.mask),
    }


def _rejection_columns(pair: _Row, rejection: PairRejected) -> _Row:
    uri = pair["mask_uri" if rejection.stage == "mask" else "image_uri"]
    where = "" if uri in rejection.message or pair["mask_uri"] in rejection.message else f"{uri}: "
    return {"error": rejection.error, "message": where + rejection.message}


class Encoder:
    """An actor that holds one VAE: the constructor loads it and encodes once, so that a bad model fails there."""

    def __init__(
        self, source: VaeSource, settings: RowSettings, weights_sha256: str, batch_size: int, gpus: float, workers: int
    ) -> None:
        import torch

        from .encoder import BatchEncoder

        on_gpu = gpus > 0 and torch.cuda.is_available()
        if not on_gpu:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))
        self._encoder = BatchEncoder.load(source, settings, weights_sha256, "cuda" if on_gpu else "cpu")
        # What else is in a batch changes the last bits of a row.
        self._batch_size = 1 if settings.deterministic else batch_size
        self._idle_since = time.perf_counter()

    def __call__(self, row: pa.Table) -> pa.Table:
        """Encode a chunk of `rows.DECODED` in batches of equal sizes; its pixels do not leave the actor."""
        chunk = _Chunk.unfolded(row, rows.DECODED)
        chunk.counters.values["wait_s"] += time.perf_counter() - self._idle_since
        with chunk.counters.timed("encode"):
            results = self._encode_rows(chunk.table)
        columns = {
            **dict(zip(rows.DECODED.names, chunk.table.columns, strict=True)),
            **_result_columns(results),
        }
        table = pa.table([columns[name] for name in rows.ENCODED.names], schema=rows.ENCODED)
        self._idle_since = time.perf_counter()
        return chunk.folded(table, _nothing_encoded(results))

    def _encode_rows(self, table: pa.Table) -> list[_Row]:
        """One result for each row, in its place; rows that were rejected before keep their error."""
        results: list[_Row] = table.select(["error", "message"]).to_pylist()
        for indices in _equal_sizes(table, self._batch_size):
            pixels, masks = _batch(table, indices)
            for index, result in zip(indices, self._encode_batch(pixels, masks), strict=True):
                results[index] |= result
        return results

    def _encode_batch(self, pixels: NDArray[np.uint8], masks: NDArray[np.uint8]) -> list[_Row]:
        """Encode a batch; if it fails, its halves, so that one image's failure is that image's alone."""
        try:
            batch = self._encoder.encode(pixels, masks)
            return [_result(*one) | {"precision": self._encoder.precision} for one in zip(*batch, strict=True)]
        except RuntimeError as error:  # torch's, out of memory included
            if len(pixels) > 1:
                half = len(pixels) // 2
                return self._encode_batch(pixels[:half], masks[:half]) + self._encode_batch(pixels[half:], masks[half:])
            self._encoder.check()  # an error that broke the device is not this image's
            message = f"{pixels.shape[1]} x {pixels.shape[2]} pixels: {str(error).splitlines()[0]}"
            return [{"error": "encode.failed", "message": message}]


def _equal_sizes(table: pa.Table, batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of decodable rows, grouped by size in order of appearance, ``batch_size`` at a time."""
    groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    for index, row in enumerate(table.select(["height", "width", "error"]).to_pylist()):
        if row["error"] is None:
            groups[row["height"], row["width"]].append(index)
    for indices in groups.values():
        yield from (indices[start : start + batch_size] for start in range(0, len(indices), batch_size))


def _batch(table: pa.Table, indices: list[int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Stack rows of one size: pixels ``[B, H, W, 3]`` and masks ``[B, H, W]``."""
    height, width = table["height"][indices[0]].as_py(), table["width"][indices[0]].as_py()
    pixels = [np.frombuffer(table["pixels"][index].as_buffer(), np.uint8) for index in indices]
    masks = [rows.unpack_mask(table["mask"][index].as_buffer(), height, width) for index in indices]
    return np.stack(pixels).reshape(-1, height, width, 3), np.stack(masks).reshape(-1, height, width)


def _result(samples: NDArray[Any], noise_mask: NDArray[np.uint8], coverage: np.float32) -> _Row:
    finite = np.isfinite(samples)
    if not finite.all():
        message = f"{(~finite).sum():,} of {finite.size:,} latent values are not finite in {samples.dtype}"
        return {"error": "encode.not_finite", "message": message}
    return {
        "samples": samples.tobytes(),
        "samples_shape": list(samples.shape),
        "noise_mask": rows.pack_mask(noise_mask),
        "mask_coverage": float(coverage),
    }


def _result_columns(results: list[_Row]) -> dict[str, pa.ChunkedArray]:
    names = ["samples", "samples_shape", "noise_mask", "mask_coverage", "precision", "error", "message"]
    schema = pa.schema([rows.ENCODED.field(name) for name in names])
    table = pa.Table.from_pylist(results, schema)
    return dict(zip(names, table.columns, strict=True))


def _nothing_encoded(results: list[_Row]) -> str | None:
    """If every image of a chunk fails in the VAE, it is the VAE."""
    if results and all(result["error"] == "encode.failed" for result in results):
        return f"the VAE fails on all {len(results)} images of a chunk, the last: {results[-1]['message']}"
    return None


def commit(row: pa.Table, *, ledger: Ledger, samples_dtype: str, metadata: _Row) -> pa.Table:
    """Write a chunk of `rows.ENCODED` into the output; return its receipt."""
    chunk = _Chunk.unfolded(row, rows.ENCODED)
    receipt = {
        **chunk.work,
        "encoded": 0,
        "rejected": 0,
        "errors": [],
        "data_bytes": 0,
        "version": "",
        "rejects_version": "",
        "fatal": chunk.fatal,
    }
    if chunk.fatal is None:
        try:
            with chunk.counters.timed("write"):
                data = rows.data_table(chunk.table, rows.data_schema(samples_dtype, metadata))
                committed = ledger.commit(chunk.work, data, rows.rejects_table(chunk.table))
            receipt |= {**asdict(committed), "errors": list(committed.errors.items())}
        except (EncodeError, OSError) as error:
            receipt["fatal"] = f"{ledger.data_uri(chunk.work['chunk'])} cannot be written: {error}"
    receipt["counters"] = list(chunk.counters.items().items())
    return pa.Table.from_pylist([receipt], rows.RECEIPT)
