"""The first stage, a Ray task: a chunk's files are fetched and decoded, each image once for all of its masks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple, TypeVar

import pyarrow as pa

from inpaint_encode import plan, rows, storage
from inpaint_encode.errors import PairRejected
from inpaint_encode.images import DecodedImage, PairDecoder
from inpaint_encode.settings import SourceAccess
from inpaint_encode.sources import Changed, Content, PairReader

from .chunk import Chunk, Counters, Row, work_of

__all__ = ["fetch_and_decode"]

_T = TypeVar("_T")
_PIXELS = rows.Room()
"""This process's chunks are decoded into it, one after the other."""
_File = Content | PairRejected


class _Group(NamedTuple):
    """An image, and the pairs that it makes with its masks; a rejection stands where a file should be."""

    pairs: list[Row]
    image: _File
    masks: list[_File]


def fetch_and_decode(
    row: pa.Table, *, decoder: PairDecoder, access: SourceAccess, max_bytes: int, threads: int
) -> pa.Table:
    """Read the chunk's pairs from the plan, fetch the files, decode and crop them."""
    chunk = Chunk(work_of(row), rows.DECODED.empty_table(), Counters())
    try:
        with chunk.counters.timed("fetch"):
            pairs = plan.read_chunk(chunk.work["part"], chunk.work["chunk"])
    except OSError as error:
        return chunk.folded(chunk.table, f"the plan cannot be read: {error}")
    pairs = pairs.filter(pairs["encode"]) if chunk.work["keep"] else pairs
    if rows.CARRIED in pairs.column_names:
        chunk = replace(chunk, carried=pairs[rows.CARRIED].combine_chunks())
    wanted = pairs.select(rows.PAIRS.names).to_pylist()
    fetcher = _Fetcher(PairReader(access, max_bytes))
    with ThreadPoolExecutor(threads) as pool:
        groups = _waits(_fetched(pool, fetcher, wanted, 2 * threads), chunk.counters)
        decoded = (row for group in groups for row in _decoded(group, decoder, chunk.counters))
        table = rows.table_of(decoded, rows.DECODED, {"pixels": _PIXELS})
    return chunk.folded(table, fetcher.down or _nobody_is_served(table))


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
    """Reads pairs, and notices when it is the store and not an object that is at fault."""

    def __init__(self, reader: PairReader) -> None:
        self.down: str | None = None
        self._reader = reader
        self._last_good: str | None = None

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

    def _file(self, read: Callable[[Row], Content], pair: Row, uri: str) -> _File:
        try:
            return self._read(read, pair, uri)
        except PairRejected as rejection:
            return rejection

    def _read(self, read: Callable[[Row], Content], pair: Row, uri: str) -> Content:
        if self.down:
            raise PairRejected("fetch.unavailable", self.down)
        try:
            content = read(pair)
        except FileNotFoundError as error:
            raise PairRejected("fetch.not_found", f"{uri} is not there any more: {error.strerror or error}") from None
        except storage.TooLarge as error:
            raise PairRejected("fetch.too_large", f"{uri}: {error.strerror}") from error
        except Changed as error:
            raise PairRejected("fetch.changed", f"{uri}: {error.strerror}; --refresh plans it again") from error
        except PermissionError as error:
            raise self._denied(uri, error) from error
        except storage.Unavailable as error:
            raise self._unavailable(uri, error) from error
        except OSError as error:
            raise PairRejected("fetch.failed", f"{uri}: {error.strerror or error}") from error
        self._last_good = uri if isinstance(content, storage.Blob) else self._last_good
        return content

    def _denied(self, uri: str, error: OSError) -> PairRejected:
        """If an object that was allowed before is not any more, it is the credentials, not the object."""
        message = f"{uri}: {error.strerror or error}"
        try:
            if self._last_good:
                self._reader.probe(self._last_good)
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
            self._reader.probe(self._last_good)
        except storage.Unavailable:
            self.down = f"the store does not answer; {message}"
        return PairRejected("fetch.unavailable", message)


def _nobody_is_served(decoded: pa.Table) -> str | None:
    """If no pair of the chunk could be fetched, and not for its own sake, that decides about none of them."""
    errors = set(decoded["error"].to_pylist())
    if not errors or not errors <= {"fetch.denied", "fetch.unavailable", "fetch.failed"}:
        return None
    return f"none of {decoded.num_rows} pairs could be fetched, the last for: {decoded['message'][-1]}"


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
            yield {**pair, **_geometry(image), **_versions(group.image, file), **pixels, "mask": rows.pack_mask(mask)}
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
    assert isinstance(file, Content)
    try:
        return decode(file.data, *about)
    except PairRejected as rejection:
        return rejection
    except Exception as error:  # no file, however odd, may stop the others
        stage = "mask" if about else "decode"
        return PairRejected(f"{stage}.corrupt", repr(error))


def _versions(image: _File, mask: _File) -> Row:
    assert isinstance(image, Content) and isinstance(mask, Content)
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
