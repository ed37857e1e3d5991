"""Joins and cuts the lines of files to batches of bounded size, and finds files that have not changed."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from inpaint_encode.schema import EXTRA_COLUMNS, SOURCE_PAIRS
from inpaint_encode.settings import Source
from inpaint_encode.stores.pool import map_concurrently
from inpaint_encode.stores.ranged_file import RangedFile

from . import pairs
from .pairs import PairBatch, Slice
from .random_masks import slice_version, with_random_masks
from .signatures import without_signatures

_CONCURRENT_STATS = 16


class Piece(NamedTuple):
    """Consecutive lines of one file."""

    lines: pa.Table
    """The columns of `PairBatch.pairs` without ``line``; one row a line. Random masks replace its masks later."""
    slice: Slice
    """The same lines. The left-out files belong to the last line."""

    def cut(self, lines: int) -> tuple[Piece, Piece]:
        """Return the first ``lines`` lines, and the others."""
        middle = self.slice.start + lines
        first = self.slice._replace(end=middle, is_last=False, left_out=(0, 0, 0))
        second = self.slice._replace(start=middle)
        return Piece(self.lines.slice(0, lines), first), Piece(self.lines.slice(lines), second)


def in_batches(pieces: Generator[Piece, None, None], source: Source) -> Generator[PairBatch, None, None]:
    """Yield the pieces in batches of at most `pairs.BATCH_PAIRS` pairs and about `pairs.BATCH_BYTES`.

    A batch has at least one line, with all its random masks. It is yielded when the next line does not fit, so an empty
    piece that ends a file needs no batch of its own.
    """
    masks = max(1, source.random_masks)
    max_lines = max(1, pairs.BATCH_PAIRS // masks)
    batch: list[Piece] = []
    lines = size = 0
    with closing(pieces):  # also after an error, whose traceback would keep the pieces open
        for whole in pieces:
            rest = [whole]
            while rest:
                piece = rest.pop()
                added, added_size = piece.lines.num_rows, piece.lines.nbytes * masks
                room = max_lines - lines
                if added > 1 and added_size > pairs.BATCH_BYTES:
                    rest += reversed(piece.cut(added // 2))
                elif lines and added and (not room or size + added_size > pairs.BATCH_BYTES):
                    yield _joined(batch, source)
                    batch, lines, size = [], 0, 0
                    rest.append(piece)
                elif added > room:
                    rest += reversed(piece.cut(room))
                else:
                    batch.append(piece)
                    lines, size = lines + added, size + added_size
        if batch:
            yield _joined(batch, source)


def _joined(pieces: list[Piece], source: Source) -> PairBatch:
    table = pa.concat_tables([piece.lines for piece in pieces])
    table = table.append_column("line", pa.array(np.arange(table.num_rows, dtype=np.int32)))
    if EXTRA_COLUMNS in table.column_names:
        at = table.schema.get_field_index(EXTRA_COLUMNS)
        table = table.set_column(at, table.schema.field(at), without_signatures(table[EXTRA_COLUMNS]))
    if source.random_masks:
        table = with_random_masks(table, source)
    slices: list[Slice] = []
    for _, new in pieces:
        if slices and slices[-1].file == new.file:
            old = slices.pop()
            images, masks, ignored = (sum(counts) for counts in zip(old.left_out, new.left_out, strict=True))
            new = new._replace(start=old.start, left_out=(images, masks, ignored))
        slices.append(new)
    extra = [EXTRA_COLUMNS] if EXTRA_COLUMNS in table.column_names else []
    return PairBatch(table.select([*SOURCE_PAIRS.names, *extra]), tuple(slices))


def find_unchanged(
    uris: Iterable[str], known: Mapping[str, Slice], source: Source, open_file: Callable[[str], RangedFile]
) -> dict[str, RangedFile]:
    """Return the ``known`` files that still have their version, opened. Several are opened at a time.

    A file without a version is not among them: it may have changed.
    """
    candidates = [uri for uri in uris if uri in known]
    return {
        uri: file
        for uri, file in zip(candidates, map_concurrently(open_file, candidates, _CONCURRENT_STATS), strict=True)
        if file.version and slice_version(file.version, source) == known[uri].version
    }
