"""Pairs in WebDataset tars. Only headers are read here; workers read the members by ranges. Nothing is unpacked.

A sample is all members with the same name up to the first dot, folders included: ``a/042.jpg``, ``a/042.mask.png`` and
``a/042.json`` belong to sample ``a/042``, wherever they are in the tar. The image is the member with nothing, or with
``--image-column``, between the sample's name and an image's suffix. A mask has ``--mask-column`` there, and may have a
number after it. json and txt become string columns. All other members are ignored.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import closing
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from inpaint_encode.errors import UsageError
from inpaint_encode.settings import Source
from inpaint_encode.stores.base import Access
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import RangedFile

from .batches import Piece, find_unchanged, in_batches
from .pairs import (
    MAX_EXAMPLES,
    LeftOut,
    PairBatch,
    PairFiles,
    PairSource,
    Slice,
    check_access,
    translate_read_errors,
)
from .random_masks import slice_version
from .tar_headers import DamagedTar
from .tar_index import EXTRA, PAIRS, TarReader

SAMPLE_NAME = "__key__"
"""As ``--key-column``: the sample's name alone is the key, which must then be unique in all tars."""

AHEAD_BYTES = 2**28
"""Memory from which tars are not read ahead. A single tar may need more."""

_CONCURRENT_TARS = 16


class _ReadAhead:
    """Bounds the memory of the tars that are indexed before their pairs are due.

    Tars are numbered in the order of their pairs. The due tar is always read on. Others wait while all together take
    more than `AHEAD_BYTES`.
    """

    def __init__(self) -> None:
        self._due, self._ended = 0, False
        self._bytes: dict[int, int] = {}
        self._changed = threading.Condition()

    def reserve(self, tar: int, size: int) -> None:
        """Set the bytes that a tar takes; wait until they are free.

        Raises:
            CancelledError: `end` was called.
        """
        with self._changed:
            self._bytes[tar] = size
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._ended or tar == self._due or sum(self._bytes.values()) <= AHEAD_BYTES)
            if self._ended:
                raise CancelledError

    def release(self, tar: int) -> None:
        """Free the bytes of the due tar; the next is due."""
        with self._changed:
            self._bytes.pop(tar, None)
            self._due = tar + 1
            self._changed.notify_all()

    def end(self) -> None:
        """Let all calls of `reserve` raise `CancelledError`."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()


class _IndexedTar(NamedTuple):
    """The pairs of a tar from line ``start`` on, and its files that belong to no pair."""

    number: int
    """Of the tar, as in `_ReadAhead`."""
    uri: str
    version: str
    """Of its slices."""
    start: int
    tables: Iterator[pa.Table]
    """Each is made when it is due."""
    left_out: LeftOut
    image_bytes: int
    """Total size of the images that have a mask."""
    mask_bytes: int


class TarPairs(PairSource):
    """The pairs of one or more tars; each is a line, or each image if its masks are random."""

    def __init__(self, source: Source, files: PairFiles, access: Access) -> None:
        """Check the options; nothing is read.

        Raises:
            UsageError: ``--key-column`` is not `SAMPLE_NAME`, or an option of ``access`` has no effect.
        """
        if source.key_column not in ("", SAMPLE_NAME):
            raise UsageError(f"--key-column {source.key_column}: with tars use {SAMPLE_NAME} or leave out the option")
        check_access(access, pa.chunked_array([[files.uris[0]]]))
        super().__init__(files.objects_listed)
        self._source, self._files, self._access = source, files, access
        self.extra_columns = list(EXTRA)

    def batches(self, known: Mapping[str, Slice]) -> Generator[PairBatch, None, None]:
        """Yield the pairs in the order of the tars, see `PairSource.batches`. Several tars are indexed at a time.

        Raises:
            UsageError: a tar cannot be read, a sample has two images or the same mask twice, or no image has a mask.
        """
        return in_batches(self._pieces(known), self._source)

    def _pieces(self, known: Mapping[str, Slice]) -> Generator[Piece, None, None]:
        empty, image_bytes, mask_bytes = not known, 0, 0
        unchanged = find_unchanged(self._files.uris, known, self._source, self._open)
        self.unchanged = frozenset(unchanged)
        starts = {uri: known[uri].end for uri in unchanged}
        uris = [uri for uri in self._files.uris if not (uri in unchanged and known[uri].is_last)]
        ahead = _ReadAhead()
        tars = map_concurrently(
            lambda one: self._index(one, uris[one], ahead, unchanged.get(uris[one]), starts.get(uris[one], 0)),
            range(len(uris)),
            _CONCURRENT_TARS,
            ahead=_CONCURRENT_TARS,
            on_end=ahead.end,
        )
        with closing(tars):  # also after an error, else tars that wait for memory would wait for ever
            for tar in tars:
                end = tar.start
                for table in tar.tables:
                    start, end, empty = end, end + table.num_rows, False
                    yield Piece(table, Slice(tar.uri, tar.version, start, end, is_last=False))
                self._add_left_out(tar.left_out)
                counts = tar.left_out.unpaired_images, tar.left_out.unpaired_masks, tar.left_out.ignored_files
                yield Piece(PAIRS.empty_table(), Slice(tar.uri, tar.version, end, end, is_last=True, left_out=counts))
                image_bytes, mask_bytes = image_bytes + tar.image_bytes, mask_bytes + tar.mask_bytes
                number = tar.number
                del tar  # frees its memory before the next one needs more
                ahead.release(number)
        if empty:
            left_out = self.left_out
            raise UsageError(
                f"--pairs {self._source.pairs}: no image has a mask; the mask of a.jpg must be named "
                f"a.{self._source.mask_column}.png (tars: {len(self._files.uris):,}; images without a mask: "
                f"{left_out.unpaired_images:,}; masks without an image: {left_out.unpaired_masks:,}; other files: "
                f"{left_out.ignored_files:,})"
            )
        self.image_and_mask_bytes = image_bytes, mask_bytes

    def _add_left_out(self, new: LeftOut) -> None:
        total = self.left_out
        total.unpaired_images += new.unpaired_images
        total.unpaired_masks += new.unpaired_masks
        total.ignored_files += new.ignored_files
        for names, added in (
            (total.unpaired_image_uris, new.unpaired_image_uris),
            (total.unpaired_mask_uris, new.unpaired_mask_uris),
            (total.unreadable_names, new.unreadable_names),
        ):
            names += added[: MAX_EXAMPLES - len(names)]

    def _open(self, uri: str) -> RangedFile:
        with translate_read_errors(uri):
            return RangedFile(uri, self._access)

    def _index(self, number: int, uri: str, ahead: _ReadAhead, file: RangedFile | None, start: int) -> _IndexedTar:
        """Return the pairs of one tar from line ``start`` on; open it if ``file`` is None."""
        file = file or self._open(uri)
        try:
            with translate_read_errors(uri):
                index = TarReader(uri, self._source, partial(ahead.reserve, number)).read(file)
        except DamagedTar as error:
            raise UsageError(
                f"--pairs {uri} is not a tar, or is truncated or damaged; write it again, without compression ({error})"
            ) from error
        shard = uri.removeprefix(f"{self._files.folder}/").removesuffix(".tar")
        own_masks = bool(self._source.random_masks or self._source.is_own_mask)
        paired = index.paired(own_masks)
        return _IndexedTar(
            number,
            uri,
            slice_version(file.version, self._source),
            start,
            index.tables(paired, start, file.version, "" if self._source.key_column else f"{shard}/"),
            index.left_out,
            index.data_bytes(np.unique(paired.images)),
            0 if own_masks else index.data_bytes(paired.masks),
        )
