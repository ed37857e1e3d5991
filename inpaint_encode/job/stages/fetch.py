"""The first stage, a Ray task: a chunk's files are fetched and decoded, each image once for all of its masks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import NamedTuple, TypeVar

import pyarrow as pa

from inpaint_encode.core.circuit_breaker import Stores
from inpaint_encode.core.decode import DecodedImage, PairDecoder
from inpaint_encode.errors import PairRejected
from inpaint_encode.job.transfer import DECODED, Room, table_of
from inpaint_encode.output import plan
from inpaint_encode.schema import EXTRA_COLUMNS, PAIRS, pack_mask
from inpaint_encode.settings import SourceAccess
from inpaint_encode.sources import Changed, NullValue, PairReader, SourceFile
from inpaint_encode.stores import storage

from .chunk import Chunk, Counters, Row, work_of

__all__ = ["fetch_and_decode"]

_T = TypeVar("_T")
_PIXELS = Room()
"""This process's chunks are decoded into it, one after the other."""
_File = SourceFile | PairRejected


class _Group(NamedTuple):
    """An image, and the pairs that it makes with its masks; a rejection stands where a file should be."""

    pairs: list[Row]
    image: _File
    masks: list[_File]


def fetch_and_decode(
    row: pa.Table, *, decoder: PairDecoder, access: SourceAccess, max_bytes: int, threads: int
) -> pa.Table:
    """Read the chunk's pairs from the plan, fetch the files, decode and crop them."""
    work = work_of(row)
    chunk = Chunk(work, DECODED.empty_table(), Counters())
    try:
        with chunk.counters.timed("fetch"):
            pairs = plan.read_chunk(work["part"], work["chunk"])
    except OSError as error:
        return chunk.folded(chunk.table, f"the plan cannot be read: {error}")
    pairs = pairs.filter(pairs["encode"]) if work["keep"] else pairs
    if EXTRA_COLUMNS in pairs.column_names:
        chunk = replace(chunk, extra_columns=pairs[EXTRA_COLUMNS].combine_chunks())
    wanted = pairs.select(PAIRS.names).to_pylist()
    reader = PairReader(access, max_bytes)
    stores = Stores(reader, partial(plan.other_images, work["part"], work["chunk"]), known=work["keep"])
    fetcher = _Fetcher(reader, stores)
    with ThreadPoolExecutor(threads) as pool:
        groups = _waits(_fetched(pool, fetcher, wanted, 2 * threads), chunk.counters)
        decoded = (row for group in groups for row in _decoded(group, decoder, chunk.counters))
        table = table_of(decoded, DECODED, {"pixels": _PIXELS})
    return chunk.folded(table, stores.fault)


def _fetched(pool: ThreadPoolExecutor, fetcher: _Fetcher, pairs: list[Row], ahead: int) -> Iterator[_Group]:
    """Yield images and their masks in order, with no more than ``ahead`` of them waiting to be decoded."""
    waiting: deque[Future[_Group]] = deque()
    for _, group in groupby(pairs, key=lambda pair: pair["image_uri"]):
        waiting.append(pool.submit(fetcher.fetch, list(group)))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    yield from (group.result() for group in waiting)


def _waits(answers: Iterable[_T], counters: Counters) -> Iterator[_T]:
    """Count as fetching the time that decoding waits for the next answer."""
    iterator = iter(answers)
    while True:
        with counters.timed("fetch"):
            answer = next(iterator, None)
        if answer is None:
            return
        yield answer


class _Fetcher:
    """Reads pairs, and says what its stores have told."""

    def __init__(self, reader: PairReader, stores: Stores) -> None:
        self._reader, self._stores = reader, stores

    def fetch(self, pairs: list[Row]) -> _Group:
        """Read the image that ``pairs`` share and, unless it is not to be had, their masks."""
        image = self._file(self._reader.image, pairs[0], pairs[0]["image_uri"])
        if isinstance(image, PairRejected):
            return _Group(pairs, image, [image] * len(pairs))
        masks = [
            image if pair["mask_uri"] == pair["image_uri"] else self._file(self._reader.mask, pair, pair["mask_uri"])
            for pair in pairs
        ]
        return _Group(pairs, image, masks)

    def _file(self, read: Callable[[Row], SourceFile], pair: Row, uri: str) -> _File:
        if reason := self._stores.give_up(uri):
            return PairRejected("fetch.unavailable", reason)
        try:
            content = read(pair)
        except Exception as error:  # no object, however odd its name or its answer, may stop the others
            rejection = _rejection(uri, error, is_mask=read == self._reader.mask)
        else:
            self._stores.answered(uri, good=isinstance(content, storage.Blob))
            return content
        if rejection.error == "fetch.denied":
            self._stores.refused(uri, rejection.message)
        elif rejection.error == "fetch.unavailable":
            self._stores.unanswered(uri, rejection.message)
        elif rejection.error != "fetch.failed":
            self._stores.answered(uri, good=False)
        return rejection


