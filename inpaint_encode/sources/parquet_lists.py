"""Reads the lines of a list of pairs in Parquet, a part at a time.

Parquet may hold images and masks. Their bytes are not read here: the lines get the URIs of the rows, see `part_uris`.
Other columns of bytes or images are left out.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from inpaint_encode.errors import UsageError
from inpaint_encode.parquet_file import ParquetFile, leaf_paths
from inpaint_encode.parquet_pages import PageLimits, RepeatedValues
from inpaint_encode.settings import Source
from inpaint_encode.stores.ranged_file import RangedFile

from . import pairs
from .list_files import SMALL_BYTES, Lines, ListFile
from .parquet import MAX_ROW_GROUP_BYTES, contains_bytes, is_image_type
from .part_uris import row_uris

_FOOTER_BYTES = 2**16
"""Size up to which a Parquet file is read whole; Arrow reads these bytes to find the footer."""
_BUFFERED_BYTES = 2**27
"""Size up to which the columns of a row group are fetched together; of a larger row group, only parts are."""
_MAX_PATH_BYTES = 2**16
"""Size of the largest path, URI or key that a dictionary may repeat."""
_MAX_VALUE_BYTES = 2**24
"""Size of the largest other value that a dictionary may repeat."""
_NUMBER_BYTES = 16
"""Size of a number of any type."""


class ParquetList(ListFile):
    """A Parquet file; its row groups are read one after the other."""

    def __init__(self, uri: str, file: RangedFile, source: Source) -> None:
        super().__init__(uri, file)
        whole = file.size <= _FOOTER_BYTES
        self._parquet = ParquetFile(file.read() if whole else file, check_pages=True)
        self._metadata, schema = self._parquet.metadata, self._parquet.schema
        self._paths = leaf_paths(self._metadata)
        sides = [source.image_column, "" if source.random_masks or source.is_own_mask else source.mask_column]
        self._text_columns = {*sides, source.key_column}
        self._parquet.check_readable(list(self._text_columns))
        self.refused = self._parquet.refused
        is_embedded = [name in schema.names and is_image_type(schema.field(name).type) for name in sides]
        image, mask = (name if embedded else "" for name, embedded in zip(sides, is_embedded, strict=True))
        self.embedded = image, mask
        kept = [
            field
            for field in schema
            if field.name in self._parquet.uuids
            or not (field.name in (*self.embedded, *self.refused) or contains_bytes(field.type))
        ]
        self._columns = [field.name for field in kept]
        self.schema = pa.schema([*kept, *((name, pa.string()) for name in dict.fromkeys(filter(None, self.embedded)))])
        if whole:
            return
        groups = range(self._metadata.num_row_groups)
        if file.size <= SMALL_BYTES and not any(self.embedded):
            file.seek(0)
            self._parquet = ParquetFile(file.read(), self._metadata, check_pages=True)
        elif max((sum(self._sizes(group, self._columns)) for group in groups), default=0) <= _BUFFERED_BYTES:
            self._parquet = ParquetFile(file, self._metadata, check_pages=True, pre_buffer=True)
        else:
            self._parquet = ParquetFile(
                file, self._metadata, check_pages=True, buffer_size=SMALL_BYTES, pre_buffer=False
            )

    def lines(self, start: int) -> Iterator[Lines]:
        """See `ListFile.lines`."""
        first = 0
        for number in range(self._metadata.num_row_groups):
            end = first + self._metadata.row_group(number).num_rows
            if end > start:
                yield from self._group_lines(number, first, max(first, start))
            first = end

    def _group_lines(self, number: int, first: int, start: int) -> Iterator[Lines]:
        """Yield the lines of a row group, whose first line is ``first``, from line ``start`` on."""
        group = self._metadata.row_group(number)
        image_bytes, mask_bytes = (self._embedded_bytes(number, name) for name in self.embedded)
        if any(self.embedded):
            self.row_groups += 1
            self.image_bytes += image_bytes
            self.mask_bytes += mask_bytes
        _, decoded_bytes = self._sizes(number, self._columns)
        rows = min(pairs.BATCH_PAIRS, max(1, pairs.BATCH_BYTES * group.num_rows // max(1, decoded_bytes)))
        for table in self._tables(number, rows):
            skipped = min(table.num_rows, max(0, start - first))
            numbers = pa.array(np.arange(first, first + table.num_rows))
            first += table.num_rows
            for name in self.schema.names[len(self._columns) :]:
                table = table.append_column(name, row_uris(self.uri, numbers, name))
            yield Lines(table.slice(skipped), image_bytes // group.num_rows)

    def _tables(self, number: int, rows: int) -> Iterator[pa.Table]:
        """Yield the columns of a row group that hold no images, some rows at a time."""
        if self._columns:
            for batch in self._batches(number, rows):
                batch.validate(full=True)  # strings may be no UTF-8
                yield pa.Table.from_batches([batch])
            return
        for start in range(0, total := self._metadata.row_group(number).num_rows, rows):
            yield pa.table({"": pa.nulls(min(rows, total - start))}).select([])

    def _batches(self, number: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of a row group of up to ``rows`` rows, or of fewer if a dictionary has large values."""
        names = tuple(f"{name}." for name in self._columns)
        leaves = sum(f"{path}.".startswith(names) for path in self._paths)
        column_bytes = max(1, pairs.BATCH_BYTES // max(1, leaves))
        rows = min(rows, self._metadata.row_group(number).num_rows, max(1, column_bytes // _NUMBER_BYTES))
        while True:
            limits = PageLimits(rows, column_bytes if rows > 1 else max(column_bytes, _MAX_VALUE_BYTES))
            batches = self._parquet.iter_batches(rows, [number], self._columns, limits=limits)
            try:
                first = next(batches, None)
                break
            except RepeatedValues as error:
                limit = _MAX_PATH_BYTES if error.column in self._text_columns else _MAX_VALUE_BYTES
                if error.largest > limit:
                    raise ValueError(
                        f"column {error.column} has a value of {error.largest:,} bytes in row group {number}; the "
                        f"limit is {limit:,}"
                    ) from None
                rows = max(1, column_bytes // error.largest)
        if first is not None:
            yield first
            yield from batches

    def _sizes(self, number: int, names: list[str]) -> tuple[int, int]:
        """Return the compressed and the uncompressed size of columns in a row group."""
        starts, group = tuple(f"{name}." for name in names), self._metadata.row_group(number)
        chunks = [group.column(at) for at, path in enumerate(self._paths) if f"{path}.".startswith(starts)]
        sizes = [(chunk.total_compressed_size, chunk.total_uncompressed_size) for chunk in chunks]
        return sum(compressed for compressed, _ in sizes), sum(size for _, size in sizes)

    def _embedded_bytes(self, number: int, name: str) -> int:
        """Return the compressed size of a column of images in a row group; 0 if ``name`` is empty."""
        compressed, size = self._sizes(number, [name] if name else [])
        if size > MAX_ROW_GROUP_BYTES:
            raise UsageError(
                f"--pairs {self.uri}: column {name} has {size:,} bytes in one row group, which a worker reads as a "
                f"whole; write the file with row groups of at most {MAX_ROW_GROUP_BYTES:,} bytes, for example 100 rows"
            )
        return compressed