def _rejection(uri: str, error: Exception, *, is_mask: bool) -> PairRejected:
    """By what the store said; an error that nobody foresaw is the object's own."""
    said = f"{uri}: {getattr(error, 'strerror', None) or error}"
    match error:
        case NullValue() if is_mask:
            return PairRejected("mask.missing", said)
        case FileNotFoundError():
            return PairRejected("fetch.not_found", f"{uri} is not there any more: {error.strerror or error}")
        case storage.TooLarge():
            return PairRejected("fetch.too_large", said)
        case Changed():
            return PairRejected("fetch.changed", f"{said}; --refresh plans it again")
        case PermissionError():
            return PairRejected("fetch.denied", said)
        case storage.Unavailable():
            fault = f"no whole answer within {storage.RETRY_BUDGET_S:.0f} s, the last fault"
            return PairRejected("fetch.unavailable", f"{uri}: {fault}: {error.strerror or error}")
        case OSError():
            return PairRejected("fetch.failed", said)
    return PairRejected("fetch.failed", f"{uri}: {error!r}")


def _decoded(group: _Group, decoder: PairDecoder, counters: Counters) -> Iterator[Row]:
    """One row a pair; the first that is not rejected carries the pixels for all."""
    counters.add("objects_fetched", _fetched_objects(group))
    with counters.timed("decode"):
        image = _attempt(decoder.image, group.image)
        masks = [_attempt(decoder.mask, file, image) for file in group.masks]
    counters.add("images_decoded", isinstance(image, DecodedImage))
    carried = False
    for pair, file, mask in zip(group.pairs, group.masks, masks, strict=True):
        if isinstance(mask, PairRejected):
            yield {**pair, **_rejection_columns(pair, mask)}
        else:
            assert isinstance(image, DecodedImage)
            pixels = {} if carried else {"pixels": image.pixels}
            yield {**pair, **_geometry(image), **_versions(group.image, file), **pixels, "mask": pack_mask(mask)}
            carried = True


def _fetched_objects(group: _Group) -> int:
    """Of images and masks; one that is both is one, and a drawn mask is none."""
    files = [group.image, *(file for file in group.masks if file is not group.image)]
    return sum(isinstance(file, storage.Blob) for file in files)


def _attempt(decode: Callable[..., _T], file: _File, *about: DecodedImage | PairRejected) -> _T | PairRejected:
    """``decode`` the file, unless it or what it is ``about`` is rejected already."""
    for rejected in (*about, file):
        if isinstance(rejected, PairRejected):
            return rejected
    assert isinstance(file, SourceFile)
    try:
        return decode(file.data, *about)
    except PairRejected as rejection:
        return rejection
    except Exception as error:  # no file, however odd, may stop the others
        stage = "mask" if about else "decode"
        return PairRejected(f"{stage}.corrupt", repr(error))


def _versions(image: _File, mask: _File) -> Row:
    assert isinstance(image, SourceFile) and isinstance(mask, SourceFile)
    return {"image_version": image.version, "mask_version": mask.version}


def _geometry(image: DecodedImage) -> Row:
    return {
        "source_height": image.source_height,
        "source_width": image.source_width,
        "resized_height": image.geometry.resized_height,
        "resized_width": image.geometry.resized_width,
        "crop_top": image.crop.top,
        "crop_left": image.crop.left,
        "height": image.crop.height,
        "width": image.crop.width,
    }


def _rejection_columns(pair: Row, rejection: PairRejected) -> Row:
    uri = pair["mask_uri" if rejection.stage == "mask" else "image_uri"]
    where = "" if uri in rejection.message or pair["mask_uri"] in rejection.message else f"{uri}: "
    return {"error": rejection.error, "message": where + rejection.message}
